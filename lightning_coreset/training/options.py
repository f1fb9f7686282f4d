"""Options of the callback that contradict each other, or that would have no effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from lightning_coreset.planning import DEFAULT_RATIO


def check_ratio_beside_schedule(pruning_ratio: Any, schedule: Any) -> None:
    """Say that a schedule with ratios of its own replaces another ratio; refuse rules, which it cannot replace.

    Args:
        pruning_ratio: What a user gave, or ``None``; the default says nothing.
        schedule: What a user gave.

    Raises:
        ValueError: If both are mappings.
    """
    if not isinstance(schedule, Mapping):
        return
    if isinstance(pruning_ratio, Mapping):
        raise ValueError(
            "Expected either pruning_ratio or schedule to be a mapping but got both: a schedule that maps epochs "
            "to ratios says how much of the whole model goes, rules say how much of each layer. Give rules with "
            "a schedule such as 'cubic', or a callable."
        )
    reached = max(schedule.values(), default=None)
    if pruning_ratio not in (None, DEFAULT_RATIO, reached):
        rank_zero_warn(
            f"pruning_ratio={pruning_ratio!r} has no effect: the schedule maps epochs or steps to ratios, of which the "
            f"last is {reached!r}. Leave it out, or change the schedule."
        )


def check_example_inputs(example_inputs: Any) -> None:
    """Refuse what no module could be called with; whether this one can shows when it is run.

    Raises:
        ValueError: If they are neither a tensor, nor arguments in a tuple, nor keyword arguments in a mapping.
    """
    if example_inputs is not None and not isinstance(example_inputs, Tensor | tuple | list | Mapping):
        raise ValueError(
            "Expected example_inputs to be a tensor, a tuple of arguments or a dict of keyword arguments for the "
            f"LightningModule but got {type(example_inputs).__name__}. Give tensors, such as torch.randn(2, 8)."
        )


def check_times_beside_schedule(schedule: Any, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Say that a schedule with times of its own, or with a single event, does not look at other ones.

    Args:
        schedule: What a user gave.
        given: ``start``, ``end`` and ``every``.
        defaults: Their defaults, which count as not given.
    """

    def idle(*names: str) -> str:
        return ", ".join(f"{name}={given[name]!r}" for name in names if given[name] != defaults[name])

    if isinstance(schedule, Mapping) and (times := idle("start", "end", "every")):
        rank_zero_warn(
            f"{times} has no effect: the schedule maps epochs or steps to ratios and says itself when it "
            "prunes. Leave it out, or give a schedule such as 'cubic'."
        )
    elif isinstance(schedule, str) and schedule == "one_shot" and (times := idle("every")):
        rank_zero_warn(
            f"{times} has no effect: the schedule 'one_shot' prunes once, at `start`. Leave it out, or give a schedule "
            "such as 'cubic'."
        )


def check_certificate_options(*, certify: bool, input_radius: float | None) -> None:
    """Say that a bound on inputs has no effect without certificates."""
    if input_radius is not None and not certify:
        rank_zero_warn(
            f"input_radius={input_radius!r} has no effect without certify=True, whose certificates it is for."
        )


def check_guard_options(max_drop: Any, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse options of the guard without a guard.

    Args:
        max_drop: What turns it on.
        given: Its other options.
        defaults: Their defaults, which count as not given.

    Raises:
        ValueError: If one is given although the guard is off.
    """
    idle = [name for name, value in given.items() if value != defaults[name]]
    if max_drop is None and idle:
        raise ValueError(
            f"Expected {' and '.join(idle)} to be left alone without max_drop, which turns the guard on, but got "
            f"{', '.join(f'{name}={given[name]!r}' for name in idle)}. Give max_drop, such as max_drop=0.01 for a "
            "point of accuracy, or leave them out."
        )


def check_drop(max_drop: float | None, metric: Metric | None, monitor: str | None) -> None:
    """Refuse a drop that a number with known bounds cannot exceed.

    Args:
        max_drop: How far the number may fall.
        metric: A metric of torchmetrics, if one is measured.
        monitor: The name of a logged metric, whose bounds are not known.

    Raises:
        ValueError: If the guard would never do anything.
    """
    if max_drop is None or monitor is not None:
        return
    low, high = (0.0, 1.0) if metric is None else (metric.plot_lower_bound, metric.plot_upper_bound)
    if low is None or high is None or max_drop < high - low:
        return
    name = "the accuracy" if metric is None else type(metric).__name__
    raise ValueError(
        f"Expected max_drop to be less than {high - low:g}, since {name} lies between {low:g} and {high:g}, but got "
        f"{max_drop!r}, with which no event would ever be taken back. 0.01 is a point of accuracy."
    )
