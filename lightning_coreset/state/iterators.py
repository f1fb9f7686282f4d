"""Iterators that a module keeps, such as that of a second loader: what a run draws is drawn once more afterwards."""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn


class _InPlaceOf(Iterator[Any]):
    """An iterator in place of another one, which answers all but what is next."""

    def __init__(self, source: Iterator[Any]) -> None:
        self.source = source

    def __len__(self) -> int:
        """What the iterator says, such as one of a loader, whose length stays the same."""
        return len(self.source)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "source":
            raise AttributeError(name)
        return getattr(self.source, name)


class ReplayedIterator(_InPlaceOf):
    """Takes the place of an iterator that cannot go back, and can.

    Args:
        source: The iterator.
    """

    def __init__(self, source: Iterator[Any]) -> None:
        super().__init__(source)
        self._drawn: list[Any] = []
        self.position = 0
        self._left: Iterator[Any] | None = None  # one for all who held the iterator

    def __next__(self) -> Any:
        """What was drawn before, or the next."""
        if self.position == len(self._drawn):
            self._drawn.append(next(self.source))
        self.position += 1
        return self._drawn[self.position - 1]

    def __deepcopy__(self, memo: dict[int, Any]) -> ReplayedIterator:
        """Another that draws the same."""
        other = ReplayedIterator(self.source)
        other._drawn, other.position = self._drawn, self.position
        return other

    def left(self) -> Iterator[Any]:
        """What goes on where the first iterator was: that itself, if nothing was drawn of it."""
        if self._left is None:
            self._left = put_back(self._drawn, self.source) if self._drawn else self.source
        return self._left


class DrawnBefore(_InPlaceOf):
    """An iterator of which some items were drawn before, and come first; all else is its own.

    Args:
        items: The items.
        source: The iterator.
    """

    def __init__(self, items: Iterable[Any], source: Iterator[Any]) -> None:
        super().__init__(source)
        self._items = deque(items)

    def __next__(self) -> Any:
        """What was drawn before, or the next."""
        return self._items.popleft() if self._items else next(self.source)


def put_back(items: list[Any], source: Iterator[Any]) -> DrawnBefore:
    """What first gives these items, which were drawn from an iterator, and then goes on with it."""
    if not isinstance(source, DrawnBefore):
        return DrawnBefore(items, source)
    source._items.extendleft(reversed(items))
    return source


@functools.cache
def is_iterator_type(kind: type) -> bool:
    """Whether objects of a type are iterators whose place cannot be read from their attributes."""
    # Weak proxies have all methods there are; Lightning's modules know their Trainer by one.
    if issubclass(kind, (nn.Module, ReplayedIterator, *weakref.ProxyTypes)) or not hasattr(kind, "__next__"):
        return False
    if issubclass(kind, DrawnBefore):
        return True
    # An iterator that a user wrote in Python counts in its attributes. One of a loader has workers and generators.
    return kind.__dictoffset__ == 0 or kind.__module__.startswith("torch.utils.data.")
