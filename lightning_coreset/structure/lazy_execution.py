"""Running a network for its shapes: what nothing asks the values of is put off, and mostly never computed.

The engine needs to know of which operations a network consists, not their values. From the first large product on,
results are therefore tensors of the right form without values, and what was not computed is noted on a tape.
The tape is run, in order, as soon as a value is needed: a number that the network's code reads, a
mask, a shape that depends on values, a write into another tensor, an operator that is not torch's own. A tensor that
outlives the run, such as a cache that the network keeps, gets its values at the end.

On large networks this makes the analysis three to nine times as fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_coreset._compat import can_defer, outside_of_modes, schema_of
from lightning_coreset.structure.op_call import tensors_among
from lightning_coreset.structure.output_meta import empty_result, is_large_product
from lightning_coreset.structure.references import PLAIN_TYPES, held_elsewhere, storage_of

_READS = frozenset(
    {
        *(Tensor.numpy, Tensor.tolist, Tensor.data_ptr, Tensor.untyped_storage, Tensor.storage, Tensor.share_memory_),
        *(Tensor.__array__, Tensor.__dlpack__, Tensor.__deepcopy__, Tensor.__reduce_ex__, Tensor.__repr__),
        Tensor.__format__,
        *(Tensor.data.__get__, Tensor.data.__set__),  # type: ignore[attr-defined]
    }
)
"""How code gets at the values of a tensor without an operation that a dispatch mode sees."""


class _Call(NamedTuple):
    """An operation that was put off; ``results`` are the tensors that await its values, none where it is in place."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: tuple[Tensor, ...]


class _Kind(NamedTuple):
    """What the schema says of an operator.

    Attributes:
        is_view: Whether its result is a view.
        must_run_now: Whether it can never wait: its result is a number, or it changes what a view is of, or it is not
            torch's own, so that nobody knows whether what it says of its result's form is right.
        dynamic_shape: Whether the shape of its result depends on values.
        writes: The arguments that it writes into, by name.
        first: The name of its first argument.
    """

    is_view: bool
    must_run_now: bool
    dynamic_shape: bool
    writes: tuple[str, ...]
    first: str | None


@cache
def _kind(function: Any) -> _Kind:
    tags, arguments = function.tags, schema_of(function).arguments
    foreign = function.namespace != "aten"
    return _Kind(
        function.is_view and torch.Tag.inplace_view not in tags and not foreign,
        torch.Tag.inplace_view in tags or torch.Tag.data_dependent_output in tags or foreign,
        torch.Tag.dynamic_output_shape in tags,
        tuple(argument.name for argument in arguments if argument.is_write),
        arguments[0].name if arguments else None,
    )


class LazyExecutor:
    """Runs operations, and puts off those whose values nothing has asked for yet.

    Only on the CPU, where memory that is never written to costs nothing.

    Args:
        on_read: Called when the network's code reads values past the dispatcher.

    Attributes:
        materialized: How many operations had to be computed after all.
    """

    def __init__(self, on_read: Callable[[], None] = lambda: None) -> None:
        self.materialized = 0
        self._on_read = on_read
        self._torch_can_defer = can_defer()
        self._tape: list[_Call] = []
        # Tensors without values yet, by identity, and their storages. Both numbers stay theirs as long as the tensors
        # are kept alive here.
        self._pending: dict[int, Tensor] = {}
        self._storages: set[int] = set()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around a run of the network: sees the reads of values that are no operations."""
        with _Reads(self._before_read):
            yield

    def _before_read(self) -> None:
        self._on_read()
        self.materialize()

    def run(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: list[Tensor]) -> Any:
        """The result of an operation on ``tensors``, now or later."""
        if self._tape and any(map(self._is_pending, tensors)):
            return self._continue(function, args, kwargs, tensors)
        if self._torch_can_defer and is_large_product(function, tensors) and all(map(_is_plain, tensors)):
            return self._defer(function, args, kwargs, tensors)
        if self._tape and _kind(function).writes:
            self.materialize()  # what it writes into may be read by what stands on the tape
        return function(*args, **kwargs)

    def run_function(
        self, function: Callable[..., Any], args: tuple[Any, ...], empty: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """The results of a function that is made of operations, which no mode sees, now or later.

        Args:
            function: The function; it writes into none of its arguments.
            args: Its arguments.
            empty: Makes tensors of the form of its results.
        """
        tensors = tensors_among(args)
        with outside_of_modes(), torch.no_grad():
            if all(map(_is_plain, tensors)) and not torch.is_autocast_enabled("cpu"):
                results = empty()
                self._tape.append(_Call(function, args, {}, results))
                self._keep(results)
                return results
            self.materialize()
            return tuple(function(*args))

    def _continue(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: list[Tensor]) -> Any:
        if _kind(function).is_view:
            result = function(*args, **kwargs)  # shows the storage that the values will be written to
            self._keep(_each(result))
            return result
        return self._defer(function, args, kwargs, tensors)

    def _defer(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: list[Tensor]) -> Any:
        if not self._can_defer(function, args, tensors):
            return self._run_now(function, args, kwargs)
        try:
            result = empty_result(function, args, kwargs)
        except Exception:  # the form is not known beforehand, or the call is wrong, which it will say itself
            return self._run_now(function, args, kwargs)
        if _kind(function).writes:
            self._tape.append(_Call(function, args, kwargs, ()))
            return args[0]
        results = tuple(one for one in _each(result) if isinstance(one, Tensor))
        self._tape.append(_Call(function, args, kwargs, results))
        self._keep(results)
        return result

    def _can_defer(self, function: Any, args: tuple[Any, ...], tensors: list[Tensor]) -> bool:
        kind = _kind(function)
        if kind.must_run_now or not all(map(_is_plain, tensors)):
            return False
        # Masks and positions determine shapes, and rules of the engine read them.
        if any(not tensor.is_floating_point() and self._is_pending(tensor) for tensor in tensors):
            return False
        if kind.dynamic_shape and any(map(_is_mask, tensors)):
            return False
        # A write into a tensor with values: others may be views of it.
        return not kind.writes or (kind.writes == (kind.first,) and bool(args) and self._is_pending(args[0]))

    def _run_now(self, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        self.materialize()
        return function(*args, **kwargs)

    def _is_pending(self, tensor: Tensor) -> bool:
        """Whether a tensor, or what it is another view of, has no values yet."""
        return id(tensor) in self._pending or storage_of(tensor) in self._storages

    def _keep(self, results: Any) -> None:
        for one in results:
            if isinstance(one, Tensor):
                self._pending[id(one)] = one
                self._storages.add(storage_of(one))

    def materialize(self) -> None:
        """Compute what was put off: all pending tensors have their values then."""
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
        self._tape, self._pending, self._storages = [], {}, set()

    def close(self) -> None:
        """At the end of a run, its outputs let go: give values to what is still held by others, and forget the rest."""
        references = (one for call in self._tape for one in _held_by(call))
        if self._pending and held_elsewhere(list(self._pending.values()), references):
            self.materialize()
        self.forget()


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
        type(tensor) in PLAIN_TYPES
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
