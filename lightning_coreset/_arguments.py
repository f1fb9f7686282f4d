"""What arguments of users are, whatever they came as: from Python, a configuration file, the command line or numpy."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def is_whole_number(value: Any) -> bool:
    """Whether a value is an integer, also numpy's; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number, also numpy's; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
