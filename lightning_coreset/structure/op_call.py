"""One aten operation, taken apart by its schema."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from torch import Tensor

from lightning_coreset._compat import schema_of


@dataclass(frozen=True)
class _Signature:
    """What the schema of an aten operation says: all arguments in their order, with their defaults."""

    name: str
    inplace: bool
    defaults: Mapping[str, Any]


@cache
def _signature(function: Any) -> _Signature:
    schema = schema_of(function)
    name = schema.name.rpartition("::")[2]
    inplace = name.endswith("_") and not name.startswith("__")
    defaults = {argument.name: argument.default_value for argument in schema.arguments}
    return _Signature(name[:-1] if inplace else name, inplace, defaults)


@dataclass(frozen=True, eq=False)
class OpCall:
    """One aten call, with its result.

    Attributes:
        name: Without namespace and without the underscore of the in-place form: ``"relu"``.
        inplace: Whether it writes into its first argument.
        tensors: All tensors among the arguments.
        results: All tensors among the results.
    """

    name: str
    inplace: bool
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    tensors: list[Tensor]
    results: list[Tensor]

    @classmethod
    def read(
        cls, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: list[Tensor], result: Any
    ) -> OpCall:
        """Take the call, in which ``tensors`` were found, apart by the schema of ``function``."""
        sign = _signature(function)
        return cls(sign.name, sign.inplace, function, args, kwargs, tensors, tensors_among((result,)))

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """All arguments by the names of aten's schema."""
        defaults = _signature(self.function).defaults
        return {**defaults, **dict(zip(defaults, self.args, strict=False)), **self.kwargs}

    @property
    def numbers(self) -> tuple[float | str | None, ...]:
        """The numbers and strings among the arguments, such as a negative slope, in the order of the schema.

        Keyword arguments and defaults count, and so does ``None``: a clamp from above is none from below.
        """
        values = list(self.arguments.values())[1:]
        return tuple(value for value in values if value is None or isinstance(value, (int, float, str)))

    def dims(self, argument: str, ndim: int) -> list[int]:
        """A dimension argument as a list of non-negative dimensions; all of them where it is not given."""
        value = self.arguments.get(argument)
        if value is None or value == []:
            return list(range(ndim))
        return [dim % max(ndim, 1) for dim in ([value] if isinstance(value, int) else value)]


def tensors_among(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among values, one of which may be a list of them, but no nest: the schemas of aten know none."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [one for one in value if isinstance(one, Tensor)]
    return found
