"""Times that can be compared: contenders in turn, in this process or each in a fresh one, and what is told of them."""

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
    """Seconds of a clock; all that a GPU was given to do is done by then."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(call: Callable[[], object]) -> float:
    """How long one call takes."""
    start = now()
    call()
    return now() - start


class Stopwatch:
    """Seconds of the parts of something, one after another."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._last = now()

    def lap(self, part: str) -> None:
        """What went by since the last lap was ``part``."""
        time = now()
        self.parts[part], self._last = time - self._last, time


def interleaved(contenders: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """What each contender returns, ``repeats`` times: A B, B A, A B ..., so that what else the machine does meets all.

    Args:
        contenders: Each measures itself once and returns the seconds (or whatever it measures).
        repeats: How often each is called.
    """
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(repeats):
        for name in reversed(contenders) if number % 2 else contenders:
            found[name].append(contenders[name]())
    return found


def in_fresh_process(script: str, *arguments: str) -> dict[str, Any]:
    """The JSON that a script prints as its last line, run by the same Python.

    Raises:
        RuntimeError: If it fails, with the end of what it said.
    """
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# Other load on the machine only ever adds time: the fastest run has least of it.
PICKS: tuple[Callable[[Seconds], float], ...] = (statistics.median, min)


def told(values: Seconds, form: str = ".3f") -> str:
    """Median / fastest."""
    return " / ".join(f"{pick(values):{form}}" for pick in PICKS)


def told_ratio(values: Seconds, others: Seconds, form: str = ".2f") -> str:
    """One contender over another: the ratio of the medians / of the fastest."""
    return " / ".join(f"{pick(values) / pick(others):{form}}" for pick in PICKS)
