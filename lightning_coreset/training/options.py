"""The callback's arguments: checked, those that belong together as one object, and what contradicts each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_coreset._arguments import defaults_of, is_default
from lightning_coreset._calls import OLD_ARGUMENTS, level_of_caller
from lightning_coreset.planning import DEFAULT_RATIO, Request, check_flags
from lightning_coreset.schedule import PruningSchedule, as_schedule
from lightning_coreset.training.accuracy_guard import AccuracyGuard, as_guard
from lightning_coreset.training.metrics import AccuracyMonitor, as_monitor
from lightning_coreset.training.timeline import Timeline

_RANK_ZERO = 3
"""Frames between ``rank_zero_warn`` and the warning; its default counts them as well."""


@dataclass(frozen=True)
class Options:
    """What a callback was asked for.

    Attributes:
        arguments: All arguments by name, flat: those of a :class:`PruningSchedule`, an :class:`AccuracyGuard` and an
            :class:`AccuracyMonitor` as well, whether they were given in one or not. Old names are left out.
        request: What is asked of the last plan.
        schedule: When the events are.
        accuracy: What is measured.
        guard: What an event may cost; ``None`` if it may cost anything.
    """

    arguments: Mapping[str, Any]
    request: Request
    schedule: PruningSchedule
    accuracy: AccuracyMonitor
    guard: AccuracyGuard | None

    @classmethod
    def of(cls, init: Callable[..., None], arguments: Mapping[str, Any]) -> Options:
        """Check the arguments of a callback.

        Args:
            init: Its constructor, for the names and the defaults.
            arguments: What was given by name, and the defaults; names that are not the constructor's are ignored.

        Raises:
            ValueError: If one is out of its range, or two of them contradict each other.
        """
        defaults = defaults_of(init)
        given = {name: arguments[name] for name in defaults if name not in OLD_ARGUMENTS}
        check_flags(**{name: value for name, value in given.items() if isinstance(defaults[name], bool)})
        request = Request.of(given)
        request.check_trial(given["self_check"])
        schedule = as_schedule(given["schedule"], **_flat(PruningSchedule, given))
        _check_ratio_beside_schedule(given["pruning_ratio"], schedule)
        _check_times_beside_schedule(schedule)
        if isinstance(schedule.curve, Mapping):
            request = replace(request, pruning_ratio=Timeline(schedule, 0.0).target, by_default=False)
        _check_certificate_options(certify=given["certify"], input_radius=given["input_radius"])
        _check_example_inputs(given["example_inputs"])
        accuracy = as_monitor(given["accuracy"], **_flat(AccuracyMonitor, given))
        guard = as_guard(given["guard"], **_flat(AccuracyGuard, given))
        _check_drop(guard, accuracy)
        given |= {"pruning_ratio": request.pruning_ratio, "schedule": schedule.curve}
        for part in filter(None, (schedule, accuracy, guard)):
            given |= {name: getattr(part, name) for name in _flat(type(part), given)}
        del given["accuracy"], given["guard"]
        return cls(given, request, schedule, accuracy, guard)


def _flat(kind: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are fields of an object."""
    return {field.name: arguments[field.name] for field in fields(kind) if field.name in arguments}


def _check_ratio_beside_schedule(pruning_ratio: Any, schedule: PruningSchedule) -> None:
    """Say that a schedule with ratios of its own replaces another ratio; refuse rules, which it cannot replace.

    Args:
        pruning_ratio: What a user gave, or ``None``; the default says nothing.
        schedule: When.

    Raises:
        ValueError: If both are mappings.
    """
    if not isinstance(schedule.curve, Mapping):
        return
    if isinstance(pruning_ratio, Mapping):
        raise ValueError(
            "Expected either pruning_ratio or schedule to be a mapping but got both: a schedule that maps epochs "
            "to ratios says how much of the whole model goes, rules say how much of each layer. Give rules with "
            "a schedule such as 'cubic', or a callable."
        )
    reached = max(schedule.curve.values())
    if pruning_ratio not in (None, DEFAULT_RATIO, reached):
        rank_zero_warn(
            f"pruning_ratio={pruning_ratio!r} has no effect: the schedule maps epochs or steps to ratios, of which the "
            f"last is {reached!r}. Leave it out, or change the schedule.",
            stacklevel=level_of_caller() + _RANK_ZERO,
        )


def _check_times_beside_schedule(schedule: PruningSchedule) -> None:
    """Say that a schedule with times of its own, or with a single event, does not look at other ones."""
    defaults = defaults_of(PruningSchedule)

    def idle(*names: str) -> str:
        given = {name: getattr(schedule, name) for name in names}
        return ", ".join(f"{name}={value!r}" for name, value in given.items() if not is_default(value, defaults[name]))

    if isinstance(schedule.curve, Mapping) and (times := idle("start", "end", "every")):
        rank_zero_warn(
            f"{times} has no effect: the schedule maps epochs or steps to ratios and says itself when it "
            "prunes. Leave it out, or give a schedule such as 'cubic'.",
            stacklevel=level_of_caller() + _RANK_ZERO,
        )
    elif schedule.curve == "one_shot" and (times := idle("every")):
        rank_zero_warn(
            f"{times} has no effect: the schedule 'one_shot' prunes once, at `start`. Leave it out, or give a schedule "
            "such as 'cubic'.",
            stacklevel=level_of_caller() + _RANK_ZERO,
        )


def _check_certificate_options(*, certify: bool, input_radius: float | None) -> None:
    """Say that a bound on inputs has no effect without certificates."""
    if input_radius is not None and not certify:
        rank_zero_warn(
            f"input_radius={input_radius!r} has no effect without certify=True, whose certificates it is for.",
            stacklevel=level_of_caller() + _RANK_ZERO,
        )


def _check_example_inputs(example_inputs: Any) -> None:
    """Refuse what no module could be called with; whether this one can shows when it is run."""
    if example_inputs is not None and not isinstance(example_inputs, Tensor | tuple | list | Mapping):
        raise ValueError(
            "Expected example_inputs to be a tensor, a tuple of arguments or a dict of keyword arguments for the "
            f"LightningModule but got {type(example_inputs).__name__}. Give tensors, such as torch.randn(2, 8)."
        )


def _check_drop(guard: AccuracyGuard | None, accuracy: AccuracyMonitor) -> None:
    """Refuse a drop that a number with known bounds cannot exceed: the guard would never do anything."""
    if guard is None or accuracy.monitor is not None:
        return
    metric = accuracy.metric
    low, high = (0.0, 1.0) if metric is None else (metric.plot_lower_bound, metric.plot_upper_bound)
    if low is None or high is None or guard.max_drop < high - low:
        return
    name = "the accuracy" if metric is None else accuracy.name
    raise ValueError(
        f"Expected max_drop to be less than {high - low:g}, since {name} lies between {low:g} and {high:g}, but got "
        f"{guard.max_drop!r}, with which no event would ever be taken back. 0.01 is a point of accuracy."
    )
