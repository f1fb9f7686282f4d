"""Make a plan: groups, mathematics and a target come together; the model is only read."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import get_args

import torch
from torch import Tensor, nn

from lightning_coreset.methods import Method, Reconstruction, chooses_sizes
from lightning_coreset.plan import GroupPlan, ParameterChange, PruningPlan
from lightning_coreset.planning.certificates import Certifier, GroupCertificate
from lightning_coreset.planning.radii import LayerInputs
from lightning_coreset.planning.select import Selector
from lightning_coreset.planning.selection import Selection, scale_consumers
from lightning_coreset.planning.sizes import Meter, Totals, Unit, reached, uniform_sizes
from lightning_coreset.structure import ChannelGroup, Structure
from lightning_coreset.surgery import named_tensors, scale_counts, slice_members, take


@dataclass(frozen=True)
class Request:
    """What is asked of a plan.

    Attributes:
        pruning_ratio: The fraction of the original model that shall be gone, in [0, 1).
        unit: What the fraction counts: parameters, multiply-accumulates or removable channels.
        method: How channels are chosen.
        ignore: Shell patterns of module names whose output channels all stay.
        include_residual: Whether channels coupled by residual additions may go.
        seed: Seed of the random choices.
        input_radius: Bound on the norm of the network's own input as its first layer sees it, for certificates.

    Raises:
        ValueError: If the unit is unknown, ``ignore`` is a string, or the radius is not a positive number.
    """

    pruning_ratio: float
    unit: Unit = "params"
    method: Method = field(default_factory=Reconstruction)
    ignore: Sequence[str] = ()
    include_residual: bool = False
    seed: int = 0
    input_radius: float | None = None

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise ValueError(f"Expected unit to be 'params', 'macs' or 'channels' but got {self.unit!r}.")
        if isinstance(self.ignore, str):  # its letters would be taken for patterns
            raise ValueError(f"Expected ignore to be a sequence of patterns but got the string {self.ignore!r}.")
        object.__setattr__(self, "ignore", tuple(self.ignore))
        radius = self.input_radius
        if radius is not None and not (isinstance(radius, (int, float)) and math.isfinite(radius) and radius > 0):
            raise ValueError(f"Expected input_radius to be a positive number but got {radius!r}.")


def check_ratio(ratio: float, name: str = "pruning_ratio") -> None:
    """Raise ``ValueError`` unless a ratio is a number in [0, 1)."""
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio < 1:
        raise ValueError(
            f"Expected {name} to be a number in [0, 1), the fraction of the original model that goes, "
            f"but got {ratio!r}."
        )


def check_ignore(model: nn.Module, ignore: Sequence[str]) -> None:
    """Raise ``ValueError`` if a pattern matches no module."""
    names = [name for name, _ in model.named_modules() if name]
    for pattern in ignore:
        if not any(fnmatchcase(name, pattern) for name in names):
            close = get_close_matches(re.sub(r"[*?\[\]]", "", pattern), names, n=3, cutoff=0.3) or names[:3]
            raise ValueError(
                f"Expected every ignore pattern to match a module name but {pattern!r} matches none. "
                f"Module names look like {close}; model.named_modules() lists them all."
            )


def prunable(structure: Structure, request: Request) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The groups that may shrink, and the layers that may not, each with the reason."""
    groups, skipped = [], dict(structure.refused)
    for group in structure.groups:
        pattern = next((pattern for pattern in request.ignore if _made_by(group, pattern)), None)
        if pattern is not None:
            skipped[group.name] = f"is ignored by {pattern!r}"
        elif not request.include_residual and is_residual(group):
            skipped[group.name] = "is coupled with other layers by an addition (include_residual=True prunes it)"
        else:
            groups.append(group)
    return groups, skipped


def is_residual(group: ChannelGroup) -> bool:
    """Whether several layers' channels are added up, as on a residual stream."""
    several = len({member.name for member in group.by_role("producer")}) > 1
    return several and any(step.op == "sum" for path in group.paths for step in path.steps)


def _made_by(group: ChannelGroup, pattern: str) -> bool:
    makers = {member.name.rpartition(".")[0] for member in group.by_role("producer")}
    return any(fnmatchcase(name, pattern) for name in makers | {group.name})


@dataclass(frozen=True, eq=False)
class _Survey:
    """A model with what may shrink in it."""

    tensors: Mapping[str, Tensor]
    groups: Sequence[ChannelGroup]
    skipped: Mapping[str, str]
    meter: Meter


def _survey(model: nn.Module, structure: Structure, request: Request) -> _Survey:
    check_ratio(request.pruning_ratio)
    check_ignore(model, request.ignore)
    groups, skipped = prunable(structure, request)
    if not groups:
        raise ValueError(_nothing_to_prune(skipped))
    tensors = named_tensors(model)
    return _Survey(tensors, groups, skipped, Meter(tensors, groups, structure.macs))


def measure(model: nn.Module, structure: Structure, request: Request) -> Totals:
    """What a model comes to, for plans that count against it later.

    Raises:
        ValueError: If nothing in it can be pruned.
    """
    return _survey(model, structure, request).meter.totals()


def final_sizes(model: nn.Module, structure: Structure, request: Request) -> dict[str, int]:
    """Classes that are left in each group when ``request.pruning_ratio`` of this model is gone, in network order."""
    survey = _survey(model, structure, request)
    original = survey.meter.totals()
    return uniform_sizes(survey.groups, survey.meter, request.pruning_ratio, request.unit, original)


def bottom_up_sizes(final: Mapping[str, int], fraction: float) -> dict[str, int]:
    """The final sizes of the first groups in network order, at least of one; the others keep theirs."""
    count = max(1, round(fraction * len(final)))
    return dict(list(final.items())[:count])


def make_plan(
    model: nn.Module,
    structure: Structure,
    request: Request,
    *,
    original: Totals | None = None,
    sizes: Mapping[str, int] | None = None,
    inputs: LayerInputs | None = None,
) -> PruningPlan:
    """Plan one pruning event, bottom to top, each group from the weights that the earlier ones left.

    Args:
        model: The network, only read.
        structure: What ``analyse`` found in it as it is now.
        request: What is asked.
        original: Totals of the model before any pruning; those of ``model`` by default.
        sizes: Classes to keep by group name, instead of the solution for ``request.pruning_ratio``; groups without a
            size stay whole.
        inputs: What ``layer_inputs`` measured: every group gets a certificate, and the plan is the same otherwise.

    Raises:
        ValueError: If the ratio is outside [0, 1), a pattern matches nothing, or nothing can be pruned.
    """
    survey = _survey(model, structure, request)
    tensors, groups, meter = survey.tensors, survey.groups, survey.meter
    before = meter.totals()
    original = original or before
    if sizes is None and chooses_sizes(request.method):
        sizes = dict.fromkeys((group.name for group in groups), 1)
    elif sizes is None:
        sizes = uniform_sizes(groups, meter, request.pruning_ratio, request.unit, original)
    certifier = None if inputs is None else Certifier(inputs, request.input_radius, request.seed)
    choices, changes = _choose(groups, sizes, request, tensors, certifier)
    chosen = [(choice.group, choice.selection) for choice in choices]
    after = meter.after(changes, sum(len(selection.kept) for _, selection in chosen))
    return PruningPlan(
        groups=tuple(choice.report() for choice in choices),
        changes=changes,
        skipped=survey.skipped,
        requested=request.pruning_ratio,
        reached=reached(after, original, request.unit),
        unit=request.unit,
        params_original=original.params,
        params_before=before.params,
        params_after=after.params,
        macs_before=before.macs,
        macs_after=after.macs,
        attributes=scale_counts(model, [(group, selection.kept.tolist()) for group, selection in chosen]),
    )


def _nothing_to_prune(skipped: Mapping[str, str]) -> str:
    reasons = "\n".join(f"  {name}: {reason}" for name, reason in list(skipped.items())[:20])
    more = f"\n  ... and {len(skipped) - 20} more" if len(skipped) > 20 else ""
    return f"Expected a model with channels that can be pruned, but no layer has any:\n{reasons}{more}"


@dataclass(frozen=True, eq=False)
class _Choice:
    """What was chosen for a group, and what is proven about it."""

    group: ChannelGroup
    selection: Selection
    certificate: GroupCertificate | None

    def report(self) -> GroupPlan:
        group, selection = self.group, self.selection
        return GroupPlan(
            group.name,
            group.size,
            len(selection.kept),
            tuple(selection.kept.tolist()),
            selection.method,
            selection.expected_error,
            **({} if self.certificate is None else vars(self.certificate)),
        )


def _choose(
    groups: Sequence[ChannelGroup],
    sizes: Mapping[str, int],
    request: Request,
    tensors: Mapping[str, Tensor],
    certifier: Certifier | None,
) -> tuple[list[_Choice], tuple[ParameterChange, ...]]:
    """Select bottom to top on working copies, in which removed columns are zero and kept ones reweighted."""
    selector = Selector(request.method, torch.Generator().manual_seed(request.seed))
    working = dict(tensors)
    reweighted: set[str] = set()
    choices = []
    for group in groups:
        selection = selector.select(group, sizes.get(group.name, group.size), working)
        certificate = None if certifier is None else certifier.certificate(group, selection, working)
        choices.append(_Choice(group, selection, certificate))
        reweighted |= selection.updates.keys()
        working |= selection.updates
        if not selection.updates and len(selection.kept) < group.size:  # updates have their zeros already
            factor = torch.zeros(group.size, dtype=torch.float64).index_fill_(0, selection.kept, 1.0)
            working |= scale_consumers(group, factor, working)
    if selector.clipped:
        warnings.warn(
            f"The bound is vacuous for {', '.join(selector.clipped)}: the theorem asks for at least as many draws as "
            "there are channels, so all of them stay. Ask for a larger epsilon.",
            stacklevel=4,
        )
    slices = slice_members(tensors, [(choice.group, choice.selection.kept.tolist()) for choice in choices])
    shapes = {name: tuple(tensors[name].shape) for name in reweighted}
    by_name = {name: ParameterChange(name, shape, shape, {}) for name, shape in shapes.items()}
    by_name |= {change.name: change for change in slices}
    for name in reweighted:
        value = take(working[name], by_name[name].kept).to(tensors[name].dtype)
        by_name[name] = replace(by_name[name], value=value)
    return choices, tuple(by_name.values())
