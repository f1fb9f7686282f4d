"""Ascending positions as the lengths of runs: short where few of many are missing, and plain data."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise
from typing import Any


class PositionRuns:
    """Ascending positions in little memory.

    Held are the lengths of runs, of positions that are there and that are missing in turn: ``0, 1, 2, 5`` is
    ``3, 2, 1``.

    Example:
        >>> runs = PositionRuns.of([0, 1, 2, 5])
        >>> list(runs), runs.lengths()
        ([0, 1, 2, 5], [3, 2, 1])
    """

    __slots__ = ("_lengths",)

    def __init__(self, lengths: Iterable[int]) -> None:
        self._lengths = array("Q", lengths)

    @classmethod
    def of(cls, positions: Iterable[int]) -> PositionRuns:
        """The runs of positions.

        Raises:
            ValueError: If they are not in ascending order.
        """
        lengths, end = [0], 0
        for position in positions:
            if position < end:
                raise ValueError(f"Expected ascending positions but got {position} after {end - 1}.")
            if position == end:
                lengths[-1] += 1
            else:
                lengths += [position - end, 1]
            end = position + 1
        return cls(lengths if end else [])

    @classmethod
    def from_lengths(cls, lengths: list[int]) -> PositionRuns:
        """The inverse of :meth:`lengths`.

        Raises:
            ValueError: If a length is not positive; only the first may be 0.
        """
        if any(length < 1 for length in lengths[1:]) or any(length < 0 for length in lengths[:1]):
            raise ValueError(f"Expected positive lengths of runs but got {lengths[:8]}.")
        return cls(lengths)

    def lengths(self) -> list[int]:
        """The lengths of runs that are there and that are missing in turn; the first may be 0."""
        return self._lengths.tolist()

    def __iter__(self) -> Iterator[int]:
        for number, (start, end) in enumerate(pairwise(accumulate(self._lengths, initial=0))):
            if number % 2 == 0:
                yield from range(start, end)


class CompactPositions:
    """An attribute that is a tuple of ascending positions, and is stored as :class:`PositionRuns`.

    Args:
        name: Its name.
    """

    def __init__(self, name: str) -> None:
        self._name = f"_{name}_runs"

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else tuple(vars(instance)[self._name])

    def __set__(self, instance: Any, positions: Iterable[int]) -> None:
        runs = positions if isinstance(positions, PositionRuns) else PositionRuns.of(positions)
        vars(instance)[self._name] = runs

    def runs(self, instance: Any) -> PositionRuns:
        """What is stored."""
        return vars(instance)[self._name]
