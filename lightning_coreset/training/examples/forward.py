"""Find out how a module's own ``forward`` takes what is in a batch."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from lightning_coreset.nested import attributes_of, tensors_in
from lightning_coreset.structure import output_tensors
from lightning_coreset.training.examples.batches import fresh

_UNKNOWN = re.compile(r"unexpected keyword argument '(\w+)'")

_MANY = 16
"""So many arguments are never a batch's."""


class ForwardRun:
    """Runs ``forward`` on a batch, in the first way that works, and in the same way ever after.

    As ``predict_step`` does by default, on the whole batch; on its entries by name; on its first entries.

    Args:
        way: The number of the way, if it is known.
    """

    def __init__(self, way: int | None = None) -> None:
        self.way = way

    def __call__(self, module: nn.Module, batch: Any) -> list[Tensor]:
        """Run it on a copy of the batch."""
        failures: list[Exception] = []
        for number, (args, kwargs) in enumerate(_ways(module.forward, batch)):
            if self.way not in (None, number):
                continue
            try:
                result = _call(module, args, kwargs)
            except NotImplementedError:  # it is not meant to be called
                raise
            except Exception as error:
                failures.append(error)
            else:
                self.way = number
                return output_tensors(result)
        raise failures[0] if failures else TypeError("forward takes no inputs")


def _call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Call it without those keyword arguments that it hands on to a function which does not take them."""
    while True:
        try:
            return module(*fresh(args), **fresh(kwargs))
        except TypeError as error:
            unknown = _UNKNOWN.search(str(error))
            if unknown is None or unknown[1] not in kwargs:
                raise
            kwargs = {name: value for name, value in kwargs.items() if name != unknown[1]}


def _ways(forward: Callable[..., Any], batch: Any, depth: int = 2) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments and keyword arguments for ``forward`` that a batch offers, the likeliest first."""
    names, required, takes_all = _parameters(forward)
    fields = _fields(batch)
    yield (batch,), {}
    named = {name: value for name, value in fields.items() if name in names or (takes_all and not name.isdigit())}
    if named and len(named) >= required:
        yield (), named
    if isinstance(batch, tuple | list) and batch:
        for count in dict.fromkeys((required, min(len(names), len(batch)))):
            if 1 < count <= min(len(batch), _MANY):
                yield tuple(batch[:count]), {}
    inner = [value for value in fields.values() if next(tensors_in(value), None) is not None]
    if inner and depth > 0:
        yield from _ways(forward, inner[0], depth - 1)


def _parameters(forward: Callable[..., Any]) -> tuple[list[str], int, bool]:
    """Names of the arguments that it takes, how many of them it needs, and whether it takes any others by name."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(forward).parameters.values()
    taken = [one for one in parameters if one.kind in kinds or one.kind is inspect.Parameter.KEYWORD_ONLY]
    required = sum(one.default is inspect.Parameter.empty for one in taken)
    return [one.name for one in taken], required, any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)


def _fields(batch: Any) -> dict[str, Any]:
    """The entries of a batch by their names or numbers."""
    if isinstance(batch, Tensor):
        return {}
    if isinstance(batch, Mapping):
        return {str(key): value for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return dict(zip(batch._fields, batch, strict=True))  # type: ignore[attr-defined]
    if isinstance(batch, tuple | list):
        return {str(number): value for number, value in enumerate(batch)}
    return attributes_of(batch)
