"""When to prune and how much: progress of training -> pruning ratio, as plain functions of numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from itertools import pairwise
from numbers import Integral
from typing import Literal, TypeAlias, get_args

from lightning_coreset._arguments import is_number, is_whole_number

Schedule: TypeAlias = Literal["one_shot", "linear", "cubic", "cosine"] | Mapping[int, float] | Callable[[float], float]
Interval: TypeAlias = Literal["epoch", "step"]

# Progress t in (0, 1] -> fraction of the final pruning ratio. Cubic is the schedule of Zhu and Gupta (2017): it removes
# most at first, when much is redundant and much training is left to recover in.
_CURVES: dict[str, Callable[[float], float]] = {
    "one_shot": lambda t: 1.0,
    "linear": lambda t: t,
    "cubic": lambda t: 1.0 - (1.0 - t) ** 3,
    "cosine": lambda t: (1.0 - math.cos(math.pi * t)) / 2.0,
}

# The default number of events from the first epoch (step) to the last, however training is cut into epochs: a run of
# one step an epoch would spend most of its time on them.
_EVENTS = 10
_WITH_ARTICLE = {"epoch": "an epoch", "step": "a step"}

# 0.29 * 100 is 28.999999999999996, and a user's curve may end at 1.0000000000000002.
_ROUNDING = 1e-9

# Where a callable is tried before training.
_PLACES = 100


def pruning_events(
    schedule: Schedule,
    pruning_ratio: float,
    *,
    start: int | float = 0.1,
    end: int | float = 0.7,
    every: int | None = None,
    length: int,
    interval: Interval = "epoch",
) -> dict[int, float]:
    """Compute the pruning events of a training run, at starts of epochs or between optimizer steps.

    There is an event at the first epoch (or step), then at every ``every``-th one, and always at the last one. The k-th
    of n events has progress k / n: the first one removes something and the last one reaches ``pruning_ratio`` exactly.

    Args:
        schedule: The name of a curve (``"one_shot"`` prunes once, at ``start``); or a mapping from epoch (step) to the
            pruning ratio to be reached there, which replaces ``pruning_ratio``, ``start``, ``end`` and ``every``; or a
            callable that takes the progress in (0, 1] and returns the fraction of ``pruning_ratio`` to be reached, in
            [0, 1], never decreasing, and 1 in the end.
        pruning_ratio: Fraction of the original model that is removed in the end, in [0, 1). 0 means no event.
        start: First event: a float is a fraction of training, an int is an epoch (a step), counted from 0.
        end: Last event, likewise. Fractions are rounded inwards to whole epochs and clipped to the length of training,
            so that one epoch of training still has one event.
        every: Epochs (steps) between two events; by default a tenth of those from first to last, one at least.
        length: Epochs (steps) of training.
        interval: The unit of all these numbers.

    Returns:
        For every event its epoch (step) and the pruning ratio to be reached at its start, both increasing. An event
        that would not exceed the one before is left out.

    Raises:
        ValueError: If an argument is out of its range, ``start`` is after ``end``, or no event is within ``length``.

    Example:
        >>> pruning_events("linear", 0.5, start=0.2, end=0.6, length=10)
        {2: 0.1, 3: 0.2, 4: 0.3, 5: 0.4, 6: 0.5}
        >>> pruning_events({3: 0.2, 6: 0.4}, 0.5, length=10)
        {3: 0.2, 6: 0.4}
        >>> pruning_events(lambda progress: progress**2, 0.8, start=0, end=6, every=2, length=10)
        {0: 0.05, 2: 0.2, 4: 0.45, 6: 0.8}
        >>> pruning_events("linear", 0.5, start=100, end=200, every=50, length=1000, interval="step")
        {100: 0.16666666666666666, 150: 0.3333333333333333, 200: 0.5}
    """
    check_schedule(schedule, pruning_ratio, start=start, end=end, every=every, interval=interval)
    if not is_whole_number(length) or length < 1:
        raise ValueError(
            f"Expected `length` to be a positive integer but got {length!r}. Set `max_epochs` of the Trainer, so that "
            "the schedule knows how long training is."
        )
    if isinstance(schedule, Mapping):
        target = max(schedule.values())
        ratios = {epoch: float(schedule[epoch]) for epoch in sorted(schedule) if epoch < length}
    else:
        target = pruning_ratio
        first, last = _first_and_last(start, end, length, interval, single=schedule == "one_shot")
        if schedule != "one_shot" and (first, last) == (0, 1) and is_whole_number(end) and length > 2:
            _warn_of_one(interval)
        if every is None:
            whole = round if interval == "epoch" else math.ceil  # epochs are few: one between two events up to 15
            every = max(1, whole((last - first) / _EVENTS))
        times = [*range(first, last, every), last]
        fractions = _fractions(schedule, [k / len(times) for k in range(1, len(times) + 1)])
        ratios = {epoch: pruning_ratio * fraction for epoch, fraction in zip(times, fractions, strict=True)}
    events = _increasing(ratios)
    if target > 0 and not events:
        raise ValueError(
            f"Expected `schedule` to prune within the {length} {interval}s of training (0 to {length - 1}) but got "
            f"{schedule!r}, which never does. Move its {interval}s forward or train longer."
        )
    return events


def check_schedule(
    schedule: Schedule,
    pruning_ratio: float,
    *,
    start: int | float,
    end: int | float,
    every: int | None,
    interval: Interval = "epoch",
) -> None:
    """Check the arguments of :func:`pruning_events` as far as possible without the length of training.

    Raises:
        ValueError: If an argument is out of its range, or ``start`` is after ``end`` and both are of one type.

    Example:
        >>> check_schedule("cubic", 0.5, start=0.1, end=0.7, every=1)
        >>> check_schedule("square", 0.5, start=0.1, end=0.7, every=1)
        Traceback (most recent call last):
            ...
        ValueError: Expected `schedule` to be one of 'one_shot', 'linear', 'cubic', 'cosine', a mapping from epoch to \
pruning ratio, or a callable from progress to fraction but got 'square'.
    """
    if interval not in get_args(Interval):
        raise ValueError(f"Expected `interval` to be 'epoch' or 'step' but got {interval!r}.")
    _check_ratio(pruning_ratio, "`pruning_ratio`")
    _check_time(start, "start", interval)
    _check_time(end, "end", interval)
    if every is not None and (not is_whole_number(every) or every < 1):
        raise ValueError(
            f"Expected `every` to be a positive integer, the {interval}s between events, but got {every!r}."
        )
    if isinstance(schedule, Mapping):
        _check_mapping(schedule, interval)
        return
    if isinstance(schedule, str) and schedule in _CURVES:
        pass
    elif callable(schedule):
        _check_curve(schedule)
    else:
        raise ValueError(
            f"Expected `schedule` to be one of {', '.join(map(repr, _CURVES))}, a mapping from {interval} to pruning "
            f"ratio, or a callable from progress to fraction but got {schedule!r}."
        )
    comparable = isinstance(start, Integral) == isinstance(end, Integral)
    if schedule != "one_shot" and comparable and start > end:
        raise ValueError(f"Expected `start` not to come after `end` but got start={start!r} and end={end!r}.")
    if schedule != "one_shot" and end == 1 and is_whole_number(end) and not is_whole_number(start):
        _warn_of_one(interval)


def _warn_of_one(interval: Interval) -> None:
    warnings.warn(
        f"`end=1` is an int, and so {interval} 1, counted from 0. For the end of training give the float 1.0; to prune "
        f"until {interval} 1, give `schedule` as a mapping, such as {{0: 0.25, 1: 0.5}}.",
        stacklevel=4,
    )


def _first_and_last(
    start: int | float, end: int | float, length: int, interval: Interval, *, single: bool
) -> tuple[int, int]:
    first = _whole(start, math.ceil(start * length - _ROUNDING), "start", length, interval)
    if single:
        return first, first
    last = _whole(end, math.floor(end * length + _ROUNDING), "end", length, interval)
    if not isinstance(start, Integral) and not isinstance(end, Integral):
        last = max(first, last)  # with start=0.5, end=0.6 and 3 epochs no epoch begins between the two
    if first > last:
        raise ValueError(
            f"Expected `start` not to come after `end` but got start={start!r} and end={end!r}, which are "
            f"{interval}s {first} and {last} of {length}. An int counts {interval}s, from 0; a float is a fraction of "
            "training, of which 1.0 is the end."
        )
    return first, last


def _whole(time: int | float, rounded: int, name: str, length: int, interval: Interval) -> int:
    if not isinstance(time, Integral):
        return min(rounded, length - 1)
    if time >= length:
        raise ValueError(
            f"Expected `{name}` to be one of the {length} {interval}s of training (0 to {length - 1}) but got "
            f"{interval} {time}. Lower `{name}`, give it as a fraction of training (a float), or train longer."
        )
    return int(time)


def _fractions(schedule: str | Callable[[float], float], progress: list[float]) -> list[float]:
    curve = _CURVES[schedule] if isinstance(schedule, str) else schedule
    fractions = [_fraction(curve, t) for t in progress]
    for t, fraction in zip(progress, fractions, strict=True):
        if not -_ROUNDING <= fraction <= 1.0 + _ROUNDING:  # NaN fails both
            raise ValueError(
                f"Expected `schedule` to return a fraction of the pruning ratio, within [0, 1], but got {fraction} at "
                f"progress {t:.3g}."
            )
    for t, (before, after) in zip(progress[1:], pairwise(fractions), strict=True):
        if after < before - _ROUNDING:
            raise ValueError(
                f"Expected `schedule` never to decrease, since removed channels do not come back, but it falls from "
                f"{before} to {after} at progress {t:.3g}."
            )
    return [min(max(fraction, 0.0), 1.0) for fraction in fractions]


def _check_curve(curve: Callable[[float], float]) -> None:
    """Check a user's curve at more places than any schedule needs, and that it ends at 1."""
    last = _fractions(curve, [k / _PLACES for k in range(1, _PLACES + 1)])[-1]
    if last < 1.0 - _ROUNDING:
        raise ValueError(
            f"Expected `schedule` to return 1 at progress 1, where the whole pruning ratio is reached, but got {last}. "
            "To remove less, give a smaller pruning_ratio."
        )


def _fraction(curve: Callable[[float], float], progress: float) -> float:
    try:
        value = curve(progress)
    except Exception as error:
        raise ValueError(
            "Expected `schedule` to take a progress in (0, 1] and to return a fraction of the pruning ratio, but at "
            f"progress {progress:.3g} it raised {error!r}."
        ) from error
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # the last for a tensor of several numbers
        raise ValueError(
            f"Expected `schedule` to return a number, a fraction of the pruning ratio, but got {value!r} at progress "
            f"{progress:.3g}."
        ) from None


def _increasing(ratios: Mapping[int, float]) -> dict[int, float]:
    events: dict[int, float] = {}
    reached = 0.0
    for epoch, ratio in ratios.items():
        if ratio > reached:
            events[epoch] = reached = ratio
    return events


def _check_ratio(ratio: float, what: str) -> None:
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
        _check_ratio(ratio, f"`schedule[{epoch}]`")
    for before, after in pairwise(sorted(schedule)):
        if schedule[after] < schedule[before]:
            raise ValueError(
                "Expected `schedule` never to decrease, since removed channels do not come back, but got "
                f"{schedule[before]!r} at {interval} {before} and {schedule[after]!r} at {interval} {after}."
            )
