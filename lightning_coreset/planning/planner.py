"""Make a plan from groups, a method and a target; the model is only read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_coreset._calls import level_of_caller
from lightning_coreset.layers import GroupView, PlanState
from lightning_coreset.methods import Method, Selection
from lightning_coreset.moments import MeasuringRuns
from lightning_coreset.plan import GroupPlan, ParameterChange, PruningPlan
from lightning_coreset.planning.certificates import Certifier, GroupCertificate
from lightning_coreset.planning.copies import changes_of_copies
from lightning_coreset.planning.cost_model import ModelCost, reached
from lightning_coreset.planning.feasibility import check_feasible
from lightning_coreset.planning.input_norms import InputNorms
from lightning_coreset.planning.problem import PruningProblem
from lightning_coreset.planning.request import Request
from lightning_coreset.planning.working_weights import WorkingWeights
from lightning_coreset.structure import ChannelGroup, Structure, WeightNorm, warn_of_uncounted
from lightning_coreset.surgery import as_direction, follow_norms, scale_counts, slice_members, weight_norms_of


def measure(model: nn.Module, structure: Structure, request: Request) -> ModelCost:
    """Parameters, MACs and channels of a model, for plans that count against it later.

    Raises:
        ValueError: If nothing in it can be pruned.
    """
    return PruningProblem.of(model, structure, request).original


def final_sizes(
    model: nn.Module, structure: Structure, request: Request, original: ModelCost | None = None
) -> dict[str, int]:
    """Classes that are left in each group once the request's ratio is reached, in network order."""
    return PruningProblem.of(model, structure, request, original).sizes()


def bottom_up_sizes(final: Mapping[str, int], fraction: float) -> dict[str, int]:
    """The final sizes of the first groups in network order, at least of one; the others keep theirs."""
    count = max(1, round(fraction * len(final)))
    return dict(list(final.items())[:count])


def make_plan(
    model: nn.Module,
    structure: Structure,
    request: Request,
    *,
    original: ModelCost | None = None,
    sizes: Mapping[str, int] | None = None,
    inputs: InputNorms | None = None,
    runs: MeasuringRuns | None = None,
    strict: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> PruningPlan:
    """Plan one pruning event, bottom to top, each group from the weights that the earlier ones left.

    Args:
        model: The network, only read.
        structure: What ``analyse`` found in it as it is now.
        request: What is asked.
        original: Totals of the model before any pruning; those of ``model`` by default.
        sizes: Classes to keep by group name, instead of those that follow from the request; groups without one stay
            whole.
        inputs: What ``measure_input_norms`` measured: every group gets a certificate, and the plan is the same
            otherwise.
        runs: The network with inputs to measure it on, for methods that do.
        strict: Whether to refuse what :func:`check_reachable` refuses. An event in the middle of a schedule goes as far
            as it can.
        progress: Called at every group with its name, its number from 1, and how many there are.

    Raises:
        ValueError: If a rule matches nothing, two rules give a group different ratios, nothing can be pruned, the
            method returns something that does not fit a group, or (``strict``) the ratio cannot be reached.
    """
    if request.unit == "macs":
        warn_of_uncounted(structure.uncounted)
    problem = PruningProblem.of(model, structure, request, original)
    if strict and sizes is None:
        check_feasible(model, structure, problem)
    if sizes is None:
        sizes = dict.fromkeys(problem.smallest(), 1) if request.method.chooses_sizes else problem.sizes()
    certifier = None if inputs is None else Certifier(inputs, request.input_radius, request.seed)
    choices, changes = _choose(problem, sizes, certifier, runs, progress)
    changes = (*changes, *changes_of_copies(changes, structure.untrained.copies, problem.tensors))
    kept = [(choice.group, choice.selection.kept.tolist()) for choice in choices]
    before = problem.cost_model.totals()
    after = problem.cost_model.after(changes, {group.name: len(classes) for group, classes in kept})
    return PruningPlan(
        groups=_reports(problem, choices, before, after),
        changes=changes,
        skipped=problem.skipped,
        requested=problem.requested(),
        reached=reached(after, problem.original, request.unit),
        unit=request.unit,
        params_original=problem.original.params,
        params_before=before.params,
        params_after=after.params,
        macs_before=before.macs,
        macs_after=after.macs,
        attributes=scale_counts(model, kept),
        latency_original=problem.original.latency,
        latency_before=before.latency,
        latency_after=after.latency,
    )


@dataclass(frozen=True, eq=False)
class _Choice:
    """What was chosen for a group, and what is proven about it."""

    group: ChannelGroup
    selection: Selection
    certificate: GroupCertificate | None

    def report(self, params: int, macs: int, latency: float | None) -> GroupPlan:
        group, selection = self.group, self.selection
        return GroupPlan(
            group.name,
            group.size,
            len(selection.kept),
            tuple(selection.kept.tolist()),
            f"{selection.method}{_how(group)}",
            selection.expected_error,
            **({} if self.certificate is None else vars(self.certificate)),
            params_removed=params,
            macs_removed=macs,
            latency_removed=latency,
        )


def _how(group: ChannelGroup) -> str:
    """What a plan says beside the method of groups whose classes are put together of parts."""
    if group.pairing is None:
        return ""
    if group.pairing.heads:
        return ", within heads"
    others = [name for name in group.pairing.merged if name != group.name]
    return f", as many as of {', '.join(others)}" if others else ", each of its layers its own"


def _reports(
    problem: PruningProblem, choices: Sequence[_Choice], before: ModelCost, after: ModelCost
) -> tuple[GroupPlan, ...]:
    """Every group with what its cut removes once the cuts below it are made; they add up to exactly what is removed."""
    cut = [choice.group.name for choice in choices if len(choice.selection.kept) < choice.group.size]
    sizes, params, macs = dict(before.widths), float(before.params), float(before.macs)
    seconds = before.latency
    reports = []
    for choice in choices:
        name, left, seconds_left = choice.group.name, (round(params), round(macs)), seconds
        if name in cut:
            size = len(choice.selection.kept)
            params -= problem.cost_model.saved(name, size, sizes, "params")
            macs -= problem.cost_model.saved(name, size, sizes, "macs")
            if seconds is not None:
                seconds -= problem.cost_model.saved(name, size, sizes, "latency")
            sizes[name] = size
            # Where classes differ the cost model uses averages: the last group takes the difference.
            if name == cut[-1]:
                params, macs, seconds = float(after.params), float(after.macs), after.latency
        gone = None if seconds_left is None or seconds is None else seconds_left - seconds
        reports.append(choice.report(left[0] - round(params), left[1] - round(macs), gone))
    return tuple(reports)


def _choose(
    problem: PruningProblem,
    sizes: Mapping[str, int],
    certifier: Certifier | None,
    runs: MeasuringRuns | None,
    progress: Callable[[str, int, int], None] | None,
) -> tuple[list[_Choice], tuple[ParameterChange, ...]]:
    """Select bottom to top on working copies, in which removed columns are gone and kept ones reweighted."""
    method, count = problem.request.method, len(problem.groups)
    working = WorkingWeights(problem.weights, problem.groups, cut=runs is None)
    state = PlanState(torch.Generator().manual_seed(problem.request.seed), runs=runs)
    wanted = {group.name: sizes.get(group.name, group.size) for group in problem.groups}
    method.prepare([GroupView(group, problem.weights, state) for group in problem.groups], wanted)
    choices = []
    last = {member.name: group.name for group in problem.groups for member in group.members}
    final: dict[str, list[str]] = {group.name: [] for group in problem.groups}  # of whose members none comes later
    for name, owner in last.items():
        final[owner].append(name)
    for position, group in enumerate(problem.groups, start=1):
        if progress is not None:
            progress(group.name, position, count)
        view = GroupView(group, working, state)
        selection = _select(method, view, sizes.get(group.name, group.size), problem.weights)
        certificate = None if certifier is None else certifier.certificate(view, selection)
        working.apply(group, selection)
        working.settle(final[group.name])
        # The new weights are in the working ones: twice they would be as much again as the network.
        choices.append(_Choice(group, replace(selection, updates={}), certificate))
    for message in method.warnings({choice.group.name: choice.selection for choice in choices}):
        warnings.warn(message, stacklevel=level_of_caller())
    return choices, _changes(problem.tensors, working, choices)


def _select(method: Method, view: GroupView, size: int, originals: Mapping[str, Tensor]) -> Selection:
    """Ask the method, and check its answer: it may be anybody's."""
    try:
        selection = method.select(view, size)
    except (ValueError, RuntimeError):  # of which a matrix that cannot be factorised is one
        _check_finite(view.group, view.tensors)
        raise
    wrong = _misfit(view.group, selection, originals if method.reads_full_width else {})
    if wrong is not None:
        _check_finite(view.group, view.tensors)  # weights that have diverged are the commoner cause
        raise ValueError(f"Expected {method.label} to return {wrong[0]} for group {view.name!r} but got {wrong[1]}.")
    return selection if selection.method else replace(selection, method=method.label)


def _misfit(group: ChannelGroup, selection: Selection, rewritable: Mapping[str, Tensor]) -> tuple[str, object] | None:
    """What a selection should be to fit its group, and what it is instead; ``None`` if it fits."""
    if not isinstance(selection, Selection):
        return "a Selection", repr(selection)
    kept, weights = selection.kept, selection.weights
    if not isinstance(kept, Tensor):
        return "a tensor of kept channels", repr(kept)
    if kept.dtype != torch.int64 or kept.dim() != 1 or not 0 < len(kept) <= group.size:
        return f"1 to {group.size} kept channels as int64", f"{tuple(kept.shape)} of {kept.dtype}"
    if not bool((kept.diff() > 0).all()) or int(kept[0]) < 0 or int(kept[-1]) >= group.size:
        return f"ascending channels below {group.size}", kept.tolist()
    if weights is not None and (not isinstance(weights, Tensor) or weights.shape != kept.shape):
        found = tuple(weights.shape) if isinstance(weights, Tensor) else repr(weights)
        return f"a weight for each of {len(kept)} kept channels", found
    if weights is not None and not bool(weights.isfinite().all()):
        return "finite weights", "NaN or infinity"
    if selection.updates and not rewritable:
        return "no updates, since its reads_full_width is False,", f"some of {sorted(selection.updates)}"
    for name, value in selection.updates.items():
        if name not in rewritable or value.shape != rewritable[name].shape:
            shape = tuple(rewritable[name].shape) if name in rewritable else None
            return f"a new {name!r} of its present shape {shape}", tuple(value.shape)
        if not bool(value.isfinite().all()):
            return f"a finite new {name!r}", "NaN or infinity"
    return None


def _check_finite(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> None:
    for member in group.members:
        if not bool(tensors[member.name].isfinite().all()):
            raise ValueError(
                f"Expected finite weights but {member.name!r} holds NaN or infinity, so that no channels of "
                f"{group.name!r} can be chosen. Go back to a checkpoint from before training diverged, or leave these "
                f"channels as they are with ignore=[{group.name!r}]."
            )


def _changes(
    tensors: Mapping[str, Tensor], working: WorkingWeights, choices: Sequence[_Choice]
) -> tuple[ParameterChange, ...]:
    shapes = {name: tuple(tensors[name].shape) for name in working.changed}
    by_name = {name: ParameterChange(name, shape, shape, {}) for name, shape in shapes.items()}
    own = [(replace(choice.group, copies=()), choice.selection.kept) for choice in choices]
    slices = slice_members(tensors, own)
    by_name |= {change.name: change for change in slices}
    norms = weight_norms_of(choice.group for choice in choices)
    changes = (_of_direction(working.completed(change), norms, tensors) for change in by_name.values())
    return follow_norms(changes, norms, tensors)


def _of_direction(
    change: ParameterChange, norms: Mapping[str, WeightNorm], tensors: Mapping[str, Tensor]
) -> ParameterChange:
    """The change of a direction, where a method gave the weight that is made of it new contents."""
    norm = norms.get(change.name)
    if norm is None or change.value is None:
        return change
    return replace(change, value=as_direction(change.value, change.kept, norm, tensors))
