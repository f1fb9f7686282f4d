"""How much each group of channels matters: prune one after the other, alone, and look at what the network is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real

from torch import nn

from lightning_coreset.methods import MethodLike, as_method
from lightning_coreset.plan import PruningPlan, text_table
from lightning_coreset.planning import PruningProblem, Request, Rule, make_plan
from lightning_coreset.structure import ChannelGroup, Example, ExampleInputs, Structure, analyse, preserved
from lightning_coreset.surgery import Snapshot, apply_changes
from lightning_coreset.verification import verified


@dataclass(frozen=True)
class ScanRecord:
    """What a network is worth with one group pruned to one size; plain numbers, as a data frame or CSV file wants them.

    Attributes:
        group: The group's name.
        requested: The fraction of the group's channels that was to go.
        reached: The fraction that went, in whole channels.
        channels_before: Classes of the group before.
        channels_after: Classes that stayed.
        keep_ratio: The fraction of the group's channels that stayed, ``1 - reached``.
        params_removed: Parameters of the whole model that went along.
        macs_removed: Multiply-accumulates of one sample that went along.
        value: What ``evaluate`` said of the network pruned so.
        baseline: What it said of the whole network.
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
    """A list of records whose ``str`` is a table: a line for each group, a column for each ratio."""

    def __str__(self) -> str:
        """The values by group and requested ratio."""
        if not self:
            return "Nothing was scanned."
        ratios = list(dict.fromkeys(record.requested for record in self))
        groups = dict.fromkeys((record.group, record.channels_before) for record in self)
        values = {(record.group, record.requested): record.value for record in self}
        rows = [("group", "channels", *(f"-{100 * ratio:.3g}%" for ratio in ratios))]
        rows += [
            (name, str(channels), *(f"{values[name, ratio]:.4g}" for ratio in ratios)) for name, channels in groups
        ]
        return f"{text_table(rows)}\nwhole network: {self[0].baseline:.4g}"


def sensitivity_scan(
    model: nn.Module,
    example_inputs: ExampleInputs,
    evaluate: Callable[[nn.Module], float],
    *,
    ratios: Sequence[float] = (0.25, 0.5, 0.75, 0.9),
    method: MethodLike = "reconstruction",
    ignore: Sequence[Rule] = (),
    only: Sequence[Rule] = (),
    include_residual: bool = False,
    seed: int = 0,
    check: bool = True,
) -> Scan:
    """Prune every group of channels alone, to several sizes, and evaluate the network each time.

    The answer to "which layers can be pruned hard, and which not": groups whose value hardly falls can take a higher
    ratio in ``prune(..., pruning_ratio={...})``, groups whose value falls at once belong into ``ignore``.

    The network is evaluated once as it is and once for each group and size; so with ten groups and the default ratios
    ``evaluate`` is called 41 times. Every call starts from the same random state.

    Args:
        model: Any network. After every evaluation, and also if one raises, it is as it was: the same parameters and
            buffers, their contents, gradients and ``requires_grad``, training flags, sizes that modules remember, and
            the random states. So ``evaluate`` may switch modes, recompute BatchNorm statistics, move the network or
            train it. It may not exchange parameters or modules for others. Takes the memory of one copy of the model.
        example_inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments for ``model``, on its
            device; a small batch is enough. Only the structure is learnt from it, once.
        evaluate: Takes the pruned network and returns a number, such as the accuracy on validation data.
        ratios: The fractions of a group's channels that go, in (0, 1). At least one channel stays.
        method: How channels are chosen, as for :func:`lightning_coreset.prune`. ``Sensitivity(epsilon=...)``, which
            chooses sizes itself, cannot be scanned.
        ignore: Rules for layers that are left out, as for :func:`lightning_coreset.prune`.
        only: Rules for the only layers that are scanned.
        include_residual: Whether channels coupled by residual additions are scanned as well.
        seed: Seed of the random choices of channels, the same for every group.
        check: Whether to try beforehand on a copy that every group can be removed; those that cannot are left out with
            a warning.

    Returns:
        A list of :class:`ScanRecord`, by group in network order, then by ratio as given. ``print`` shows a table;
        ``[asdict(record) for record in scan]`` is what data frames are made of.

    Raises:
        ValueError: If an argument is of another type or out of its range, a rule matches no module, there is nothing to
            prune, or ``evaluate`` returns no number. The model is unchanged then.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_coreset import sensitivity_scan
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2))
        >>> def parameters(network):  # the accuracy on validation data, as a rule
        ...     return sum(parameter.numel() for parameter in network.parameters())
        >>> print(sensitivity_scan(model, torch.randn(1, 8), parameters, ratios=(0.25, 0.5)))
        group  channels  -25%  -50%
        ---------------------------
        0      16        290   206
        2      12        317   260
        whole network: 374
    """
    if not callable(evaluate):
        raise ValueError(f"Expected evaluate to be a function of the network but got {type(evaluate).__name__}.")
    ratios = _checked_ratios(ratios)
    chosen = as_method(method)
    if chosen.chooses_sizes:
        raise ValueError("Expected a method that prunes to a given size but got Sensitivity(epsilon=...).")
    request = Request(max(ratios), "params", chosen, ignore, include_residual, seed, only=only)
    structure, survey = _found(model, example_inputs, request, check=check)
    trial = _Trial(model, evaluate, Snapshot(model, copy=True))
    baseline = trial.value()
    scan = Scan()
    for group, ladder in zip(survey.groups, survey.allowed, strict=True):
        known: dict[int, tuple[PruningPlan, float]] = {}  # two ratios of a small group may be one size
        for ratio in ratios:
            size = ladder.nearest(group.size * (1 - ratio))
            if size not in known:
                plan = make_plan(model, _up_to(structure, group), request, sizes={group.name: size})
                known[size] = plan, trial.value(plan)
            scan.append(_record(group, ratio, *known[size], baseline))
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


def _found(
    model: nn.Module, example_inputs: ExampleInputs, request: Request, *, check: bool
) -> tuple[Structure, PruningProblem]:
    """The structure, and the groups in it that are to be scanned."""
    example = Example.of(example_inputs)
    request.check_rules(model)  # before the model is run for it
    structure = analyse(model, example)
    if check:
        structure = verified(model, structure, example)
    return structure, PruningProblem.of(model, structure, request)


def _up_to(structure: Structure, group: ChannelGroup) -> Structure:
    """The structure as far as a plan for this group depends on it: the layers before tell the law of its inputs."""
    return replace(structure, groups=structure.groups[: structure.groups.index(group) + 1])


@dataclass(frozen=True)
class _Trial:
    """Evaluates a model as it is or pruned, and goes back."""

    model: nn.Module
    evaluate: Callable[[nn.Module], float]
    before: Snapshot

    def value(self, plan: PruningPlan | None = None) -> float:
        """What the model is worth with a plan carried out."""
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
