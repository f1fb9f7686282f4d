"""Atoms: one integer for each index of each dimension of each parameter, joined into classes by a union-find."""

from __future__ import annotations

import torch
from torch import Tensor

FIXED = 0
"""The label of an element that no pruning can remove."""


class Atoms:
    """A union-find over all atoms, as flat tensors, with the reason why a class may not be removed.

    Atoms that must live and die together are united. Nothing is decided on the way: a class is blocked if any of its
    atoms is, which is known when the whole network has been followed. Every atom points to one of its class that is
    lower, the lowest to itself.
    """

    def __init__(self) -> None:
        self._ranges: dict[tuple[str, int], range] = {}
        self._parent = torch.zeros(1, dtype=torch.int64)
        self._reason = torch.zeros(1, dtype=torch.int64)
        self._count = 1
        self._reasons: list[str] = [""]
        self._reason_ids: dict[str, int] = {"": 0}

    def allocate(self, name: str, dim: int, size: int) -> Tensor:
        """New atoms for dimension ``dim`` of the tensor ``name``, shape ``(size,)``."""
        first, self._count = self._count, self._count + size
        self._ranges[name, dim] = range(first, self._count)
        if self._count > len(self._parent):
            known, room = len(self._parent), max(self._count, 2 * len(self._parent))
            self._parent = torch.cat([self._parent, torch.arange(known, room)])
            self._reason = torch.cat([self._reason, torch.zeros(room - known, dtype=torch.int64)])
        return torch.arange(first, self._count)

    @property
    def ranges(self) -> dict[tuple[str, int], range]:
        """The atoms of every ``(tensor name, dimension)``."""
        return self._ranges

    def roots(self, labels: Tensor) -> Tensor:
        """The representative of each label's class, which is its lowest atom; 0 stays 0."""
        root = self._parent.take(labels)
        higher = self._parent.take(root)
        if torch.equal(higher, root):
            return root
        while not torch.equal(higher, root):
            root, higher = higher, self._parent.take(higher)
        # The next look-up takes one step. Not `put_`, which a Trainer(deterministic=True) forbids.
        self._parent.scatter_(0, labels.reshape(-1), root.reshape(-1))
        return root

    def all_roots(self) -> Tensor:
        """The representative of every atom, with that of ``FIXED`` at its head, ``(atoms + 1,)``."""
        root = self._parent[: self._count].clone()
        while not torch.equal(higher := root.index_select(0, root), root):
            root = higher
        return root

    def unite(self, first: Tensor, second: Tensor, reason: str) -> None:
        """Join the classes of two label tensors of one shape, element by element.

        A label that meets a fixed element is blocked for ``reason``.
        """
        first, second = first.reshape(-1), second.reshape(-1)
        one, other = self.roots(first), self.roots(second)
        low, high = torch.minimum(one, other), torch.maximum(one, other)
        if not bool(low.all()):
            self.block(torch.maximum(first, second)[low == FIXED], reason)
            low, high = low[low != FIXED], high[low != FIXED]
        # A root with several lower partners takes the lowest of them and meets the others in the next round.
        while not torch.equal(self._parent.scatter_reduce_(0, high, low, "amin").take(high), low):
            one, other = self.roots(low), self.roots(high)
            low, high = torch.minimum(one, other), torch.maximum(one, other)

    def block(self, labels: Tensor, reason: str) -> None:
        """Forbid the removal of all the classes named by ``labels``; the first reason given is the one reported."""
        number = self._reason_ids.setdefault(reason, len(self._reasons))
        if number == len(self._reasons):
            self._reasons.append(reason)
        atoms = labels.reshape(-1)
        self._reason[atoms] = torch.where(self._reason[atoms] == 0, number, self._reason[atoms])

    def blocked(self) -> Tensor:
        """Whether the class with this root may not be removed, bool ``(atoms + 1,)``; ``FIXED`` may not."""
        blocked = self._first_reasons() < len(self._reasons)
        blocked[FIXED] = True
        return blocked

    def reason(self, roots: Tensor) -> str | None:
        """Why the first of these classes is blocked that is (the earliest of its reasons); ``None`` if none is."""
        number = self._first_reasons()[roots]
        blocked = number[number < len(self._reasons)]
        return self._reasons[int(blocked[0])] if len(blocked) else None

    def _first_reasons(self) -> Tensor:
        """By root, the number of the earliest reason of its class; as many as there are reasons where there is none."""
        atoms = self._reason.nonzero().squeeze(1)
        atoms = atoms[atoms != FIXED]
        first = torch.full((self._count,), len(self._reasons))
        return first.scatter_reduce_(0, self.roots(atoms), self._reason[atoms], "amin")
