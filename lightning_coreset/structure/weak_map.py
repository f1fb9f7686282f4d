"""What is known of tensors, by identity, without keeping them alive."""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

from torch import Tensor

Known = TypeVar("Known")


class IdentityWeakMap(Generic[Known]):
    """A mapping from tensors to what is known of them.

    As torch's ``WeakTensorKeyDictionary``, in a tenth of its time: only asked of tensors that somebody holds, it can do
    with plain weak references.

    Args:
        forgets: Whether what is known of a tensor goes with it, as it must where that is large; else it stays until the
            mapping goes, which takes less time.
    """

    def __init__(self, *, forgets: bool = False) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], Known]] = {}
        self._forgets = forgets

    def get(self, tensor: Tensor) -> Known | None:
        """What is known of a tensor, if anything."""
        entry = self._entries.get(id(tensor))
        # The number of a tensor that is gone may have become another one's.
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def __contains__(self, tensor: Tensor) -> bool:
        return self.get(tensor) is not None

    def __setitem__(self, tensor: Tensor, info: Known) -> None:
        if not self._forgets:
            self._entries[id(tensor)] = weakref.ref(tensor), info
            return
        entries, number = self._entries, id(tensor)

        def forget(gone: weakref.ref[Tensor]) -> None:
            entry = entries.get(number)
            if entry is not None and entry[0] is gone:
                del entries[number]

        entries[number] = weakref.ref(tensor, forget), info

    def clear(self) -> None:
        """Know nothing of any tensor any more."""
        self._entries.clear()

    def forget(self, tensor: Tensor) -> None:
        """Know nothing of a tensor any more."""
        self._entries.pop(id(tensor), None)
