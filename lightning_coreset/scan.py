"""How much each group of channels matters: prune every group alone, and evaluate the network each time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real

from torch import nn

from lightning_coreset._arguments import check_is_module
from lightning_coreset._deprecated import takes_old_names
from lightning_coreset.methods import MethodLike, as_method
from lightning_coreset.plan import PruningPlan
from lightning_coreset.planning import (
    PruningProblem,
    Request,
    Rule,
    as_rules,
    check_flags,
    check_matches,
    make_plan,
    without_unread,
)
from lightning_coreset.structure import ChannelGroup, Example, ExampleInputs, Heads, Structure, analyse, preserved
from lightning_coreset.surgery import Snapshot, apply_changes
from lightning_coreset.tables import html_lines, html_table, text_table
from lightning_coreset.verification import verified


@dataclass(frozen=True)
class ScanRecord:
    """The value of a network with one group pruned to one size; plain numbers, for a data frame or a CSV file.

    Attributes:
        group: The group's name.
        requested: The fraction of the group's channels that was to be removed.
        reached: The fraction that was removed, in whole channels.
        channels_before: Classes of the group before.
        channels_after: Classes that are left.
        keep_ratio: The fraction of the group's channels that is left, ``1 - reached``.
        params_removed: Parameters of the whole model that were removed.
        macs_removed: Multiply-accumulates of one sample that were removed.
        value: What ``evaluate`` returned for the pruned network.
        baseline: What it returned for the whole network.
    """

    group: str
    requested: float
    reached: float
    channels_before: int
    channels_after: int
    keep_ratio: float
    params_removed: int
    macs_removed: int
    value: float
    baseline: float


class Scan(list[ScanRecord]):
    """A list of records that prints as a table: a line for each group, a column for each ratio."""

    def __str__(self) -> str:
        """The values by group and requested ratio."""
        return f"{text_table(self.rows())}\n{self._baseline()}" if self else "Nothing was scanned."

    def __repr__(self) -> str:
        groups = len({record.group for record in self})
        return f"<Scan: {groups} groups, {len(self)} values; {self._baseline()}>" if self else "<Scan: nothing>"

    def _repr_html_(self) -> str:
        """What notebooks show: the same table."""
        return f"<div>{html_table(self.rows()) if self else ''}{html_lines([self._baseline()])}</div>"

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of the table, with a row of headings."""
        ratios = list(dict.fromkeys(record.requested for record in self))
        groups = dict.fromkeys((record.group, record.channels_before) for record in self)
        values = {(record.group, record.requested): record.value for record in self}
        rows = [("group", "channels", *(f"-{100 * ratio:.3g}%" for ratio in ratios))]
        rows += [
            (name, f"{channels:,}", *(f"{values[name, ratio]:.4g}" for ratio in ratios)) for name, channels in groups
        ]
        return rows

    def _baseline(self) -> str:
        return f"whole network: {self[0].baseline:.4g}" if self else "Nothing was scanned."


@takes_old_names
def sensitivity_scan(
    model: nn.Module,
    example_inputs: ExampleInputs,
    evaluate: Callable[[nn.Module], float],
    *,
    ratios: Sequence[float] = (0.25, 0.5, 0.75, 0.9),
    method: MethodLike = "reconstruction",
    ignore: Sequence[Rule] = (),
    only: Sequence[Rule] = (),
    never_run: Sequence[Rule] = (),
    include_residual: bool = False,
    heads: Heads = "whole",
    seed: int = 0,
    self_check: bool = True,
    change_attributes: bool = True,
    check: bool | None = None,
) -> Scan:
    """Prune every group of channels alone, to several sizes, and evaluate the network each time.

    It shows which layers can be pruned hard: groups whose value hardly falls can have a higher ratio in
    ``prune(..., pruning_ratio={...})``, groups whose value falls immediately belong in ``ignore``.

    The network is evaluated once as it is and once for each group and size; with ten groups and the default ratios
    ``evaluate`` is called 41 times. Every call starts from the same random state.

    Args:
        model: Any network. After every evaluation, also if one raises, it is as before: the same parameters and
            buffers, their contents, gradients and ``requires_grad``, training flags, sizes that modules store, and the
            random states. So ``evaluate`` may switch modes, recompute BatchNorm statistics, move the network or train
            it. It may not replace parameters or modules. This takes the memory of one copy of the model.
        example_inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments for ``model``, on its
            device; a small batch is enough. It is used once, to read the structure.
        evaluate: Takes the pruned network and returns a number, such as the accuracy on validation data.
        ratios: The fractions of a group's channels that are removed, in (0, 1). At least one channel is left.
        method: How channels are chosen, as for :func:`lightning_coreset.prune`. ``Sensitivity(epsilon=...)``, which
            chooses sizes itself, is refused.
        ignore: Rules for layers that are not scanned, as for :func:`lightning_coreset.prune`.
        only: Rules for the only layers that are scanned.
        never_run: Rules for modules that nothing ever runs, as for :func:`lightning_coreset.prune`.
        include_residual: Whether channels that are coupled by residual additions or normalised by LayerNorm, RMSNorm
            and the like are scanned as well.
        heads: Whether whole attention heads are scanned, or dimensions ``"within"`` them.
        seed: Seed of the random choices of channels, the same for every group.
        self_check: Whether to test on a copy first that channels of every group can be removed; groups that fail are
            not scanned, with a warning.
        change_attributes: Whether numbers that modules remember are changed with groups that fail otherwise, as for
            :func:`lightning_coreset.prune`.
        check: Old name of ``self_check``.

    Returns:
        A list of :class:`ScanRecord`, by group in network order, then by ratio as given. ``print`` shows a table;
        ``[asdict(record) for record in scan]`` is input for a data frame.

    Raises:
        ValueError: If an argument is of another type or out of its range, a rule matches no module, there is nothing to
            prune, or ``evaluate`` does not return a number. The model is unchanged then.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_coreset import sensitivity_scan
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2))
        >>> def parameters(network):  # usually the accuracy on validation data
        ...     return sum(parameter.numel() for parameter in network.parameters())
        >>> print(sensitivity_scan(model, torch.randn(1, 8), parameters, ratios=(0.25, 0.5)))
        group  channels  -25%  -50%
        ---------------------------
        0            16   290   206
        2            12   317   260
        whole network: 374
    """
    check_is_module(model)
    if not callable(evaluate):
        raise ValueError(f"Expected evaluate to be a function of the network but got {type(evaluate).__name__}.")
    ratios = _checked_ratios(ratios)
    chosen = as_method(method)
    if chosen.chooses_sizes:
        raise ValueError("Expected a method that prunes to a given size but got Sensitivity(epsilon=...).")
    request = Request(max(ratios), "params", chosen, ignore, include_residual, seed, only=only, heads=heads)
    check_flags(self_check=self_check, change_attributes=change_attributes)
    request.check_trial(self_check)
    structure, problem = _structure_and_problem(
        model, example_inputs, request, as_rules(never_run, "never_run"), self_check, change_attributes
    )
    evaluation = _Evaluation(model, evaluate, Snapshot(model, copy=True))
    baseline = evaluation.value()
    scan = Scan()
    for group, allowed in zip(problem.groups, problem.allowed, strict=True):
        results: dict[int, tuple[PruningPlan, float]] = {}  # by size: two ratios of a small group may be one
        for ratio in ratios:
            size = allowed.nearest(group.size * (1 - ratio))
            if size not in results:
                plan = make_plan(model, _up_to(structure, group), request, sizes={group.name: size})
                results[size] = plan, evaluation.value(plan)
            scan.append(_record(group, ratio, *results[size], baseline))
    return scan


def _checked_ratios(ratios: Sequence[float]) -> tuple[float, ...]:
    if not isinstance(ratios, Sequence) or isinstance(ratios, str) or not ratios:
        raise ValueError(f"Expected ratios to be a sequence of numbers in (0, 1), such as (0.5,), but got {ratios!r}.")
    for ratio in ratios:
        if not isinstance(ratio, Real) or isinstance(ratio, bool) or not 0 < ratio < 1:
            raise ValueError(
                f"Expected every ratio to be a number in (0, 1), the fraction of a group's channels that goes, but got "
                f"{ratio!r}."
            )
    return tuple(map(float, ratios))


def _structure_and_problem(
    model: nn.Module,
    example_inputs: ExampleInputs,
    request: Request,
    never_run: Sequence[Rule],
    self_check: bool,
    change_attributes: bool,
) -> tuple[Structure, PruningProblem]:
    """The structure, and the groups in it that are to be scanned."""
    example = Example.of(example_inputs)
    request.check_rules(model)  # before the model is run
    check_matches(model, never_run, "never_run", second_names=True)
    structure = analyse(model, example, heads=request.heads)
    if self_check:
        structure = verified(model, structure, example, change_attributes=change_attributes, heads=request.heads)
    structure = without_unread(model, structure, request, never_run)
    return structure, PruningProblem.of(model, structure, request)


def _up_to(structure: Structure, group: ChannelGroup) -> Structure:
    """What a plan for this group depends on: earlier layers give the moments of its inputs."""
    # By name: which parts of heads make up a class depends on the request.
    last = [one.name for one in structure.groups].index(group.name)
    return replace(structure, groups=structure.groups[: last + 1])


@dataclass(frozen=True)
class _Evaluation:
    """Evaluates a model as it is or pruned, and restores it."""

    model: nn.Module
    evaluate: Callable[[nn.Module], float]
    before: Snapshot

    def value(self, plan: PruningPlan | None = None) -> float:
        """What ``evaluate`` returns for the model after a plan, if any."""
        with preserved(self.model):
            try:
                if plan is not None:
                    apply_changes(self.model, plan.changes, plan.attributes)
                value = self.evaluate(self.model)
            finally:
                self.before.restore()
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):  # the last for a tensor of several numbers
            raise ValueError(
                f"Expected evaluate to return a number, such as an accuracy, but got {type(value).__name__}."
            ) from None


def _record(group: ChannelGroup, requested: float, plan: PruningPlan, value: float, baseline: float) -> ScanRecord:
    (after,) = (one.channels_after for one in plan.groups if one.name == group.name)
    keep_ratio = after / group.size
    return ScanRecord(
        group=group.name,
        requested=requested,
        reached=1 - keep_ratio,
        channels_before=group.size,
        channels_after=after,
        keep_ratio=keep_ratio,
        params_removed=plan.params_before - plan.params_after,
        macs_removed=plan.macs_before - plan.macs_after,
        value=value,
        baseline=baseline,
    )
