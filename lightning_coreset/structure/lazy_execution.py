"""Running a network for its shapes: arithmetic that nothing asks for is put off, and mostly never done.

The engine wants to know of which operations a network consists, not what comes out of them. From the first large
product on, results are therefore tensors of the right form whose values are still to come, and what was not done stands
on a tape. The tape is played, in order, as soon as anything could tell the difference: a number that the network's code
reads, a mask, a shape that depends on values, a write into another tensor, an operation that is not known. A tensor
that outlives the run, such as a cache that the network keeps, gets its values at the end.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_coreset._compat import can_defer, outside_of_modes, schema_of, storage_number, storage_users, view_base
from lightning_coreset.structure.output_meta import empty_result, is_large_product

_READS = frozenset(
    {
        *(Tensor.numpy, Tensor.tolist, Tensor.data_ptr, Tensor.untyped_storage, Tensor.storage, Tensor.share_memory_),
        *(Tensor.__array__, Tensor.__dlpack__, Tensor.__deepcopy__, Tensor.__reduce_ex__, Tensor.__repr__),
        Tensor.__format__,
        *(Tensor.data.__get__, Tensor.data.__set__),  # type: ignore[attr-defined]
    }
)
"""How code gets at the values of a tensor without an operation that a dispatch mode sees."""

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)


class _Call(NamedTuple):
    """An operation that was put off: what it is to write into ``results``, which are empty where it is in place."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: tuple[Tensor, ...]


class _Kind(NamedTuple):
    """What an operation is, as far as its schema tells.

    Attributes:
        shows: Whether its result is a view.
        hurries: Whether it can never wait, for its result is a number, or it changes what a view is of.
        counts: Whether the shape of its result depends on values.
        writes: The arguments that it writes into, by name; ``first`` is that of its first one.
    """

    is_view: bool
    must_run_now: bool
    dynamic_shape: bool
    writes: tuple[str, ...]
    first: str | None


@cache
def _kind(function: Any) -> _Kind:
    tags, arguments = function.tags, schema_of(function).arguments
    return _Kind(
        function.is_view and torch.Tag.inplace_view not in tags,
        torch.Tag.inplace_view in tags or torch.Tag.data_dependent_output in tags,
        torch.Tag.dynamic_output_shape in tags,
        tuple(argument.name for argument in arguments if argument.is_write),
        arguments[0].name if arguments else None,
    )


class LazyExecutor:
    """Runs operations, and puts off those whose values nothing has asked for yet.

    Only on the CPU, where memory that is never written to costs nothing.

    Attributes:
        played: How many operations had to be done after all.
    """

    def __init__(self) -> None:
        self.materialized = 0
        self._can_defer = can_defer()
        self._tape: list[_Call] = []
        # Tensors whose values are to come, by identity, and the memory that these will be written to. Both numbers hold
        # because the tensors are kept alive here.
        self._pending: dict[int, Tensor] = {}
        self._memory: set[int] = set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around a run of the network: sees the reads of values that are no operations."""
        with _Reads(self.materialize):
            yield

    def run(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: list[Tensor]) -> Any:
        """The result of an operation on ``tensors``, now or later."""
        if self._tape and any(map(self._waits, tensors)):
            return self._go_on(function, args, kwargs, tensors)
        if self._can_defer and is_large_product(function, tensors) and all(map(_is_plain, tensors)):
            return self._put_off(function, args, kwargs, tensors)
        if self._tape and _kind(function).writes:
            self.materialize()  # what it writes into may be read by what stands on the tape
        return function(*args, **kwargs)

    def _go_on(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: list[Tensor]) -> Any:
        if _kind(function).is_view:
            result = function(*args, **kwargs)  # shows the memory that the values will come to
            self._keep(result if isinstance(result, (list, tuple)) else [result])
            return result
        return self._put_off(function, args, kwargs, tensors)

    def _put_off(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: list[Tensor]) -> Any:
        if not self._can_wait(function, args, tensors):
            return self._now(function, args, kwargs)
        try:
            result = empty_result(function, args, kwargs)
        except Exception:  # its form is not known beforehand; or the operation is wrong, which it will say itself
            return self._now(function, args, kwargs)
        if _kind(function).writes:
            self._tape.append(_Call(function, args, kwargs, ()))
            return args[0]
        results = tuple(one for one in _each(result) if isinstance(one, Tensor))
        self._tape.append(_Call(function, args, kwargs, results))
        self._keep(results)
        return result

    def _can_wait(self, function: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> bool:
        kind = _kind(function)
        if kind.must_run_now or not all(map(_is_plain, tensors)):
            return False
        # Masks and positions decide over shapes, and rules of the engine look into them.
        if any(not tensor.is_floating_point() and self._waits(tensor) for tensor in tensors):
            return False
        if kind.dynamic_shape and any(map(_is_mask, tensors)):
            return False
        # A write into a tensor with values: others may be views of it.
        return not kind.writes or (kind.writes == (kind.first,) and bool(args) and self._waits(args[0]))

    def _now(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        self.materialize()
        return function(*args, **kwargs)

    def _waits(self, tensor: Tensor) -> bool:
        """Whether the values of a tensor, or of what it is another view of, are to come."""
        return id(tensor) in self._pending or _memory(tensor) in self._memory

    def _keep(self, results: Any) -> None:
        for one in results:
            if isinstance(one, Tensor):
                self._pending[id(one)] = one
                self._memory.add(_memory(one))

    def materialize(self) -> None:
        """Do what was put off: all pending tensors have their values then."""
        tape = self._tape
        self.forget()
        self.materialized += len(tape)
        # A read of values comes from outside of the engine, which is not to see these operations a second time.
        with outside_of_modes(), torch.no_grad():
            for call in tape:
                found = call.function(*call.args, **call.kwargs)
                values = (one for one in _each(found) if isinstance(one, Tensor))
                for result, value in zip(call.results, values, strict=False):
                    result.copy_(value)

    def forget(self) -> None:
        """Let go of all that was put off."""
        self._tape, self._pending, self._memory = [], {}, set()

    def close(self) -> None:
        """At the end of a run, its outputs let go: give values to what is still held by others, and forget the rest."""
        if self._outlives():
            self.materialize()
        self.forget()

    def _outlives(self) -> bool:
        """Whether anything but this object holds a pending tensor, told by the references that are not ours."""
        if not self._pending:
            return False
        own = list(self._pending.values())
        lying = Counter(map(_memory, own))
        single = torch.empty(1)
        unseen = storage_users(_memory(single)) - 1
        if any(storage_users(memory) - unseen > count for memory, count in lying.items()):
            return True  # a tensor that no operation made, such as a ``Parameter`` around another one
        held = Counter(id(one) for call in self._tape for one in _held_by(call))
        viewed = {id(base) for one in own if (base := view_base(one)) is not None}
        usual = _references()
        return any(sys.getrefcount(one) - held[id(one)] > usual[id(one) in viewed] for one in own)


def _references() -> tuple[int, int]:
    """What ``getrefcount`` says of a tensor that only a dict and a list hold, and of one that has a view besides."""
    pending = {number: torch.empty(1) for number in range(2)}
    view = pending[1].view(1)
    own = list(pending.values())
    alone, viewed = (sys.getrefcount(one) for one in own)
    del view
    return alone, viewed


def _memory(tensor: Tensor) -> int:
    """A number for the memory that a tensor lies on; 0 where it has none of its own."""
    return storage_number(tensor) if type(tensor) in _PLAIN and tensor.layout is torch.strided else 0


class _Reads(TorchFunctionMode):
    """Calls ``before`` when a tensor's values are about to be read past the dispatcher."""

    def __init__(self, before: Callable[[], None]) -> None:
        super().__init__()
        self._before = before

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in _READS:
            self._before()
        return function(*args, **(kwargs or {}))


def _is_plain(tensor: Tensor) -> bool:
    """A dense tensor on the CPU and of no other class, which could do things of its own."""
    return (
        type(tensor) in _PLAIN
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not tensor.is_complex()
    )


def _is_mask(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.bool, torch.uint8)


def _each(result: Any) -> tuple[Any, ...]:
    return tuple(result) if isinstance(result, (list, tuple)) else (result,)


def _held_by(call: _Call) -> Iterator[Tensor]:
    """Every reference that a call on the tape has to a tensor."""
    for value in (*call.args, *call.kwargs.values(), call.results):
        yield from (one for one in _each(value) if isinstance(one, Tensor))
