"""Contents of weights that are made row by row, of those of a network, whenever something reads them.

A weight as it should be is the one of the network after some steps: a factor, zeros in some columns, another precision,
fewer rows. Each of these can be taken on a few rows alone, so that no weight is ever there as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

Rows: TypeAlias = slice | Tensor
"""Which rows: all from one to another, or those at some positions."""
Step: TypeAlias = Callable[[Tensor, Rows], object]
"""Writes into some rows, given with what they are."""
View: TypeAlias = tuple[torch.Size, tuple[int, ...], int]

_BLOCK = 1 << 18
"""Elements that are made at a time: few enough for a core's cache, where making and reading them costs least."""
_aten = torch.ops.aten
_fill_along, _fill_where = _aten.index_fill_.int_Scalar, _aten.masked_fill_.Scalar
STEPS = frozenset({_fill_along, _fill_where, _aten.mul_.Tensor, _aten.add_.Tensor})
"""Operators that write into weights before a run: noted, and done anew whenever rows are made."""


@dataclass
class MadeWeight:
    """How the content of one memory is made.

    Attributes:
        memory: The memory, of the weight's form, which is never read.
        make: Makes rows.
        own: Whether that is a new tensor, which may be written into.
        steps: What was done to it since.
    """

    memory: Tensor
    make: Callable[[Rows], Tensor]
    own: bool = True
    steps: list[Step] = field(default_factory=list)

    def rows(self, which: Rows, count: int | None = None) -> Tensor:
        """Rows after the first steps; after all by default. Only to be read."""
        content, steps = self.make(which), self.steps[:count]
        if steps and not self.own:
            content = content.clone()
        for step in steps:
            step(content, which)
        return content

    def view(self, view: View, count: int | None = None) -> Tensor:
        """What a view of the memory shows, of as few rows as it reaches into."""
        shape, strides, offset = view
        if 0 in shape:
            return self.memory.new_empty(shape)
        length = math.prod(self.memory.shape[1:])
        reach = [(size - 1) * stride for size, stride in zip(shape, strides, strict=True)]
        first, last = offset // length, (offset + sum(reach)) // length
        step = 1
        if shape and strides[0] > length and strides[0] % length == 0 and offset % length + sum(reach[1:]) < length:
            step, strides = strides[0] // length, (length, *strides[1:])  # every so many rows
        content = self.rows(slice(first, last + 1, step), count)
        return content.as_strided(shape, strides, int(content.storage_offset()) + offset - first * length)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows, some at a time, with their places."""
        count = max(_BLOCK // max(math.prod(self.memory.shape[1:]), 1), 1)
        for start in range(0, len(self.memory), count):
            which = slice(start, min(start + count, len(self.memory)))
            yield which, self.rows(which)

    def note(self, function: Any, view: View, others: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Note what an operator of :data:`STEPS` writes into a view of it.

        Raises:
            NotImplementedError: If that is a view of a part.
        """
        if view != view_of(self.memory):
            raise NotImplementedError(f"{function} writes into a part of a weight that has no memory")
        self.steps.append(_step(function, others, options, self.memory))


def view_of(tensor: Tensor) -> View:
    """Which numbers of its memory a tensor shows."""
    return tensor.shape, tensor.stride(), int(tensor.storage_offset())


def _step(function: Any, others: tuple[Any, ...], options: dict[str, Any], memory: Tensor) -> Step:
    """An operator of :data:`STEPS`, to be run on some rows."""
    if function is _fill_along and others[0] % memory.dim() == 0:
        filled = torch.zeros(len(memory), *[1] * (memory.dim() - 1), dtype=torch.bool)
        filled[others[1]] = True
        return lambda content, which: content.masked_fill_(filled[which], others[2])

    def along(other: Any) -> bool:
        """Whether it has rows as the weight has."""
        return isinstance(other, Tensor) and other.dim() == memory.dim() and len(other) > 1

    by_row = [function is not _fill_along and along(other) for other in others]

    def write(content: Tensor, which: Rows) -> None:
        parts = (other[which] if is_by_row else other for other, is_by_row in zip(others, by_row, strict=True))
        function(content, *parts, **options)

    return write
