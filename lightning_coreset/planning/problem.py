"""A model as a request sees it: what may shrink, what may not and why, and how far each group goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_coreset.methods import Magnitude, Reconstruction
from lightning_coreset.planning.allocation import error_steps, ranked_steps, solve, uniform_steps
from lightning_coreset.planning.allowed_sizes import AllowedSizes
from lightning_coreset.planning.cost_model import CostModel, ModelCost
from lightning_coreset.planning.layer_rules import Rule, RuleMatcher, format_rule
from lightning_coreset.planning.layout import NoCoresetForm
from lightning_coreset.planning.moments import ActivationMoments
from lightning_coreset.planning.reconstruct import error_curve
from lightning_coreset.planning.request import Request
from lightning_coreset.planning.select import producer_norms
from lightning_coreset.structure import ChannelGroup, StepKind, Structure
from lightning_coreset.surgery import named_tensors


@dataclass(frozen=True, eq=False)
class PruningProblem:
    """A model with what may shrink in it, and how far.

    Attributes:
        request: What is asked.
        tensors: Parameters and buffers by name.
        groups: The groups that may shrink, in network order.
        skipped: The layers that may not, each with the reason.
        ratios: Where rules say it, the fraction of its original classes that each group loses.
        ladders: The sizes that each group may have.
        meter: Counts the model.
        original: What the original model came to.
    """

    request: Request
    tensors: Mapping[str, Tensor]
    groups: Sequence[ChannelGroup]
    skipped: Mapping[str, str]
    ratios: Mapping[str, float]
    allowed: Sequence[AllowedSizes]
    cost_model: CostModel
    original: ModelCost

    @classmethod
    def of(
        cls, model: nn.Module, structure: Structure, request: Request, original: ModelCost | None = None
    ) -> PruningProblem:
        """Look at a model.

        Args:
            model: The network, only read.
            structure: What ``analyse`` found in it as it is now.
            request: What is asked.
            original: Totals of the model before any pruning; those of ``model`` by default.

        Raises:
            ValueError: If a rule matches nothing, two rules fight over a group, or nothing may shrink.
        """
        request.check_rules(model)
        groups, skipped = prunable(model, structure, request)
        if not groups:
            raise ValueError(_nothing_to_prune(skipped))
        tensors = named_tensors(model)
        widths = {} if original is None else original.widths
        sizes = {group.name: group.size for group in structure.groups}
        settled = sum(sizes.get(name, 1) for name in widths.keys() - {group.name for group in groups})
        meter = CostModel(tensors, groups, structure.macs, settled, structure.product_macs)
        # A group that is new under its name may be wider than the one that had it.
        ladders = [AllowedSizes.of(group, request, max(widths.get(group.name, 0), group.size)) for group in groups]
        ratios = _ratios(RuleMatcher(model), groups, request)
        return cls(request, tensors, groups, skipped, ratios, ladders, meter, original or meter.totals())

    def sizes(self) -> dict[str, int]:
        """The classes that stay in each group, as the request's ratio, rules and limits have it."""
        if self.ratios:
            return {ladder.group: ladder.nearest(self._wanted(ladder)) for ladder in self.allowed}
        ratio = self.request.target
        return solve(self._steps(), self.allowed, self.cost_model, ratio, self.request.unit, self.original)

    def smallest(self) -> dict[str, int]:
        """The least classes that each group may have."""
        return {ladder.group: ladder.smallest for ladder in self.allowed}

    def gone(self, sizes: Mapping[str, float]) -> float:
        """The fraction of the original model that is gone with these sizes, which may be fractional."""
        return self.cost_model.gone(sizes, self.original, self.request.unit)

    def requested(self) -> float:
        """The fraction that is asked for: of rules, what they come to with fractions of channels."""
        if not self.ratios:
            return self.request.target
        return self.gone({ladder.group: self._wanted(ladder) for ladder in self.allowed})

    def shortfall(self, ladder: AllowedSizes) -> float:
        """By how many classes a group cannot become as small as its rule says."""
        return ladder.smallest - self._wanted(ladder)

    def _wanted(self, ladder: AllowedSizes) -> float:
        return ladder.original * (1 - self.ratios[ladder.group])

    def _steps(self) -> Tensor:
        if self.request.allocation == "error":
            return error_steps(self.allowed, dict(self._curves()), self.cost_model, self.request.unit)
        if self.request.allocation == "global":
            return ranked_steps(self.allowed, self._scores())
        return uniform_steps(self.allowed)

    def _curves(self) -> Iterator[tuple[str, Tensor]]:
        method = self.request.method if isinstance(self.request.method, Reconstruction) else Reconstruction()
        laws: dict[str, ActivationMoments] = {}
        for group in self.groups:
            try:
                yield group.name, error_curve(group, method, self.tensors, laws)
            except NoCoresetForm:
                continue  # it goes along with the others

    def _scores(self) -> dict[str, Tensor]:
        """Norms over the mean of their group: layers have filters of very different sizes."""
        if isinstance(self.request.method, Magnitude):
            norms = {group.name: producer_norms(group, self.tensors, self.request.method.p) for group in self.groups}
            return {name: norm / norm.mean().clamp_min(1e-12) for name, norm in norms.items()}
        generator = torch.Generator().manual_seed(self.request.seed)
        return {group.name: torch.rand(group.size, generator=generator) for group in self.groups}


def prunable(model: nn.Module, structure: Structure, request: Request) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The groups that may shrink, and the layers that may not, each with the reason."""
    makers = RuleMatcher(model)
    rules = tuple(request.pruning_ratio) if isinstance(request.pruning_ratio, Mapping) else None
    groups, skipped = [], dict(structure.refused)
    for group in structure.groups:
        ignored = next(makers.named(request.ignore, group), None)
        if ignored is not None:
            skipped[group.name] = f"is ignored by {format_rule(ignored[0])}"
        elif request.only and not any(makers.named(request.only, group)):
            skipped[group.name] = "is named by no rule of only"
        elif not request.include_residual and is_residual(group):
            skipped[group.name] = "is coupled with other layers by an addition (include_residual=True prunes it)"
        elif rules is not None and not any(makers.named(rules, group)):
            skipped[group.name] = "is named by no rule of pruning_ratio"
        else:
            groups.append(group)
    return groups, skipped


def is_residual(group: ChannelGroup) -> bool:
    """Whether several layers' channels are added up, as on a residual stream."""
    several = len({member.name for member in group.by_role("producer")}) > 1
    return several and any(step.op == StepKind.SUM for path in group.paths for step in path.steps)


def _ratios(makers: RuleMatcher, groups: Sequence[ChannelGroup], request: Request) -> dict[str, float]:
    """The ratio of each group where rules say it.

    Raises:
        ValueError: If two rules with different ratios name one group.
    """
    rules = request.pruning_ratio
    if not isinstance(rules, Mapping):
        return {}
    ratios: dict[str, float] = {}
    for group in groups:
        (first, through), *others = makers.named(tuple(rules), group)
        for rule, name in others:
            if rules[rule] != rules[first]:
                raise ValueError(_fight(group, {first: through, rule: name}, rules))
        ratios[group.name] = rules[first]
    return ratios


def _fight(group: ChannelGroup, through: Mapping[Rule, str], ratios: Mapping[Rule, float]) -> str:
    named = " and ".join(
        f"{format_rule(rule)} says {ratios[rule]:g} (through {name})" for rule, name in through.items()
    )
    return (
        f"Expected one pruning ratio for the channels of {group.name!r}, which go together, but {named}. "
        "Give both rules the same ratio, or narrow one of them."
    )


def _nothing_to_prune(skipped: Mapping[str, str]) -> str:
    reasons = "\n".join(f"  {name}: {reason}" for name, reason in list(skipped.items())[:20])
    more = f"\n  ... and {len(skipped) - 20} more" if len(skipped) > 20 else ""
    return f"Expected a model with channels that can be pruned, but no layer has any:\n{reasons}{more}"
