"""The events of a training run: at which epochs or steps, up to which pruning ratio."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral

from lightning_coreset._arguments import is_whole_number
from lightning_coreset.schedule.curves import Schedule, fractions
from lightning_coreset.schedule.pruning_schedule import Interval, PruningSchedule, as_schedule, check_ratio, warn_of_one

# The default number of events from the first epoch (step) to the last, however training is cut into epochs: a run of
# one step an epoch would spend most of its time on them.
_EVENTS = 10

# 0.29 * 100 is 28.999999999999996.
_ROUNDING = 1e-9


def pruning_events(
    schedule: PruningSchedule | Schedule,
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
            [0, 1], never decreasing, and 1 in the end. Or a :class:`~lightning_coreset.PruningSchedule`, instead of the
            arguments from ``start`` on.
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
        >>> pruning_events(PruningSchedule("linear", start=100, end=200, every=100, interval="step"), 0.5, length=1000)
        {100: 0.25, 200: 0.5}
    """
    checked = as_schedule(schedule, start=start, end=end, every=every, interval=interval)
    check_ratio(pruning_ratio, "`pruning_ratio`")
    return events_of(checked, pruning_ratio, length)


def events_of(schedule: PruningSchedule, pruning_ratio: float, length: int) -> dict[int, float]:
    """What :func:`pruning_events` returns, for a schedule that is checked."""
    curve, interval = schedule.curve, schedule.interval
    if not is_whole_number(length) or length < 1:
        raise ValueError(
            f"Expected `length` to be a positive integer but got {length!r}. Set `max_epochs` of the Trainer, so that "
            "the schedule knows how long training is."
        )
    if isinstance(curve, Mapping):
        target = max(curve.values())
        ratios = {epoch: float(curve[epoch]) for epoch in sorted(curve) if epoch < length}
    else:
        target = pruning_ratio
        times = _times(schedule, length)
        reached = fractions(curve, [k / len(times) for k in range(1, len(times) + 1)])
        ratios = {epoch: pruning_ratio * fraction for epoch, fraction in zip(times, reached, strict=True)}
    events = _increasing(ratios)
    if target > 0 and not events:
        raise ValueError(
            f"Expected `schedule` to prune within the {length} {interval}s of training (0 to {length - 1}) but got "
            f"{curve!r}, which never does. Move its {interval}s forward or train longer."
        )
    return events


def _times(schedule: PruningSchedule, length: int) -> list[int]:
    """The epochs (steps) of a curve's events."""
    single, start, end, interval = schedule.curve == "one_shot", schedule.start, schedule.end, schedule.interval
    first, last = _first_and_last(start, end, length, interval, single=single)
    if not single and (first, last) == (0, 1) and is_whole_number(end) and is_whole_number(start) and length > 2:
        warn_of_one(interval)  # of other ones PruningSchedule did
    every = schedule.every
    if every is None:
        whole = round if interval == "epoch" else math.ceil  # epochs are few: one between two events up to 15
        every = max(1, whole((last - first) / _EVENTS))
    return [*range(first, last, every), last]


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
    as_schedule(schedule, start=start, end=end, every=every, interval=interval)
    check_ratio(pruning_ratio, "`pruning_ratio`")


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


def _increasing(ratios: Mapping[int, float]) -> dict[int, float]:
    events: dict[int, float] = {}
    reached = 0.0
    for epoch, ratio in ratios.items():
        if ratio > reached:
            events[epoch] = reached = ratio
    return events
