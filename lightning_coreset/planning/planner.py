"""Make a plan: groups, mathematics and a target come together; the model is only read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_coreset.methods import Reconstruction, chooses_sizes
from lightning_coreset.plan import GroupPlan, ParameterChange, PruningPlan
from lightning_coreset.planning.certificates import Certifier, GroupCertificate
from lightning_coreset.planning.cost_model import ModelCost, reached
from lightning_coreset.planning.feasibility import check_survey
from lightning_coreset.planning.input_norms import InputNorms
from lightning_coreset.planning.problem import PruningProblem
from lightning_coreset.planning.request import Request
from lightning_coreset.planning.select import Selector
from lightning_coreset.planning.selection import Selection
from lightning_coreset.planning.working_weights import WorkingWeights
from lightning_coreset.structure import ChannelGroup, Structure
from lightning_coreset.surgery import scale_counts, slice_members


def measure(model: nn.Module, structure: Structure, request: Request) -> ModelCost:
    """What a model comes to, for plans that count against it later.

    Raises:
        ValueError: If nothing in it can be pruned.
    """
    return PruningProblem.of(model, structure, request).original


def final_sizes(model: nn.Module, structure: Structure, request: Request) -> dict[str, int]:
    """Classes that are left in each group when all that is asked of this model is gone, in network order."""
    return PruningProblem.of(model, structure, request).sizes()


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
    strict: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> PruningPlan:
    """Plan one pruning event, bottom to top, each group from the weights that the earlier ones left.

    Args:
        model: The network, only read.
        structure: What ``analyse`` found in it as it is now.
        request: What is asked.
        original: Totals of the model before any pruning; those of ``model`` by default.
        sizes: Classes to keep by group name, instead of what the request comes to; groups without a size stay whole.
        inputs: What ``measure_input_norms`` measured: every group gets a certificate, and the plan is the same
            otherwise.
        strict: Whether to refuse what :func:`check_reachable` does. An event in the middle of a schedule does what can
            still be done.
        progress: Called at every group with its name, its number from 1, and how many there are.

    Raises:
        ValueError: If a rule matches nothing, two rules fight over a group, nothing can be pruned, or (``strict``) more
            is asked than can go.
    """
    survey = PruningProblem.of(model, structure, request, original)
    if strict and sizes is None:
        check_survey(model, structure, survey)
    if sizes is None:
        sizes = dict.fromkeys(survey.smallest(), 1) if chooses_sizes(request.method) else survey.sizes()
    certifier = None if inputs is None else Certifier(inputs, request.input_radius, request.seed)
    choices, changes = _choose(survey, sizes, certifier, progress)
    kept = [(choice.group, choice.selection.kept.tolist()) for choice in choices]
    before = survey.cost_model.totals()
    after = survey.cost_model.after(changes, {group.name: len(classes) for group, classes in kept})
    return PruningPlan(
        groups=_reports(survey, choices, before, after),
        changes=changes,
        skipped=survey.skipped,
        requested=survey.requested(),
        reached=reached(after, survey.original, request.unit),
        unit=request.unit,
        params_original=survey.original.params,
        params_before=before.params,
        params_after=after.params,
        macs_before=before.macs,
        macs_after=after.macs,
        attributes=scale_counts(model, kept),
    )


@dataclass(frozen=True, eq=False)
class _Choice:
    """What was chosen for a group, and what is proven about it."""

    group: ChannelGroup
    selection: Selection
    certificate: GroupCertificate | None

    def report(self, params: int, macs: int) -> GroupPlan:
        group, selection = self.group, self.selection
        return GroupPlan(
            group.name,
            group.size,
            len(selection.kept),
            tuple(selection.kept.tolist()),
            selection.method,
            selection.expected_error,
            **({} if self.certificate is None else vars(self.certificate)),
            params_removed=params,
            macs_removed=macs,
        )


def _reports(
    survey: PruningProblem, choices: Sequence[_Choice], before: ModelCost, after: ModelCost
) -> tuple[GroupPlan, ...]:
    """Every group with what goes by its cut, the cuts below it being made: together exactly what goes in all."""
    cut = [choice.group.name for choice in choices if len(choice.selection.kept) < choice.group.size]
    sizes, params, macs = dict(before.widths), float(before.params), float(before.macs)
    reports = []
    for choice in choices:
        name, left = choice.group.name, (round(params), round(macs))
        if name in cut:
            size = len(choice.selection.kept)
            params -= survey.cost_model.saved(name, size, sizes, "params")
            macs -= survey.cost_model.saved(name, size, sizes, "macs")
            sizes[name] = size
            if name == cut[-1]:  # the meter goes by averages where classes differ; the last one makes up for it
                params, macs = float(after.params), float(after.macs)
        reports.append(choice.report(left[0] - round(params), left[1] - round(macs)))
    return tuple(reports)


def _choose(
    survey: PruningProblem,
    sizes: Mapping[str, int],
    certifier: Certifier | None,
    progress: Callable[[str, int, int], None] | None,
) -> tuple[list[_Choice], tuple[ParameterChange, ...]]:
    """Select bottom to top on working copies, in which removed columns are gone and kept ones reweighted."""
    request = survey.request
    selector = Selector(request.method, torch.Generator().manual_seed(request.seed))
    # The laws of inputs, which reconstruction carries along, tell of every channel that a layer had.
    working = WorkingWeights(survey.tensors, survey.groups, cut=not isinstance(request.method, Reconstruction))
    choices = []
    for position, group in enumerate(survey.groups, start=1):
        if progress is not None:
            progress(group.name, position, len(survey.groups))
        try:
            selection = selector.select(group, sizes.get(group.name, group.size), working)
        except (ValueError, RuntimeError):  # of which a matrix that cannot be factorised is one
            _check_finite(group, working)
            raise
        certificate = None if certifier is None else certifier.certificate(group, selection, working)
        choices.append(_Choice(group, selection, certificate))
        working.put(group, selection)
    if selector.clipped:
        warnings.warn(
            f"The bound is vacuous for {', '.join(selector.clipped)}: the theorem asks for at least as many draws as "
            "there are channels, so all of them stay. Ask for a larger epsilon.",
            stacklevel=5,  # to whoever called `prune`
        )
    return choices, _changes(survey.tensors, working, choices)


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
    shapes = {name: tuple(tensors[name].shape) for name in working.reweighted}
    by_name = {name: ParameterChange(name, shape, shape, {}) for name, shape in shapes.items()}
    slices = slice_members(tensors, [(choice.group, choice.selection.kept) for choice in choices])
    by_name |= {change.name: change for change in slices}
    return tuple(map(working.completed, by_name.values()))
