"""What is known of tensors, by identity, without keeping them alive."""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

from torch import Tensor

Known = TypeVar("Known")


class IdentityWeakMap(Generic[Known]):
    """A mapping from tensors to what is known of them.

    As torch's ``WeakTensorKeyDictionary``, in a tenth of its time: only asked of tensors that somebody holds, it can do
    with plain weak references. What was known of a tensor that is gone stays until the mapping goes.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], Known]] = {}

    def get(self, tensor: Tensor) -> Known | None:
        """What is known of a tensor, if anything."""
        entry = self._entries.get(id(tensor))
        # The number of a tensor that is gone may have become another one's.
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def __contains__(self, tensor: Tensor) -> bool:
        return self.get(tensor) is not None

    def __setitem__(self, tensor: Tensor, info: Known) -> None:
        self._entries[id(tensor)] = weakref.ref(tensor), info

    def forget(self, tensor: Tensor) -> None:
        """Know nothing of a tensor any more."""
        self._entries.pop(id(tensor), None)
