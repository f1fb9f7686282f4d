"""The values of attributes that state sizes: integers, and tuples or lists of integers."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from typing import Any, TypeAlias

import torch

Size: TypeAlias = "int | tuple[int, ...]"
"""A size as plans, checkpoints and specs write it; in a module it may be a list or a ``torch.Size``, too."""

_SEQUENCES = (tuple, list, torch.Size)
_LONGEST = 64
"""Elements of a sequence of sizes; a longer one is data, such as a vocabulary."""


def is_integer(value: object) -> bool:
    """Whether a value is an integer, of Python or numpy; flags are none."""
    return type(value) is int or (issubclass(type(value), Integral) and type(value) is not bool)


def is_size(value: Any) -> bool:
    """Whether a value is an integer, or a tuple or a list of integers that is not empty."""
    if type(value) in _SEQUENCES:
        return 0 < len(value) <= _LONGEST and all(map(is_integer, value))
    return is_integer(value)


def plain_size(value: Any) -> Size:
    """A value that :func:`is_size` as an int or a tuple of ints, to be compared and saved."""
    return int(value) if is_integer(value) else tuple(int(each) for each in value)


def size_like(old: object, size: int | Iterable[int]) -> Any:
    """A size as the type that an attribute had: a list stays a list, a ``torch.Size`` a ``torch.Size``."""
    if type(old) in _SEQUENCES and not is_integer(size):
        return type(old)(size)  # type: ignore[arg-type]
    return size
