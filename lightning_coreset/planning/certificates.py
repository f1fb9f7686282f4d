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
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_coreset.coreset import (
    Activation,
    Certificate,
    certify,
    certify_moved,
    largest_found_error,
    largest_magnitude,
    output_radius,
)
from lightning_coreset.layers import (
    GroupView,
    LayerPair,
    NoCoresetForm,
    check_positions,
    check_ranges,
    single_channel_pairs,
)
from lightning_coreset.layers.layer_pair import to_cpu_float64
from lightning_coreset.methods import Selection
from lightning_coreset.methods.reweighting import reweighted_consumers
from lightning_coreset.planning.input_norms import InputNorms

_ASCENDED = 8
_ENTRIES = 2**24
"""Rows times N times min(N, d + 1) that get the sharp bound: 186 rows for 300 channels, 16 for 1024. Some minutes."""
_LEAST_SHARPENED = 4
_AT_ONCE = 2**20
"""Rows times entries of the producers that are bounded together."""


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
            moved = [_moved(pair, {**view.tensors, **selection.updates}) or pair for pair in pairs]
            check_ranges(moved, radius)
            changes = [_Change.of(pair, selection) for pair in pairs]
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


@dataclass(frozen=True, eq=False)
class _Change:
    """What a plan changes in one consumer.

    Attributes:
        change: Old weights minus new ones, BatchNorms behind the activation included, (J, N).
        constant: Old constants minus new ones, (J,).
        at_padding: The same where padding takes the place of the channels, (J,).
        producers: The rows that make the channels, (N, d + 1); with those that moved behind them, if any did.
        moved: The channels that those are, (S,); none where no row moves.
        activation: What stands between.
        pooled: Whether a max pooling stands between, too.
    """

    change: Tensor
    constant: Tensor
    at_padding: Tensor
    producers: Tensor
    moved: Tensor
    activation: Activation
    pooled: bool

    @classmethod
    def of(cls, pair: LayerPair, selection: Selection) -> _Change:
        view, tensors = pair.view, pair.view.tensors
        # In the dtype of the model: the certificate is about the weights that it will have.
        new = reweighted_consumers(view.group, selection, tensors)
        rounded = {name: value.to(tensors[name].dtype) for name, value in new.items()}
        moved = _moved(pair, {**tensors, **rounded})
        after = pair.with_tensors({**tensors, **rounded})
        kept = torch.zeros(view.size, dtype=torch.float64).index_fill_(0, selection.kept, 1.0)
        rescaled = _rescaled(pair, after)
        before, left = _coordinates(pair), _coordinates(after) * kept * rescaled[:, None, None, None]
        share = (_constants(pair) - rescaled * _constants(after)) / math.prod(before.shape[1:3])
        at_padding = share[:, None, None].expand(before.shape[:3])
        if moved is None:
            scale, offset = pair.affine_behind
            difference, producers, behind = before - left, pair.producers, selection.kept[:0]
        else:  # all neurons as they were, and beside them those that stay as they will be, with opposite signs
            scale, offset = (torch.cat([part, part[selection.kept]]) for part in pair.affine_behind)
            difference = torch.cat([before, -left[..., selection.kept]], dim=3)
            producers, behind = torch.cat([pair.producers, moved.producers[selection.kept]]), selection.kept
        constant = difference @ offset + at_padding
        return cls(
            (difference * scale).flatten(0, 2),
            constant.flatten(),
            at_padding.flatten(),
            producers,
            behind,
            pair.activation,
            pair.max_pooled,
        )

    def bracket(self, radius: float, rows: int | None, seed: int) -> tuple[float, float]:
        """The certified error and the one found, both the largest over the coordinates."""
        bound = self._certified(radius, rows)
        worst = bound.topk(min(_ASCENDED, len(bound))).indices
        return float(bound.max()), self._found(worst, radius, seed)

    def _certified(self, radius: float, rows: int | None) -> Tensor:
        """Valid bounds for all coordinates, the largest of them sharp unless the limit of rows comes first."""
        # An average over positions and padding lies between the two.
        constant = torch.maximum(self.constant.abs(), self.at_padding.abs())
        cheap = self._certificate(self.change, radius, sharpen=False)
        bound = (cheap.triangle if self.pooled else cheap.bound) + constant
        if self.pooled:
            return bound
        affordable = _ENTRIES // (len(self.producers) * min(self.producers.shape))
        left = max(_LEAST_SHARPENED, affordable) if rows is None else rows
        waiting, reached = bound.clone(), 0.0  # what is sharp already waits no more
        at_once = max(_LEAST_SHARPENED, min(_AT_ONCE // self.producers.numel(), 64))
        while left > 0 and float(waiting.max()) >= reached:
            some = waiting.topk(min(at_once, left, len(waiting))).indices
            enough = max(reached - float(constant[some].max()), 0.0)
            sharp = self._certificate(self.change[some], radius, enough=enough)
            bound[some] = torch.minimum(bound[some], sharp.bound + constant[some])
            waiting[some] = -math.inf
            reached = max(reached, float(bound[some].max()))
            left -= len(some)
        return bound

    def _certificate(self, change: Tensor, radius: float, *, enough: float = 0.0, sharpen: bool = True) -> Certificate:
        """Bounds for some rows of the change, without the constant."""
        if not len(self.moved):
            return certify(change, self.producers, self.activation, input_radius=radius, enough=enough, sharpen=sharpen)
        channels = len(self.producers) - len(self.moved)
        return certify_moved(
            change[:, :channels],
            -change[:, channels:],
            self.producers[:channels],
            self.producers[channels:],
            self.moved,
            self.activation,
            input_radius=radius,
            enough=enough,
            sharpen=sharpen,
        )

    def _found(self, rows: Tensor, radius: float, seed: int) -> float:
        change, producers = self.change[rows], self.producers
        constant = self.constant[rows]
        if constant.any():
            # A channel that no input moves carries the constant, so that the ascent sees it.
            at = next((t for t in (1.0, -1.0) if abs(_value(self.activation, t)) > 1e-3), None)
            if at is None:
                return 0.0
            still = producers.new_zeros(1, producers.shape[1])
            still[0, -1] = at
            producers = torch.cat([producers, still])
            change = torch.cat([change, (constant / _value(self.activation, at))[:, None]], dim=1)
        generator = torch.Generator().manual_seed(seed)
        found = largest_found_error(change, producers, self.activation, input_radius=radius, generator=generator)
        return float(found.max())


def _moved(pair: LayerPair, after: Mapping[str, Tensor]) -> LayerPair | None:
    """The pair with the rows that a plan gives its producers; ``None`` if it leaves them as they are."""
    made = [member.name for member in pair.view.group.members if member.role != "consumer"]
    if all(after[name] is pair.view.tensors[name] for name in made):
        return None
    others = single_channel_pairs(pair.view.with_tensors(after))
    return next(one for one in others if one.path is pair.path)


def _coordinates(pair: LayerPair) -> Tensor:
    """The weights that read the channels, (O, q, k, N)."""
    return pair.consumers.permute(0, 2, 3, 1)


def _value(activation: Activation, at: float) -> float:
    return float(activation.function(torch.tensor(at, dtype=torch.float64)))


def _rescaled(pair: LayerPair, after: LayerPair) -> Tensor:
    """What a BatchNorm behind the consumer multiplies its outputs by, in units of what it did before, (O,)."""
    norm = pair.output_norm
    if norm is None or norm.running_var is None:
        return torch.ones(pair.outputs, dtype=torch.float64)
    old, new = (to_cpu_float64(one.view.tensors[norm.running_var]) + norm.eps for one in (pair, after))
    return (old / new).sqrt()


def _constants(pair: LayerPair) -> Tensor:
    """The constant added to each output of the consumer, up to one that no plan changes, (O,)."""
    tensors = pair.view.tensors
    constant = torch.zeros(pair.outputs, dtype=torch.float64)
    bias, norm = pair.path.consumer.bias, pair.output_norm
    if bias is not None and tensors[bias].numel() == len(constant):
        constant = constant + to_cpu_float64(tensors[bias]).reshape(-1)
    if norm is not None and norm.running_mean is not None:
        constant = constant - to_cpu_float64(tensors[norm.running_mean])
    return constant
