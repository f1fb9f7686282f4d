"""One call of an operator, taken apart by the operator's schema."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_coreset._compat import schema_of

EQUAL_ELEMENTS = frozenset(
    {
        *(torch.ops.aten.zeros, torch.ops.aten.ones, torch.ops.aten.full),
        *(torch.ops.aten.new_zeros, torch.ops.aten.new_ones, torch.ops.aten.new_full),
    }
)
"""What makes a tensor of equal elements out of a size."""


@dataclass(frozen=True)
class Signature:
    """What the schema of an operator says.

    Attributes:
        name: See ``OpCall``.
        defaults: All arguments in their order, with their default values.
        written: The arguments that the operator writes into.
        inplace: Whether the first argument is one of these.
        has_out: Whether the result goes into an argument ``out=``.
    """

    name: str
    defaults: Mapping[str, Any]
    written: tuple[str, ...]
    inplace: bool
    has_out: bool


@cache
def _signature(function: Any) -> Signature:
    arguments = schema_of(function).arguments
    qualified: str = function.name()
    name = qualified.removesuffix(".default")
    if function.namespace == "aten":
        # Only torch's own operators have in-place twins of the same meaning, and overloads that differ in types alone.
        name = qualified.removeprefix("aten::").partition(".")[0]
        name = name[:-1] if name.endswith("_") and not name.startswith("__") else name
    written = [argument for argument in arguments if argument.is_write]
    return Signature(
        name,
        {argument.name: argument.default_value for argument in arguments},
        tuple(argument.name for argument in written),
        bool(written) and written[0].name == arguments[0].name,
        any(argument.kwarg_only for argument in written),
    )


def name_of(function: Any) -> str:
    """The name of an overload, see ``OpCall.name``."""
    return _signature(function).name


def written_by(function: Any) -> tuple[str, ...]:
    """The names of the arguments that an overload writes into."""
    return _signature(function).written


@dataclass(frozen=True, eq=False)
class OpCall:
    """One call of an operator, with its result.

    Attributes:
        signature: What the schema says.
        name: What identifies the operator: ``"relu"`` for ``torch.ops.aten.relu`` and its in-place twin, whatever the
            overload; ``"house::relu"`` for an operator of any other namespace, ``"house::relu.scaled"`` for its
            overload ``scaled``. No operator of another namespace has the name of one of aten's.
        function: The overload that is called, ``torch.ops.aten.relu.default``.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        tensors: All tensors among the arguments.
        results: All tensors among the results; what the operator writes into where it returns nothing.
    """

    signature: Signature
    function: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    tensors: list[Tensor]
    results: list[Tensor]

    @classmethod
    def read(
        cls, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], tensors: list[Tensor], result: Any
    ) -> OpCall:
        """Take the call, in which ``tensors`` were found, apart by the schema of ``function``."""
        call = cls(_signature(function), function, args, kwargs, tensors, tensors_among((result,)))
        if not call.results:
            call.results.extend(call.written)
        return call

    @property
    def name(self) -> str:
        """What identifies the operator, see the class."""
        return self.signature.name

    @property
    def title(self) -> str:
        """How messages name the operator, ``"aten.relu"`` or ``"house::relu"``."""
        return self.name if "::" in self.name else f"aten.{self.name}"

    @property
    def inplace(self) -> bool:
        """Whether it writes into its first argument."""
        return self.signature.inplace

    @property
    def has_out(self) -> bool:
        """Whether it writes its result into a tensor that was given as ``out=``."""
        return self.signature.has_out

    @property
    def written(self) -> list[Tensor]:
        """The tensors that it writes into."""
        names = self.signature.written
        return tensors_among([self.arguments[name] for name in names]) if names else []

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """All arguments by the names of the operator's schema, with defaults."""
        defaults = self.signature.defaults
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
    """The tensors among values and in lists, tuples and dicts of them."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += tensors_among(value)
        elif isinstance(value, dict):
            found += tensors_among(value.values())
    return found


def with_tensors(value: Any, of: Callable[[Tensor], Any]) -> Any:
    """The arguments of an operator with others in place of the tensors, in new lists, tuples and dicts of them.

    Args:
        value: A tensor, a list, a tuple or a dict of such, or anything else, which stays.
        of: Called with each tensor; what it returns takes its place.

    Example:
        >>> with_tensors((torch.zeros(2), [torch.ones(2)], 3), lambda one: one.sum().item())
        (0.0, [2.0], 3)
    """
    if isinstance(value, Tensor):
        return of(value)
    if isinstance(value, tuple):
        return tuple([with_tensors(one, of) for one in value])
    if isinstance(value, list):
        return [with_tensors(one, of) for one in value]
    if isinstance(value, dict):
        return {name: with_tensors(one, of) for name, one in value.items()}
    return value
