r"""Certificates of a plan: for every group the worst error that its coreset can make, from above and from below.

For a group with a coreset form, :math:`e_j(x) = \sum_p \Delta_{jp} \phi(P_p \cdot (x, 1)) + c_j` is what the plan
changes in coordinate j of a consumer, for *every* input of norm at most the radius. A coordinate is one output, one
input position that a channel becomes (several behind a Flatten) and one kernel position: for a Linear it is the output
itself; the output of a convolution adds as many coordinates as its kernel has positions, each with a patch of its own,
so that its error is at most that number times the coordinate's. A constant that went into the consumer's bias, or out
of the running mean behind it, is shared equally among the coordinates of its output.

Where producers move, the sum is over both sets of rows: those of all channels as they were, and those that stay as they
will be.

Behind a BatchNorm that follows the consumer, and whose running variance the plan rescales, outputs are compared as that
BatchNorm scales them, in units of its scale before.

A certificate does not cover several layers together, and fine-tuning. A sum over positions (``x.sum((2, 3))``)
multiplies errors by their number, which is that of the example. Averages and interpolation do no harm; where positions
are added up with weights that are not known (attention, a product with another activation, bicubic interpolation) there
is no certificate. Behind max pooling, where every channel may come from another position, the triangle bound alone
counts, and the error found is that of positions which are all alike.

Shapes as in ``layers.group_view``; J coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from lightning_coreset.coreset import largest_magnitude, output_radius
from lightning_coreset.layers import (
    GroupView,
    LayerPair,
    NoCoresetForm,
    check_positions,
    check_ranges,
    single_channel_pairs,
)
from lightning_coreset.methods import Selection
from lightning_coreset.planning.consumer_change import ConsumerChange, moved_pair
from lightning_coreset.planning.input_norms import InputNorms


@dataclass(frozen=True)
class GroupCertificate:
    """The worst error of one group's coreset, bracketed; the largest over all coordinates.

    Attributes:
        certified_error: Proven: no input of the ball makes a larger one. ``None`` without a certificate.
        found_error: Found by gradient ascent: an input of the ball makes this one.
        input_radius: The radius of the ball.
        radius_source: ``"given"``, ``"propagated"`` or ``"measured"``; or why there is no certificate.
    """

    certified_error: float | None
    found_error: float | None
    input_radius: float | None
    radius_source: str


@dataclass
class Certifier:
    """Certifies group after group of one plan, bottom to top.

    Attributes:
        inputs: What the example showed of the layers' inputs.
        input_radius: The user's bound on the norm of the network's own input as its first layer sees it.
        seed: Of the starts of the ascent.
        rows: Rows that get the sharp bound, at most; by default as many as fit ``_ENTRIES``. The others keep the
            triangle or the spectral bound, so that the result is valid whatever the number.
    """

    inputs: InputNorms
    input_radius: float | None = None
    seed: int = 0
    rows: int | None = None
    _proven: dict[str, float] = field(default_factory=dict)

    def certificate(self, view: GroupView, selection: Selection) -> GroupCertificate:
        """Bracket the worst error of a group's coreset.

        Args:
            view: The group, with the tensors as the groups before left them and without this group's changes.
            selection: Its coreset.
        """
        try:
            pairs = single_channel_pairs(view)
            radius, source = self._radius(pairs[0].path.producer.weight)
            check_positions(pairs)
            check_ranges(pairs, radius)
            moved = [moved_pair(pair, {**view.tensors, **selection.updates}) or pair for pair in pairs]
            check_ranges(moved, radius)
            changes = [ConsumerChange.of(pair, selection) for pair in pairs]
        except NoCoresetForm as reason:
            return GroupCertificate(None, None, None, f"none: {reason}")
        if source != "measured":
            for pair in moved:
                self._propagate(pair, selection.kept, radius)
        brackets = [(0.0, 0.0)]
        if len(selection.kept) < view.size:
            brackets = [change.bracket(radius, self.rows, self.seed) for change in changes]
        certified, found = (max(values) for values in zip(*brackets, strict=True))
        return GroupCertificate(certified, found, radius, source)

    def _radius(self, weight: str) -> tuple[float, str]:
        """The radius of a layer's inputs, and where it comes from."""
        if self.input_radius is not None and weight in self.inputs.first:
            return self.input_radius, "given"
        if weight in self._proven:
            return self._proven[weight], "propagated"
        if weight not in self.inputs.norms:
            raise NoCoresetForm(f"no module that can be watched runs {weight}")
        radius = self.inputs.norms[weight]
        if not (math.isfinite(radius) and radius > 0):
            raise NoCoresetForm(f"the inputs measured at {weight} have norm {radius}")
        return radius, "measured"

    def _propagate(self, pair: LayerPair, kept: Tensor, radius: float) -> None:
        """A bound on the norm of the channels that stay, at all positions that a consumer reads at once."""
        weight = pair.path.consumer.weight
        # A layer that is called several times may read something else as well.
        if weight in self.inputs.repeated or pair.whole_input is None:
            return
        rows = pair.producers[kept]
        if pair.max_pooled:  # every channel from a position of its own
            norms = rows.norm(dim=1) * math.sqrt(radius**2 + 1)
            largest = float(largest_magnitude(pair.activation, norms).norm())
        else:
            largest = output_radius(rows, pair.activation, input_radius=radius)
        scale, offset = (part[kept] for part in pair.affine_behind)
        positions = math.prod(pair.consumers.shape[2:])
        proven = math.sqrt(positions) * (float(scale.abs().max()) * largest + float(offset.norm()))
        if proven > 0 and math.isfinite(proven):
            self._proven[weight] = max(proven, self._proven.get(weight, 0.0))
