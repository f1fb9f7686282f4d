"""The paper's coreset: importance sampling by sensitivity, to a size or to an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from lightning_coreset._arguments import is_number
from lightning_coreset.coreset import draw_distinct, draw_fixed, draw_pps, sensitivities_from_norms
from lightning_coreset.layers import (
    GroupView,
    NoCoresetForm,
    check_positions,
    check_ranges,
    layer_pairs,
    single_channel_pairs,
)
from lightning_coreset.methods.asked_draws import AskedDraws, of_single_channels
from lightning_coreset.methods.certified_draws import CertifiedDraws
from lightning_coreset.methods.method import Method
from lightning_coreset.methods.ranking import rank_by_norms
from lightning_coreset.methods.selection import Selection

_SAMPLERS = {"distinct": draw_distinct, "draws": draw_fixed, "pps": draw_pps}
_VACUOUS = "kept whole (the bound is vacuous)"
_TOO_LARGE = "kept whole (too large to certify)"
_UNCERTIFIED = "kept whole (no smaller coreset was certified)"


@dataclass(frozen=True)
class Sensitivity(Method):
    """The paper's coreset: importance sampling by sensitivity, the next layer reweighted (arXiv 2008.08316).

    Channel ``p`` is drawn in proportion to ``max_o ||W[o, p]|| sup |phi|`` over the ball of inputs (section 4 there),
    and one number reweights all weights that read it. Groups without a coreset form are ranked by norms.

    Attributes:
        sampler: ``"distinct"`` draws with replacement until enough distinct channels came up, as the authors' code
            does; ``"draws"`` draws exactly as many times as channels are wanted, as the theorem does (fewer distinct
            ones are left); ``"pps"`` fixes the size and has the least variance.
            ``"distinct"`` unless given; with ``epsilon`` the theorem has ``"draws"`` and what is certified ``"pps"``.
        input_radius: Bound on the norm of a layer's input. It cancels out for ReLU.
        epsilon: The error to guarantee instead of a size: no input of norm at most ``input_radius`` moves any
            coordinate of the next layer's outputs by more than this (a coordinate is one output and one kernel
            position; the guarantee is about one group at one event). Every group gets the fewest channels that one of
            these allows, and its method in the plan says which: the *theorem*, with probability ``1 - delta``; the
            *refined theorem*, the same with the layer's own numbers in place of the worst; the *certificate* of a
            coreset that was drawn, with certainty. The certificate allows the least, and takes up to some minutes for a
            group; layers above about 1024 channels, grouped convolutions and layers with too many outputs are left to
            the theorems. With another sampler than ``"draws"`` the certificate alone decides. No pruning ratio is
            solved for. Groups for which nothing is proven, and groups without a coreset form, stay whole.
        delta: The probability with which the theorems may fail, for each group.

    Raises:
        ValueError: If an option is of another kind or out of its range.

    Example:
        >>> from torch import nn
        >>> from lightning_coreset import plan_pruning
        >>> _ = torch.manual_seed(0)
        >>> network = nn.Sequential(nn.Linear(3, 40), nn.ReLU(), nn.Linear(40, 2))
        >>> plan = plan_pruning(network, torch.zeros(1, 3), method=Sensitivity(epsilon=2.0))
        >>> plan.groups[0].method
        'sensitivity (epsilon=2, certificate)'
    """

    sampler: Literal["distinct", "draws", "pps"] | None = None
    input_radius: float = 1.0
    epsilon: float | None = None
    delta: float = 0.05

    def __post_init__(self) -> None:
        if self.sampler is None and self.epsilon is None:
            object.__setattr__(self, "sampler", "distinct")
        if self.sampler not in _SAMPLERS and self.sampler is not None:
            raise ValueError(f"Expected sampler to be 'distinct', 'draws' or 'pps' but got {self.sampler!r}.")
        if not is_number(self.input_radius) or self.input_radius <= 0:
            raise ValueError(
                f"Expected the method's input_radius to be a positive number but got {self.input_radius!r}."
            )
        if self.epsilon is not None and not (is_number(self.epsilon) and self.epsilon > 0):
            raise ValueError(f"Expected epsilon to be a positive number but got {self.epsilon!r}.")
        if not is_number(self.delta) or not 0 < self.delta < 1:
            raise ValueError(f"Expected delta to be a number between 0 and 1 but got {self.delta!r}.")

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
        """The fewest channels that the theorem allows or a certificate proves; the whole group without any."""
        by_theorem = self.sampler in (None, "draws")
        pairs = layer_pairs(group) if by_theorem else single_channel_pairs(group)
        check_positions(pairs)
        if any(pair.max_pooled for pair in pairs):  # the theorem is about one input for all channels
            raise NoCoresetForm("a max pooling takes every channel from a position of its own")
        check_ranges(pairs, self.input_radius)
        asked = AskedDraws.of(pairs, epsilon, self.delta, self.input_radius)
        best = Selection.whole(group.size, _VACUOUS if by_theorem else _TOO_LARGE)
        if by_theorem and asked.draws < group.size:
            sample = draw_fixed(asked.scores, int(asked.draws), group.generator)
            best = Selection(sample.kept, self._decided_by(asked.bound), weights=sample.weights)
        if not of_single_channels(pairs):
            return best
        search = CertifiedDraws(
            group,
            pairs,
            asked.scores,
            _SAMPLERS[self.sampler or "pps"],
            input_radius=self.input_radius,
            epsilon=epsilon,
        )
        certified = search.smallest(len(best.kept))
        if certified is not None:
            return Selection(certified.kept, self._decided_by("certificate"), weights=certified.weights)
        if len(best.kept) == group.size and not search.unaffordable:
            return replace(best, method=_UNCERTIFIED)
        return best

    def _decided_by(self, bound: str) -> str:
        return f"{self.label[:-1]}, {bound})"

    def warnings(self, selections: Mapping[str, Selection]) -> Iterable[str]:
        """Groups that stay whole because no bound lets them shrink."""
        named = {
            method: ", ".join(name for name, selection in selections.items() if selection.method == method)
            for method in (_VACUOUS, _UNCERTIFIED, _TOO_LARGE)
        }
        messages = []
        if named[_VACUOUS]:
            messages.append(
                f"The bound is vacuous for {named[_VACUOUS]}: the theorem asks for at least as many draws as there are "
                "channels, and what is drawn cannot be certified in reasonable time, so all of them stay. Ask for a "
                "larger epsilon."
            )
        if named[_UNCERTIFIED]:
            messages.append(
                f"No coreset of {named[_UNCERTIFIED]} was certified to keep the error {self.epsilon:g}, so all "
                "channels stay. Ask for a larger epsilon."
            )
        if named[_TOO_LARGE]:
            messages.append(
                f"No coreset of {named[_TOO_LARGE]} can be certified in reasonable time, so all channels stay. Leave "
                "out the sampler, so that the theorem may decide."
            )
        return messages
