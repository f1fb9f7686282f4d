"""Which tensors show the same memory, as far as operations made them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from torch import Tensor

from lightning_coreset.structure.references import address_of


def same_view(view: Tensor, base: Tensor, other: Tensor) -> Tensor:
    """Of another tensor of the layout of ``base`` what a view of ``base`` shows."""
    offset = view.storage_offset() - base.storage_offset() + other.storage_offset()
    return other.as_strided(view.shape, view.stride(), offset)


class SharedMemory:
    """Tensors and their views, without keeping them alive."""

    def __init__(self) -> None:
        self._tensors: dict[int, list[weakref.ref[Tensor]]] = {}  # by the address of their memory

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Note a view and what it is a view of."""
        for tensor in tensors:
            if address := address_of(tensor):
                self._tensors.setdefault(address, []).append(weakref.ref(tensor))

    def others(self, tensor: Tensor) -> list[Tensor]:
        """All other tensors on the memory of ``tensor``, each once."""
        # Memory may have been freed and given to another tensor; references to those that lay there before are dead.
        references = self._tensors.get(address_of(tensor), ()) if self._tensors else ()
        alive = (reference() for reference in references)
        return list({id(other): other for other in alive if other is not None and other is not tensor}.values())
