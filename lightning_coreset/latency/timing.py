"""Fair times of several things on a machine that does other things as well."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch

_LEAST_PASSES = 3
_MOST_PASSES = 20
_SAMPLE = 2e-4
"""Seconds that one sample should last: a clock and a GPU's queue make a shorter one inexact."""
_MOST_CALLS = 100

Task = Callable[[], object]


def now() -> float:
    """The clock's time, in seconds."""
    return time.perf_counter()


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def time_of(task: Task, device: torch.device, calls: int = 1) -> float:
    """The seconds of one call, of several in a row."""
    wait_for(device)
    start = now()
    for _ in range(calls):
        task()
    wait_for(device)
    return (now() - start) / calls


def calls_for(seconds: float) -> int:
    """How many calls of so many seconds make one sample."""
    return min(max(math.ceil(_SAMPLE / max(seconds, 1e-9)), 1), _MOST_CALLS)


def fastest(
    makers: Sequence[Callable[[], Task]],
    device: torch.device,
    *,
    seconds: float,
    report: Callable[[float], None] | None = None,
) -> list[float]:
    """The shortest time of each of several tasks.

    They take turns, pass after pass, in alternating order: other load on the machine, which can only add time, then
    affects all of them, and the shortest of several times is least affected. In every pass each is called once before
    it is timed.

    Args:
        makers: Each makes a task; anew in every pass, so that not all are in memory at a time.
        device: Where they run.
        seconds: About how long to take. There are at least three passes.
        report: Called after every task with the fraction that is done.

    Returns:
        Seconds of one call of each, in the order of ``makers``.
    """
    best, start, done = [math.inf] * len(makers), now(), 0
    for number in range(_MOST_PASSES):
        order = range(len(makers)) if number % 2 == 0 else reversed(range(len(makers)))
        for position in order:
            task = makers[position]()
            first = time_of(task, device)
            best[position] = min(best[position], time_of(task, device, calls_for(min(first, best[position]))))
            done += 1
            if report is not None:
                report(min(done / (_LEAST_PASSES * len(makers)), max((now() - start) / seconds, 0.0), 1.0))
        elapsed = now() - start
        if number + 1 >= _LEAST_PASSES and elapsed + elapsed / (number + 1) > seconds:
            break
    return best
