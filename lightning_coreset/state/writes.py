"""Sees what is written into tensors that are too large to be copied beforehand, and undoes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lightning_coreset._compat import DispatchMode, schema_of, storage_number


class UndoneWrites(DispatchMode):
    """Copies a tensor before the first operation that writes into its memory, in whatever view of it.

    Of a model whose step writes into no parameter nothing is copied. A momentum encoder is.

    Args:
        tensors: The tensors to watch.
    """

    supports_higher_order_operators = True

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        # The same memory by another tensor object: it stays as it is when `tensor.data` is set to something else.
        self._before = [(tensor, tensor.data) for tensor in tensors]
        self._by_memory: dict[int, list[Tensor]] = {}
        for _, memory in self._before:
            number = _memory(memory)
            if number is not None:
                self._by_memory.setdefault(number, []).append(memory)
        self._copies: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, after a look at what it writes into."""
        kwargs = kwargs or {}
        self.see(func, args, kwargs)
        return func(*args, **kwargs)

    def concerns(self, func: Any) -> bool:
        """Whether an operator writes into anything."""
        return bool(written_arguments(func))

    def see(self, func: Any, args: Any, kwargs: Any) -> None:
        """Keep what an operation is about to write into; for another mode that sees all operations in any case."""
        for position, name in written_arguments(func):
            value = args[position] if position < len(args) else kwargs.get(name)
            for tensor in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(tensor, Tensor):
                    self._keep(tensor)

    def _keep(self, tensor: Tensor) -> None:
        number = _memory(tensor)
        for memory in self._by_memory.pop(number, ()) if number is not None else ():
            self._copies.append((memory, memory.clone()))

    @property
    def nothing_to_undo(self) -> bool:
        """Whether all tensors have the memory that they had, and none was written into where this saw it."""
        return not self._copies and all(_is_same(tensor, memory) for tensor, memory in self._before)

    @torch.no_grad()
    def undo(self) -> None:
        """Give the tensors their memory back, and the memory its content; may be called again."""
        for tensor, memory in self._before:
            if not _is_same(tensor, memory):
                tensor.data = memory
        for memory, content in self._copies:
            memory.copy_(content)


def _is_same(tensor: Tensor, memory: Tensor) -> bool:
    one, other = (
        (each.shape, each.dtype, each.device, each.layout, _memory(each), _position(each)) for each in (tensor, memory)
    )
    return one == other


def _position(tensor: Tensor) -> tuple[Any, ...] | None:
    return (tensor.storage_offset(), tensor.stride()) if tensor.layout is torch.strided else None


def _memory(tensor: Tensor) -> int | None:
    try:
        return storage_number(tensor)
    except (RuntimeError, NotImplementedError):  # sparse tensors and others that have none of their own
        return None


@cache
def written_arguments(function: Callable[..., Any]) -> tuple[tuple[int, str], ...]:
    """The places and names of the arguments that an operator writes into."""
    if not hasattr(function, "overloadpacket"):
        return ()
    arguments = schema_of(function).arguments
    return tuple((place, argument.name) for place, argument in enumerate(arguments) if argument.is_write)
