"""Where the classes of groups lie along the dimensions of tensors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from lightning_coreset.structure.records import one_each

Dim = tuple[str, int]
"""A tensor's name and one of its dimensions."""


class ClassPositions:
    """The labels that are in groups, in the order in which they lie.

    Args:
        ranges: The labels of every dimension, one dimension after the other.
        roots: The root of every label, that of ``FIXED`` at the head.
        group_of: The number of every root's group, -1 where it is in none.
    """

    def __init__(self, ranges: Mapping[Dim, range], roots: Tensor, group_of: Tensor) -> None:
        self._dims = list(ranges)
        self._ranges = ranges
        group = group_of.index_select(0, roots)
        labels = (group >= 0).nonzero().squeeze(1)
        self._group, self._roots = group.index_select(0, labels), roots.index_select(0, labels)
        bounds = torch.tensor([1, *(own.stop for own in ranges.values())], dtype=torch.int64)
        self._sizes = bounds.diff()
        # The labels of a dimension that are in groups lie side by side.
        self._first = torch.searchsorted(labels, bounds)
        self._dim = torch.arange(len(self._dims)).repeat_interleave(self._first.diff())
        self._place = labels - bounds[self._dim]

    def dims(self, groups: int) -> list[list[Dim]]:
        """The dimensions that carry classes of each of so many groups."""
        found: list[dict[int, None]] = [{} for _ in range(groups)]
        count = len(self._dims)
        for pair in (self._group * count + self._dim).unique_consecutive().tolist():
            found[pair // count][pair % count] = None
        return [[self._dims[dim] for dim in own] for own in found]

    def number(self, class_of: Tensor) -> None:
        """Number the classes of every group: ``class_of`` says the number of a root."""
        self._class = class_of[self._roots]
        group = self._group[self._first[:-1].clamp(max=len(self._group) - 1)]  # of the first label of a dimension
        follows = (self._class == self._place) & (self._group == group[self._dim])
        plain = torch.bincount(self._dim[follows], minlength=len(self._dims)) == self._sizes
        self._plain = {self._dims[dim]: int(group[dim]) for dim in plain.nonzero().squeeze(1).tolist()}
        firsts = self._first.tolist()
        self._slices = {dim: slice(*firsts[number : number + 2]) for number, dim in enumerate(self._dims)}

    def index(self, group: int, where: Dim, size: int) -> tuple[tuple[int, ...], ...]:
        """The positions along a dimension of each of the ``size`` classes of a group."""
        if self._plain.get(where) == group and len(self._ranges[where]) == size:
            return one_each(size)
        own = self._group[self._slices[where]] == group
        classes, places = (part[self._slices[where]][own].tolist() for part in (self._class, self._place))
        return _index(tuple(classes), tuple(places), size)


@lru_cache(maxsize=256)
def _index(classes: tuple[int, ...], places: tuple[int, ...], size: int) -> tuple[tuple[int, ...], ...]:
    """The places of each class; one object for all dimensions in which they lie alike, as heads do in every layer."""
    index: defaultdict[int, list[int]] = defaultdict(list)
    for own, place in zip(classes, places, strict=True):
        index[own].append(place)
    return tuple(tuple(index[number]) for number in range(size))
