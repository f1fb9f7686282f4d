"""Curves: from the progress of training to the fraction of the pruning ratio that is reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Literal, TypeAlias

Schedule: TypeAlias = Literal["one_shot", "linear", "cubic", "cosine"] | Mapping[int, float] | Callable[[float], float]

# Progress t in (0, 1] -> fraction of the final pruning ratio. Cubic is the schedule of Zhu and Gupta (2017): it removes
# most at first, when much is redundant and much training is left to recover in.
CURVES: dict[str, Callable[[float], float]] = {
    "one_shot": lambda t: 1.0,
    "linear": lambda t: t,
    "cubic": lambda t: 1.0 - (1.0 - t) ** 3,
    "cosine": lambda t: (1.0 - math.cos(math.pi * t)) / 2.0,
}

# A user's curve may end at 1.0000000000000002.
_ROUNDING = 1e-9

# Where a callable is tried before training.
_PLACES = 100


def fractions(schedule: str | Callable[[float], float], progress: list[float]) -> list[float]:
    """What a curve gives at each progress, checked: within [0, 1], and never decreasing."""
    curve = CURVES[schedule] if isinstance(schedule, str) else schedule
    reached = [_fraction(curve, t) for t in progress]
    for t, fraction in zip(progress, reached, strict=True):
        if not -_ROUNDING <= fraction <= 1.0 + _ROUNDING:  # NaN fails both
            raise ValueError(
                f"Expected `schedule` to return a fraction of the pruning ratio, within [0, 1], but got {fraction} at "
                f"progress {t:.3g}."
            )
    for t, (before, after) in zip(progress[1:], pairwise(reached), strict=True):
        if after < before - _ROUNDING:
            raise ValueError(
                f"Expected `schedule` never to decrease, since removed channels do not come back, but it falls from "
                f"{before} to {after} at progress {t:.3g}."
            )
    return [min(max(fraction, 0.0), 1.0) for fraction in reached]


def check_curve(curve: Callable[[float], float]) -> None:
    """Check a user's curve at more places than any schedule needs, and that it ends at 1."""
    last = fractions(curve, [k / _PLACES for k in range(1, _PLACES + 1)])[-1]
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
