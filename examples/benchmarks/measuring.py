"""Comparable times: contenders measured alternately, in this process or each in a fresh one, and their summary."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Seconds = Sequence[float]


def now() -> float:
    """The time in seconds, after all work on the GPU has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(call: Callable[[], object]) -> float:
    """The time of one call in seconds."""
    start = now()
    call()
    return now() - start


class Stopwatch:
    """Seconds of consecutive parts of a task."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._last = now()

    def lap(self, part: str) -> None:
        """Record the time since the last lap as ``part``."""
        time = now()
        self.parts[part], self._last = time - self._last, time


def interleaved(contenders: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Call all contenders ``repeats`` times in the order A B, B A, A B ..., so that other load affects all of them.

    Args:
        contenders: Each measures itself once and returns its seconds (or any other result).
        repeats: The number of calls of each.
    """
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(repeats):
        for name in reversed(contenders) if number % 2 else contenders:
            found[name].append(contenders[name]())
    return found


def in_fresh_process(script: str, *arguments: str) -> dict[str, Any]:
    """Run a script with the same Python, and return the JSON in its last line of output.

    Raises:
        RuntimeError: If the script fails, with the end of its output.
    """
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# Other load on the machine can only add time, so the fastest run is least affected.
PICKS: tuple[Callable[[Seconds], float], ...] = (statistics.median, min)


def format_times(values: Seconds, form: str = ".3f") -> str:
    """Median / fastest, as text."""
    return " / ".join(f"{pick(values):{form}}" for pick in PICKS)


def format_ratio(values: Seconds, others: Seconds, form: str = ".2f") -> str:
    """One contender relative to another: the ratio of the medians / of the fastest, as text."""
    return " / ".join(f"{pick(values) / pick(others):{form}}" for pick in PICKS)
