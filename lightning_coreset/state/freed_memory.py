"""Gives memory back to the system between the tensors of a run: the C library else keeps several times a network."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from torch import Tensor, nn

_LARGE = 1 << 26
"""Bytes of a network from which on what is kept counts: of smaller ones Python and torch hold more than that."""
_MOST = 1 << 28
"""Bytes of results after which the system gets back what is no longer used of them, of the largest networks."""


class FreedMemory:
    """Gives the system back what was freed, once as many bytes of results were made as a network has itself.

    Args:
        model: The network. With a small one nothing is given back.

    Example:
        >>> freed = FreedMemory(nn.Linear(2, 2))
        >>> freed.count(Tensor(3))
    """

    def __init__(self, model: nn.Module) -> None:
        own = sum(one.numel() * one.element_size() for one in model.parameters())
        self._limit = min(own / 2, _MOST) if own >= _LARGE else math.inf
        self._made = 0

    def count(self, made: Tensor) -> None:
        """Count a result."""
        self._made += made.numel() * made.itemsize if made.is_cpu else 0
        if self._made > self._limit:
            return_freed_memory()
            self._made = 0

    @contextmanager
    def sparing(self) -> Iterator[None]:
        """In the block, four times as often, for much is kept beside it; and in the end."""
        before, self._limit = self._limit, self._limit / 4
        try:
            yield
        finally:
            self._limit = before
            return_freed_memory()


def return_freed_memory() -> None:
    """Give the system back what was freed, where the C library can be told to (glibc).

    Between the tensors of a run, which are of many sizes, glibc keeps several times what a large network needs.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], object] | None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, TypeError, AttributeError):  # another system, or another C library
        return None
    trim.argtypes = [ctypes.c_size_t]
    return trim
