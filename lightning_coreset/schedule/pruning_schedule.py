"""What a schedule is made of, checked as far as it can be without the length of training."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from itertools import pairwise
from numbers import Integral
from typing import Any, Literal, TypeAlias, get_args

from lightning_coreset._arguments import check_left_alone, defaults_of, is_number, is_whole_number
from lightning_coreset._calls import level_of_caller
from lightning_coreset.schedule.curves import CURVES, Schedule, check_curve

Interval: TypeAlias = Literal["epoch", "step"]
Order: TypeAlias = Literal["together", "bottom_up"]

_WITH_ARTICLE = {"epoch": "an epoch", "step": "a step"}


@dataclass(frozen=True)
class PruningSchedule:
    """When the events of pruning are, and how the ratio grows from one to the next.

    ``CoresetPruningCallback(schedule=PruningSchedule("linear", end=0.5))`` is the same as
    ``CoresetPruningCallback(schedule="linear", end=0.5)``: one object for what belongs together, to use it several
    times, to keep it in a configuration, or to hand it on.

    Attributes:
        curve: How the ratio grows from ``start`` to ``end``: ``"one_shot"``, ``"linear"``, ``"cubic"`` (most at first,
            when much is redundant and much training is left to recover in), ``"cosine"``; a mapping from epoch (step)
            to the ratio reached there; or a callable from progress in (0, 1] to the fraction of the ratio, 1 in the
            end.
        start: The first event; a float is a fraction of training, an int is an epoch (a step), counted from 0.
        end: The last event, likewise; the training after it is left for recovery.
        every: Epochs (steps) between events; by default as many as make about ten events, one at least.
        interval: The unit of these numbers: ``"epoch"``, or ``"step"`` for optimizer steps.
        order: ``"together"`` removes a few channels of all groups at every event; ``"bottom_up"`` reduces the next
            groups, in network order, to their final size.

    Raises:
        ValueError: If a value is out of its range, or ``start`` is after ``end`` and both are of one type.

    Example:
        >>> from dataclasses import replace
        >>> from lightning_coreset import CoresetPruningCallback, PruningSchedule
        >>> late = PruningSchedule("linear", start=0.4, end=0.8)
        >>> pruning = CoresetPruningCallback(0.5, schedule=late)
        >>> replace(late, every=2)
        PruningSchedule(curve='linear', start=0.4, end=0.8, every=2, interval='epoch', order='together')
    """

    curve: Schedule = "cubic"
    _: KW_ONLY
    start: int | float = 0.1
    end: int | float = 0.7
    every: int | None = None
    interval: Interval = "epoch"
    order: Order = "together"

    def __post_init__(self) -> None:
        if self.interval not in get_args(Interval):
            raise ValueError(f"Expected `interval` to be 'epoch' or 'step' but got {self.interval!r}.")
        _check_time(self.start, "start", self.interval)
        _check_time(self.end, "end", self.interval)
        if self.every is not None and (not is_whole_number(self.every) or self.every < 1):
            raise ValueError(
                f"Expected `every` to be a positive integer, the {self.interval}s between events, but got "
                f"{self.every!r}."
            )
        if self.order not in get_args(Order):
            raise ValueError(f"Expected order to be 'together' or 'bottom_up' but got {self.order!r}.")
        if isinstance(self.curve, Mapping):
            _check_mapping(self.curve, self.interval)
            object.__setattr__(self, "curve", dict(self.curve))  # a later change of the user's is not followed
            return
        if isinstance(self.curve, str) and self.curve in CURVES:
            pass
        elif callable(self.curve):
            check_curve(self.curve)
        else:
            raise ValueError(
                f"Expected `schedule` to be one of {', '.join(map(repr, CURVES))}, a mapping from {self.interval} to "
                f"pruning ratio, or a callable from progress to fraction but got {self.curve!r}."
            )
        if self.curve != "one_shot":
            self._check_order_of_times()

    def _check_order_of_times(self) -> None:
        comparable = isinstance(self.start, Integral) == isinstance(self.end, Integral)
        if comparable and self.start > self.end:
            raise ValueError(
                f"Expected `start` not to come after `end` but got start={self.start!r} and end={self.end!r}."
            )
        if self.end == 1 and is_whole_number(self.end) and not is_whole_number(self.start):
            warn_of_one(self.interval)


def as_schedule(schedule: PruningSchedule | Schedule, **flat: Any) -> PruningSchedule:
    """A schedule of the flat arguments of a public function, or the one that was given instead of them.

    Args:
        schedule: What was given as ``schedule``: the whole of it, or its curve.
        flat: The other arguments by name.

    Raises:
        ValueError: If an argument is out of its range, or is given beside the object that has it.

    Example:
        >>> as_schedule("linear", start=0, end=5) == as_schedule(PruningSchedule("linear", start=0, end=5))
        True
    """
    if not isinstance(schedule, PruningSchedule):
        return PruningSchedule(schedule, **flat)
    check_left_alone("schedule", schedule, flat, defaults_of(PruningSchedule))
    return schedule


def warn_of_one(interval: Interval) -> None:
    """Say that ``end=1`` is an epoch (a step), and not the end of training."""
    warnings.warn(
        f"`end=1` is an int, and so {interval} 1, counted from 0. For the end of training give the float 1.0; to prune "
        f"until {interval} 1, give `schedule` as a mapping, such as {{0: 0.25, 1: 0.5}}.",
        stacklevel=level_of_caller(),
    )


def check_ratio(ratio: float, what: str) -> None:
    """Refuse what is no fraction of the original model."""
    if not is_number(ratio) or not 0 <= ratio < 1:
        raise ValueError(f"Expected {what} to be a fraction of the original model within [0, 1) but got {ratio!r}.")


def _check_time(time: int | float, name: str, interval: Interval) -> None:
    if not is_number(time):
        raise ValueError(f"Expected `{name}` to be an int ({interval}) or a float (fraction) but got {time!r}.")
    if isinstance(time, Integral) and time < 0:
        raise ValueError(f"Expected `{name}` to be {_WITH_ARTICLE[interval]}, counted from 0, but got {time!r}.")
    if not isinstance(time, Integral) and not 0 <= time <= 1:
        raise ValueError(
            f"Expected `{name}`, a float, to be a fraction of training within [0, 1] but got {time!r}. To mean "
            f"{_WITH_ARTICLE[interval]}, give an int."
        )


def _check_mapping(schedule: Mapping[int, float], interval: Interval) -> None:
    if not schedule:
        raise ValueError(
            f"Expected `schedule` to map at least one {interval} to a pruning ratio but got an empty mapping."
        )
    for epoch, ratio in schedule.items():
        if not is_whole_number(epoch) or epoch < 0:
            raise ValueError(f"Expected the keys of `schedule` to be {interval}s, counted from 0, but got {epoch!r}.")
        check_ratio(ratio, f"`schedule[{epoch}]`")
    for before, after in pairwise(sorted(schedule)):
        if schedule[after] < schedule[before]:
            raise ValueError(
                "Expected `schedule` never to decrease, since removed channels do not come back, but got "
                f"{schedule[before]!r} at {interval} {before} and {schedule[after]!r} at {interval} {after}."
            )
