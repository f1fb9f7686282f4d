"""Atoms: one integer for each index of each dimension of each parameter, joined into classes by a union-find."""

from __future__ import annotations

import torch
from torch import Tensor

FIXED = 0
"""The label of an element that no pruning can remove."""


class Atoms:
    """A union-find over all atoms, as flat tensors, with the reason why a class may not be removed.

    Atoms that must live and die together are united. Nothing is decided on the way: a class is blocked if any of its
    atoms is, which is known when the whole network has been followed.
    """

    def __init__(self) -> None:
        self._ranges: dict[tuple[str, int], range] = {}
        self._root = torch.zeros(1, dtype=torch.int64)
        self._reason = torch.zeros(1, dtype=torch.int64)
        self._reasons: list[str] = [""]
        self._reason_ids: dict[str, int] = {"": 0}

    def allocate(self, name: str, dim: int, size: int) -> Tensor:
        """New atoms for dimension ``dim`` of the tensor ``name``, shape ``(size,)``."""
        first = len(self._root)
        self._ranges[name, dim] = range(first, first + size)
        atoms = torch.arange(first, first + size)
        self._root = torch.cat([self._root, atoms])
        self._reason = torch.cat([self._reason, torch.zeros(size, dtype=torch.int64)])
        return atoms

    @property
    def ranges(self) -> dict[tuple[str, int], range]:
        """The atoms of every ``(tensor name, dimension)``."""
        return self._ranges

    def roots(self, labels: Tensor) -> Tensor:
        """The representative of each label's class; 0 stays 0."""
        return self._root[labels]

    def unite(self, first: Tensor, second: Tensor, reason: str) -> None:
        """Join the classes of two label tensors of one shape, element by element.

        A label that meets a fixed element is blocked for ``reason``.
        """
        first, second = first.reshape(-1), second.reshape(-1)
        fixed = (first == FIXED) != (second == FIXED)
        if bool(fixed.any()):
            self.block(torch.maximum(first, second)[fixed], reason)
        while True:
            one, other = self._root[first], self._root[second]
            apart = (one != other) & (one != FIXED) & (other != FIXED)
            if not bool(apart.any()):
                return
            low, high = torch.minimum(one, other)[apart], torch.maximum(one, other)[apart]
            # A root with several lower partners takes the lowest here and meets the others in the next round.
            self._root.scatter_reduce_(0, high, low, "amin")
            self._flatten()

    def _flatten(self) -> None:
        while True:
            root = self._root[self._root]
            if torch.equal(root, self._root):
                return
            self._root = root

    def block(self, labels: Tensor, reason: str) -> None:
        """Forbid the removal of all the classes named by ``labels``; the first reason given is the one reported."""
        number = self._reason_ids.setdefault(reason, len(self._reasons))
        if number == len(self._reasons):
            self._reasons.append(reason)
        atoms = labels.reshape(-1)
        self._reason[atoms] = torch.where(self._reason[atoms] == 0, number, self._reason[atoms])

    def reasons(self) -> dict[int, str]:
        """For the root of every blocked class, why it is blocked (the earliest of its reasons)."""
        atoms = torch.nonzero(self._reason).squeeze(1)
        atoms = atoms[atoms != FIXED]
        latest = len(self._reasons)
        earliest = torch.full_like(self._root, latest)
        earliest.scatter_reduce_(0, self._root[atoms], self._reason[atoms], "amin")
        blocked = torch.nonzero(earliest < latest).squeeze(1)
        return {root: self._reasons[int(earliest[root])] for root in blocked.tolist()}
