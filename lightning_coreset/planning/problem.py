"""What a request means for a model: which groups may shrink, which may not and why, and to which size each goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from lightning_coreset.layers import GroupView, NoCoresetForm, PlanState
from lightning_coreset.planning.adapters import is_adapter_rank
from lightning_coreset.planning.allocation import error_steps, ranked_steps, uniform_steps
from lightning_coreset.planning.allowed_sizes import AllowedSizes
from lightning_coreset.planning.cost_model import CostModel, ModelCost
from lightning_coreset.planning.head_pairing import paired_by_rank
from lightning_coreset.planning.latency_sizes import free_widths, hull, nearer, worthwhile
from lightning_coreset.planning.layer_rules import Rule, RuleMatcher, format_rule
from lightning_coreset.planning.request import PruningRatio, Request
from lightning_coreset.qualified_names import labelled_reasons
from lightning_coreset.structure import ChannelGroup, Structure
from lightning_coreset.surgery import made_weights, named_tensors, weight_norms_of

_MOST_REASONS = 8
"""Of an error that lists why no layer can be pruned."""


@dataclass(frozen=True, eq=False)
class PruningProblem:
    """A request for one model: which groups may shrink, and how far.

    Attributes:
        request: What is asked.
        tensors: Parameters and buffers by name.
        weights: The same as methods see them: what ``weight_norm`` makes of a direction stands under its name.
        groups: The groups that may shrink, in network order.
        skipped: The layers that may not, each with the reason.
        ratios: Where rules name groups, the fraction of its original classes that each loses.
        allowed: The sizes that each group may have; where latency is counted, those of them that save time.
        cost_model: Counts the model.
        original: The cost of the original model.
        all_allowed: The sizes that each group may have, also those that save no time.
    """

    request: Request
    tensors: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    groups: Sequence[ChannelGroup]
    skipped: Mapping[str, str]
    ratios: Mapping[str, float]
    allowed: Sequence[AllowedSizes]
    cost_model: CostModel
    original: ModelCost
    all_allowed: Sequence[AllowedSizes] = ()

    @classmethod
    def of(
        cls, model: nn.Module, structure: Structure, request: Request, original: ModelCost | None = None
    ) -> PruningProblem:
        """Apply a request to a model.

        Args:
            model: The network, only read.
            structure: What ``analyse`` found in it as it is now.
            request: What is asked.
            original: Cost of the model before any pruning; that of ``model`` by default.

        Raises:
            ValueError: If a rule matches nothing, two rules give a group different ratios, or nothing may shrink.
        """
        request.check_rules(model)
        matcher = RuleMatcher(model)
        groups, skipped = _prunable(matcher, structure, request)
        if not groups:
            raise ValueError(_nothing_to_prune(skipped))
        tensors = named_tensors(model)
        groups = [paired_by_rank(group, request.method, tensors, request.seed) for group in groups]
        widths = {} if original is None else original.widths
        sizes = {group.name: group.size for group in structure.groups}
        settled = sum(sizes.get(name, 1) for name in widths.keys() - {group.name for group in groups})
        counted = {name: tensor for name, tensor in tensors.items() if name not in structure.untrained.uncounted}
        macs = {name: macs for name, macs in structure.macs.items() if name not in structure.untrained.uncounted}
        cost_model = CostModel(counted, groups, macs, settled, structure.product_macs, request.network_latency)
        # A group that is new under its name may be wider than the one that had it.
        allowed = [AllowedSizes.of(group, request, max(widths.get(group.name, 0), group.size)) for group in groups]
        ratios = _ratios(matcher, groups, request.pruning_ratio)
        weights = made_weights(tensors, weight_norms_of(groups).values())
        original = original or cost_model.totals()
        useful = allowed
        if request.unit == "latency" and not ratios and not request.method.chooses_sizes:
            useful = worthwhile(allowed, cost_model)
        return cls(request, tensors, weights, groups, skipped, ratios, useful, cost_model, original, allowed)

    def sizes(self) -> dict[str, int]:
        """The classes that stay in each group, by the request's ratio, rules and limits."""
        if self.ratios:
            return {group.name: group.nearest(self._wanted(group)) for group in self.allowed}
        ratio, unit = self.request.target, self.request.unit
        if unit == "latency":
            return self._sizes_by_latency()
        return self.cost_model.sizes_at_ratio(self._steps(self.allowed), self.allowed, ratio, unit, self.original)

    def _sizes_by_latency(self) -> dict[str, int]:
        """The sizes where steps are uneven: met as near as may be, and then with every channel that costs no time."""
        steps = self.allowed
        if self.request.allocation == "error":
            steps = hull(steps, self._error_curves, self.cost_model)
        ratio = self.request.target
        sizes = self.cost_model.sizes_at_ratio(self._steps(steps), steps, ratio, "latency", self.original)
        sizes = nearer(sizes, self.allowed, lambda sizes: abs(self.gone(sizes) - ratio))
        return free_widths(sizes, self.all_allowed, self.cost_model)

    def smallest(self) -> dict[str, int]:
        """The fewest classes that each group may have."""
        return {group.name: group.sizes[-1] for group in self.allowed}

    def gone(self, sizes: Mapping[str, float]) -> float:
        """The fraction of the original model that is gone with these sizes, which may be fractional."""
        return self.cost_model.gone(sizes, self.original, self.request.unit)

    def requested(self) -> float:
        """The fraction that is asked for; with rules, the one that follows from fractions of channels."""
        if not self.ratios:
            return self.request.target
        return self.gone({group.name: self._wanted(group) for group in self.allowed})

    def shortfall(self, group: AllowedSizes) -> float:
        """By how many classes a group cannot become as small as its rule says."""
        return group.smallest - self._wanted(group)

    def _wanted(self, group: AllowedSizes) -> float:
        return group.original * (1 - self.ratios[group.name])

    def _steps(self, allowed: Sequence[AllowedSizes]) -> Tensor:
        if self.request.allocation == "error":
            return error_steps(allowed, self._error_curves, self.cost_model, self.request.unit)
        if self.request.allocation == "global":
            return ranked_steps(allowed, dict(self._ask_each_group(self.request.method.scores)))
        return uniform_steps(allowed)

    @cached_property
    def _error_curves(self) -> Mapping[str, Tensor]:
        return dict(self._ask_each_group(self.request.method.error_curve))

    def _ask_each_group(self, question: Callable[[GroupView], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """A method's answer for each group of the model as it is, where it has one."""
        state = PlanState(torch.Generator().manual_seed(self.request.seed))
        for group in self.groups:
            try:
                yield group.name, question(GroupView(group, self.weights, state))
            except NoCoresetForm:
                continue  # it shrinks at the pace of the others


def prunable(model: nn.Module, structure: Structure, request: Request) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The groups that may shrink, and the layers that may not, each with the reason."""
    return _prunable(RuleMatcher(model), structure, request)


def _prunable(
    matcher: RuleMatcher, structure: Structure, request: Request
) -> tuple[list[ChannelGroup], dict[str, str]]:
    rules = tuple(request.pruning_ratio) if isinstance(request.pruning_ratio, Mapping) else None
    groups, skipped = [], dict(structure.refused)
    for group in structure.groups:
        ignored = next(matcher.named(request.ignore, group.with_copies), None)
        if ignored is not None:
            skipped[group.name] = f"is ignored by {format_rule(ignored[0])}"
        elif request.only and not any(matcher.named(request.only, group)):
            skipped[group.name] = "is named by no rule of only"
        elif not request.include_residual and is_residual(group):
            skipped[group.name] = (
                "is coupled with other layers by a residual addition (include_residual=True prunes it)"
            )
        elif not request.include_residual and group.normalized:
            skipped[group.name] = "is normalised over all its channels (include_residual=True prunes it)"
        elif rules is not None and not any(matcher.named(rules, group)):
            skipped[group.name] = "is named by no rule of pruning_ratio"
        elif not (request.only or rules) and is_adapter_rank(matcher.model, structure, group):
            skipped[group.name] = (
                "is the rank of an adapter beside frozen layers (a rule of only that names it prunes it)"
            )
        else:
            groups.append(group)
    return groups, skipped


def is_residual(group: ChannelGroup) -> bool:
    """Whether several layers add to a residual stream; parts of one layer, which read the same tensor, do not."""
    return group.residual and len({member.name for member in group.by_role("producer")}) > 1


def _ratios(matcher: RuleMatcher, groups: Sequence[ChannelGroup], rules: PruningRatio) -> dict[str, float]:
    """The ratio of each group where rules name them.

    Raises:
        ValueError: If two rules with different ratios name one group.
    """
    if not isinstance(rules, Mapping):
        return {}
    ratios: dict[str, float] = {}
    for group in groups:
        (first, through), *others = matcher.named(tuple(rules), group)
        for rule, name in others:
            if rules[rule] != rules[first]:
                raise ValueError(_conflict(group, {first: through, rule: name}, rules))
        ratios[group.name] = rules[first]
    return ratios


def _conflict(group: ChannelGroup, through: Mapping[Rule, str], ratios: Mapping[Rule, float]) -> str:
    named = " and ".join(
        f"{format_rule(rule)} says {ratios[rule]:g} (through {name})" for rule, name in through.items()
    )
    return (
        f"Expected one pruning ratio for the channels of {group.name!r}, which go together, but {named}. "
        "Give both rules the same ratio, or narrow one of them."
    )


def _nothing_to_prune(skipped: Mapping[str, str]) -> str:
    told = labelled_reasons(skipped)
    reasons = "\n".join(told[:_MOST_REASONS])
    more = f"\n  ... and {len(told) - _MOST_REASONS} more reasons" if len(told) > _MOST_REASONS else ""
    return f"Expected a model with channels that can be pruned, but no layer has any:\n{reasons}{more}"
