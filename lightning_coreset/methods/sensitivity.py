"""The paper's coreset: importance sampling by sensitivity, to a size or to an error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_coreset._arguments import is_number
from lightning_coreset.coreset import draw_distinct, draw_fixed, draw_pps, sample_size, sensitivities_from_norms
from lightning_coreset.layers import GroupView, LayerPair, NoCoresetForm, check_positions, check_ranges, layer_pairs
from lightning_coreset.methods.method import Method
from lightning_coreset.methods.ranking import rank_by_norms
from lightning_coreset.methods.selection import Selection

_SAMPLERS = {"distinct": draw_distinct, "draws": draw_fixed, "pps": draw_pps}
_VACUOUS = "kept whole (the bound is vacuous)"


@dataclass(frozen=True)
class Sensitivity(Method):
    """The paper's coreset: importance sampling by sensitivity, the next layer reweighted (arXiv 2008.08316).

    Channel ``p`` is drawn in proportion to ``max_o ||W[o, p]|| sup |phi|`` over the ball of inputs (section 4 there),
    and one number reweights all weights that read it. Groups without a coreset form are ranked by norms.

    Attributes:
        sampler: ``"distinct"`` draws with replacement until enough distinct channels came up, as the authors' code
            does; ``"draws"`` draws exactly as many times as channels are wanted, as the theorem does (fewer distinct
            ones are left); ``"pps"`` fixes the size and has the least variance.
            With ``epsilon`` it is ``"draws"``, else ``"distinct"`` unless given.
        input_radius: Bound on the norm of a layer's input. It cancels out for ReLU.
        epsilon: The error to guarantee instead of a size: every group is drawn as often as the theorem asks, and with
            probability ``1 - delta`` no input of norm at most ``input_radius`` moves any coordinate of the next layer's
            outputs by more than this (a coordinate is one output and one kernel position; the bound is about one
            group at one event). No pruning ratio is solved for then. Groups for which the theorem asks for as many
            draws as they have channels, and groups without a coreset form, stay whole.
        delta: The probability with which the guarantee may fail, for each group.

    Raises:
        ValueError: If an option is of another kind or out of its range, or ``epsilon`` is given with another sampler
            than the theorem's.
    """

    sampler: Literal["distinct", "draws", "pps"] | None = None
    input_radius: float = 1.0
    epsilon: float | None = None
    delta: float = 0.05

    def __post_init__(self) -> None:
        if self.sampler is None:
            object.__setattr__(self, "sampler", "distinct" if self.epsilon is None else "draws")
        if self.sampler not in _SAMPLERS:
            raise ValueError(f"Expected sampler to be 'distinct', 'draws' or 'pps' but got {self.sampler!r}.")
        if not is_number(self.input_radius) or self.input_radius <= 0:
            raise ValueError(
                f"Expected the method's input_radius to be a positive number but got {self.input_radius!r}."
            )
        if self.epsilon is not None and not (is_number(self.epsilon) and self.epsilon > 0):
            raise ValueError(f"Expected epsilon to be a positive number but got {self.epsilon!r}.")
        if not is_number(self.delta) or not 0 < self.delta < 1:
            raise ValueError(f"Expected delta to be a number between 0 and 1 but got {self.delta!r}.")
        if self.epsilon is not None and self.sampler != "draws":
            raise ValueError(f"Expected sampler 'draws' with epsilon, as the theorem has it, but got {self.sampler!r}.")

    @property
    def chooses_sizes(self) -> bool:
        """Whether an error is to be guaranteed instead of a size."""
        return self.epsilon is not None

    @property
    def label(self) -> str:
        """With the sampler or the error: ``"sensitivity (pps)"``."""
        option = f"{self.sampler}" if self.epsilon is None else f"epsilon={self.epsilon:g}"
        return f"{super().label} ({option})"

    def select(self, group: GroupView, size: int) -> Selection:
        """Draw a sample of the channels; the whole group where no sample is wanted or allowed."""
        if size >= group.size:
            return Selection.whole(group.size)
        try:
            return self._sample(group, size) if self.epsilon is None else self._guarantee(group, self.epsilon)
        except NoCoresetForm as reason:
            if self.chooses_sizes:
                return Selection.whole(group.size, f"kept whole ({reason})")
            return rank_by_norms(group, size, reason)

    def _sample(self, group: GroupView, size: int) -> Selection:
        pairs = layer_pairs(group)
        check_ranges(pairs, self.input_radius)
        scores = [
            sensitivities_from_norms(
                pair.producer_norms(),
                pair.normalised_consumer_norms(),
                pair.activation,
                input_radius=self.input_radius,
            )
            for pair in pairs
        ]
        assert self.sampler is not None
        sample = _SAMPLERS[self.sampler](torch.stack(scores).amax(dim=0), size, group.generator)
        selection = Selection(sample.kept, self.label, weights=sample.weights)
        factors = selection.factors(group.size)
        for pair in pairs:  # these weights compute the next group: do not read them again for their norms
            norms = pair.reweighted_filter_norms(factors)
            if norms is not None:
                group.state.filter_norms[pair.path.consumer.weight] = norms
        return selection

    def _guarantee(self, group: GroupView, epsilon: float) -> Selection:
        """As many draws as the theorem asks for; the whole group if it has no more channels than that."""
        pairs = layer_pairs(group)
        check_positions(pairs)
        if any(pair.max_pooled for pair in pairs):  # the theorem is about one input for all channels
            raise NoCoresetForm("a max pooling takes every channel from a position of its own")
        check_ranges(pairs, self.input_radius)
        bounds = [_PairBound.of(pair, self.input_radius) for pair in pairs]
        scores = torch.stack([bound.scores for bound in bounds]).amax(dim=0)
        drawn = scores > 0
        squares = torch.stack([(bound.slopes[drawn].square() / scores[drawn]).sum() for bound in bounds])
        complexity = math.sqrt(float(scores.sum() * squares.amax()))
        coordinates = sum(bound.coordinates for bound in bounds)
        if not math.isfinite(complexity):  # an activation without a Lipschitz constant
            return Selection.whole(group.size, _VACUOUS)
        draws = sample_size(float(scores.sum()), epsilon, coordinates, self.delta, complexity=complexity)
        if draws >= group.size:
            return Selection.whole(group.size, _VACUOUS)
        sample = draw_fixed(scores, draws, group.generator)
        return Selection(sample.kept, self.label, weights=sample.weights)

    def warnings(self, selections: Mapping[str, Selection]) -> Iterable[str]:
        """Groups that stay whole because the theorem asks for more draws than they have channels."""
        names = [name for name, selection in selections.items() if selection.method == _VACUOUS]
        messages = []
        if names:
            messages.append(
                f"The bound is vacuous for {', '.join(names)}: the theorem asks for at least as many draws as there "
                "are channels, so all of them stay. Ask for a larger epsilon."
            )
        return messages


@dataclass(frozen=True, eq=False)
class _PairBound:
    """What the theorem of ``coreset.sampling_bounds`` needs of one layer pair.

    In units of the consumer's outputs, before any BatchNorm behind it. A BatchNorm behind the activation makes a
    channel ``a phi(z) + t``: its offset counts in the sensitivity, but no more in the Rademacher average than any
    constant, whose mean over random signs is zero.

    Attributes:
        scores: Bounds on what a channel adds to any coordinate, (N,).
        slopes: Lipschitz constants times the largest norm of input and row, (N,).
        coordinates: Outputs times positions.
    """

    scores: Tensor
    slopes: Tensor
    coordinates: int

    @classmethod
    def of(cls, pair: LayerPair, input_radius: float) -> _PairBound:
        scale, offset = pair.affine_behind
        norms, weights = pair.producer_norms(), pair.consumer_norms()
        scores = sensitivities_from_norms(norms, weights, pair.activation, input_radius=input_radius)
        slopes = weights * scale.abs() * norms * math.sqrt(input_radius**2 + 1)
        slopes = torch.where(slopes > 0, slopes * pair.activation.lipschitz, 0.0)  # an infinite constant times 0 is NaN
        return cls(scale.abs() * scores + weights * offset.abs(), slopes, pair.coordinates)
