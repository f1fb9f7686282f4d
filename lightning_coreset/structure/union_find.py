"""Labels: one integer for each index of each dimension of each parameter, joined into classes by a union-find."""

from __future__ import annotations

from array import array

import torch
from torch import Tensor

FIXED = 0
"""The label of an element that no pruning can remove."""
NO_TENSOR = "<size>"
"""What the name of a tensor begins with that is neither parameter nor buffer, and has labels for a size of its own."""


class ChannelUnionFind:
    """A union-find over all labels, as flat tensors, with the reason why a class may not be removed.

    Labels that must live and die together are united. Nothing is decided on the way: a class is blocked if any of its
    labels is, which is known when the whole network has been followed. Every label points to one of its class that is
    lower, the lowest to itself.

    Mostly whole dimensions are united, position by position. That is one entry in a union-find over dimensions, and
    only written down label by label when something else happens.
    """

    def __init__(self, *, within_heads: bool = False) -> None:
        self.within_heads = within_heads
        """Whether columns of grids, which are dimensions within heads, may go, instead of rows."""
        self._ranges: dict[tuple[str, int], range] = {}
        self._reason = torch.zeros(1, dtype=torch.int32)
        self._count = 1
        self._reasons: list[str] = [""]
        self._reason_ids: dict[str, int] = {"": 0}
        self._parents: tuple[array[int], Tensor] | None = None  # made when a single label is asked for
        self._labels = torch.arange(1)  # all that there are; those of a dimension are a part of its memory
        self._sizes: dict[int, int] = {}  # of dimensions, by their first labels
        self._leads: dict[int, int] = {}  # the dimension that each one follows, maybe itself
        self._unwritten: set[int] = set()
        self._by_dimensions = True  # whether nothing else was united yet
        self._blocks = 0
        self.version = 0
        """Goes up with every union: what classes were found to be stays so as long as it is the same."""

    def reserve(self, extra: int) -> None:
        """Make room for so many labels more, in one go."""
        known, capacity = self._count, self._count + extra
        self._labels = torch.arange(capacity)
        if self._parents is not None:
            (_, old), self._parents = self._parents, _identity(capacity)
            self._parent[:known] = old[:known]
        self._reason = torch.cat([self._reason[:known], torch.zeros(capacity - known, dtype=torch.int32)])

    def allocate(self, name: str, dim: int, size: int) -> Tensor:
        """New labels for dimension ``dim`` of the tensor ``name``, shape ``(size,)``."""
        first, last = self._count, self._count + size
        if last > len(self._labels):
            self.reserve(max(size, len(self._labels)))
        self._ranges[name, dim] = range(first, last)
        self._count = last
        self._sizes[first], self._leads[first] = size, first
        return self._labels[first:last]

    @property
    def _parent(self) -> Tensor:
        """For every label one of its class that is lower, int64 ``(capacity,)``."""
        if self._parents is None:
            self._parents = _identity(len(self._labels))
        return self._parents[1]

    @property
    def ranges(self) -> dict[tuple[str, int], range]:
        """The labels of every ``(tensor name, dimension)``."""
        return self._ranges

    def roots(self, labels: Tensor) -> Tensor:
        """The representative of each label's class, which is its lowest label; 0 stays 0."""
        self._write_down()
        flat = labels.reshape(-1)
        root = self._parent.index_select(0, flat)
        higher = self._parent.index_select(0, root)
        if not torch.equal(higher, root):
            while not torch.equal(higher, root):
                root, higher = higher, self._parent.index_select(0, higher)
            # The next look-up takes one step. Not `put_`, which a Trainer(deterministic=True) forbids.
            self._parent.scatter_(0, flat, root)
        return root.view(labels.shape)

    def all_roots(self) -> Tensor:
        """The representative of every label, with that of ``FIXED`` at its head, ``(labels + 1,)``.

        Good until classes are united once more.
        """
        self._write_down()
        root = self._parent[: self._count]
        while not torch.equal(higher := root.index_select(0, root), root):
            root.copy_(higher)
        return root

    def apart(self, first: int, second: int) -> bool:
        """Whether two labels are of different classes."""
        self._write_down()
        return self._root(first) != self._root(second)

    def _root(self, label: int) -> int:
        if self._parents is None:
            return label
        numbers, _ = self._parents
        while (higher := numbers[label]) != label:
            label = higher
        return label

    def distinct(self, labels: Tensor) -> bool:
        """Whether it is plain at first sight that all these labels are of different classes."""
        return self._by_dimensions and self.whole(labels) is not None

    def whole(self, labels: Tensor) -> int | None:
        """The first label of the dimension whose labels these are, in their order; ``None`` if of no dimension."""
        first = (labels.data_ptr() - self._labels.data_ptr()) // self._labels.element_size()
        return first if self._sizes.get(first) == labels.numel() and labels.is_contiguous() else None

    def unite(self, first: Tensor, second: Tensor, reason: str) -> None:
        """Join the classes of two label tensors of one shape, element by element.

        A label that meets a fixed element is blocked for ``reason``.
        """
        first, second = first.reshape(-1), second.reshape(-1)
        ours, theirs = self.whole(first), self.whole(second)
        if ours is not None and theirs is not None:
            self._align(ours, theirs)
        else:
            self._unite(first, second, reason)

    def _align(self, first: int, second: int) -> None:
        """Join two dimensions of one length, by their first labels."""
        low, high = sorted((self._lead(first), self._lead(second)))
        if low != high:
            self._leads[high] = low
            self._unwritten.add(high)
            self.version += 1

    def _lead(self, first: int) -> int:
        while (higher := self._leads[first]) != first:
            first = higher
        return first

    def _write_down(self) -> None:
        """Make of the unions of dimensions unions of labels."""
        while self._unwritten:
            first = self._unwritten.pop()
            lead, size = self._lead(first), self._sizes[first]
            if self._by_dimensions:
                self._parent[first : first + size] = self._labels[lead : lead + size]
            else:
                self._unite(self._labels[lead : lead + size], self._labels[first : first + size], "")

    def _unite(self, first: Tensor, second: Tensor, reason: str) -> None:
        free = torch.minimum(first, second) != FIXED
        if not bool(free.all()):
            self.block(torch.maximum(first, second)[~free], reason)
            first, second = first[free], second[free]
            if not len(first):
                return
        one, other = self.roots(first), self.roots(second)
        if torch.equal(one, other):
            return
        self._by_dimensions = False
        self.version += 1
        low, high = torch.minimum(one, other), torch.maximum(one, other)
        # A root with several lower partners takes the lowest of them and meets the others in the next round.
        while not torch.equal(self._parent.scatter_reduce_(0, high, low, "amin").index_select(0, high), low):
            one, other = self.roots(low), self.roots(high)
            low, high = torch.minimum(one, other), torch.maximum(one, other)

    def block(self, labels: Tensor, reason: str) -> None:
        """Forbid the removal of all the classes named by ``labels``; the first reason given is the one reported."""
        number = self._reason_ids.setdefault(reason, len(self._reasons))
        if number == len(self._reasons):
            self._reasons.append(reason)
        flat = labels.reshape(-1)
        free = self._reason[flat] == 0
        if bool(free.any()):
            self._blocks += 1
            self._reason[flat] = torch.where(free, number, self._reason[flat])

    @property
    def changes(self) -> int:
        """How often something was united that was not, or blocked that was not by itself."""
        return self.version + self._blocks

    def blocked(self) -> Tensor:
        """Whether the class with this root may not be removed, bool ``(labels + 1,)``; ``FIXED`` may not."""
        blocked = self.reasons() >= 0
        blocked[FIXED] = True
        return blocked

    def reasons(self) -> Tensor:
        """By root, the number of the earliest reason why its class is blocked, int32; -1 where it is not."""
        labels = self._reason.nonzero().squeeze(1)
        labels = labels[labels != FIXED]
        none = len(self._reasons)
        first = torch.full((self._count,), none, dtype=torch.int32)
        first.scatter_reduce_(0, self.roots(labels), self._reason[labels], "amin")
        return first.masked_fill_(first == none, -1)

    def condensed(self) -> ChannelUnionFind:
        """The same with two labels for each dimension, where those stand for all; or else these labels themselves.

        They do as long as only whole dimensions were united, and none is blocked in part.
        """
        blocked = self._blocked_dimensions() if self._by_dimensions else None
        if blocked is None:
            return self
        few = ChannelUnionFind()
        few.reserve(2 * len(self._ranges))
        few._count = len(few._labels)
        few._reasons, few._reason_ids = self._reasons, self._reason_ids
        both = {own.start: 1 + 2 * number for number, own in enumerate(self._ranges.values())}
        few._ranges = {where: range(both[own.start], both[own.start] + 2) for where, own in self._ranges.items()}
        leads = torch.tensor([both[self._lead(first)] for first in both], dtype=torch.int64)
        few._parent[1:] = torch.stack([leads, leads + 1], dim=1).flatten()
        for first, reason in blocked.items():
            few._reason[both[first] : both[first] + 2] = reason
        return few

    def in_condensed(self, labels: Tensor) -> Tensor:
        """The labels that stand for these, and for their whole dimensions, in what ``condensed`` returns."""
        starts = torch.tensor([own.start for own in self._ranges.values()], dtype=torch.int64)
        numbers = torch.searchsorted(starts, labels[labels != FIXED], right=True) - 1
        return 1 + 2 * numbers.unique()

    def _blocked_dimensions(self) -> dict[int, int] | None:
        """Why dimensions are blocked, by their first labels; ``None`` if one is in part, or for several reasons."""
        blocked: dict[int, int] = {}
        starts = torch.tensor(list(self._sizes), dtype=torch.int64)
        labels = self._reason[1 : self._count].nonzero().squeeze(1) + 1
        for number in (torch.searchsorted(starts, labels, right=True) - 1).unique_consecutive().tolist():
            first = int(starts[number])
            reasons = self._reason[first : first + self._sizes[first]]
            if not bool((reasons == reasons[0]).all()):
                return None
            blocked[first] = int(reasons[0])
        return blocked

    def reason(self, number: int) -> str:
        """The reason of this number."""
        return self._reasons[number]


def _identity(size: int) -> tuple[array[int], Tensor]:
    """The numbers from 0 on twice, in the same memory: to look up single ones, and many."""
    numbers = array("q", [0]) * size
    tensor = torch.frombuffer(numbers, dtype=torch.int64)
    return numbers, torch.arange(size, out=tensor)
