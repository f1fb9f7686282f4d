"""Functions of one number that a network writes out in several element-wise operations, and their values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LONGEST = 64
"""Operations of an expression; what is written out in more is not followed."""


@dataclass(frozen=True)
class Value:
    """An intermediate value: the argument where the index is 0, else the result of the operation of this number."""

    index: int


@dataclass(frozen=True)
class ScalarTensor:
    """A constant that is a tensor without dimensions, for operators that take no numbers in its place."""

    value: float


Operand = Value | ScalarTensor | float | str | None


@dataclass(frozen=True)
class Operation:
    """One operator of ATen on values and numbers.

    Attributes:
        op: Its base name, of the variant that does not write in place.
        args: Its positional arguments.
        kwargs: Its keyword arguments, by name.
    """

    op: str
    args: tuple[Operand, ...]
    kwargs: tuple[tuple[str, Operand], ...] = ()

    def replaced(self, value: Callable[[Operand], Any]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments with another object in place of each."""
        return [value(one) for one in self.args], {name: value(one) for name, one in self.kwargs}


@dataclass(frozen=True)
class Expression:
    r"""A function :math:`z \mapsto f(z)`, as the operations that compute it; those that are the same are there once.

    Plain data: equal expressions are the same function, and can be looked up by each other.

    Attributes:
        operations: In an order in which they can be computed. The last one makes the value; without any it is ``z``.

    Example:
        >>> z = Expression()
        >>> swish = applied("mul", (z, applied("sigmoid", (z,))))
        >>> print(swish, swish(torch.zeros(1)))
        mul(z, sigmoid(z)) tensor([0.])
    """

    operations: tuple[Operation, ...] = ()

    def __call__(self, z: Tensor) -> Tensor:
        """The function, element by element."""
        values: list[Tensor] = [z]

        def value(operand: Operand) -> Any:
            if isinstance(operand, Value):
                return values[operand.index]
            return z.new_tensor(operand.value) if isinstance(operand, ScalarTensor) else operand

        for operation in self.operations:
            args, kwargs = operation.replaced(value)
            values.append(_computed(operation.op, args, kwargs, z.dtype))
        return values[-1]

    def __str__(self) -> str:
        """A formula: ``mul(z, sigmoid(z))``; numbers of the operations where it would be long."""
        texts = ["z"]

        def text(operand: Operand) -> str:
            if isinstance(operand, Value):
                return texts[operand.index]
            number = operand.value if isinstance(operand, ScalarTensor) else operand
            return f"{number:.6g}" if isinstance(number, float) else str(number)

        for operation in self.operations:
            args, kwargs = operation.replaced(text)
            texts.append(f"{operation.op}({', '.join([*args, *(f'{name}={one}' for name, one in kwargs.items())])})")
            if len(texts[-1]) > 160:
                return " ".join(one.op for one in self.operations)
        return texts[-1]


def applied(op: str, args: Iterable[Any], kwargs: Mapping[str, Any] | None = None) -> Expression:
    """An operator applied to expressions of one argument, numbers and scalar tensors.

    Args:
        op: The operator's base name.
        args: Its positional arguments; expressions stand for their values.
        kwargs: Its keyword arguments.

    Returns:
        The expression of the result.
    """
    numbers: dict[Operation, int] = {}

    def operand(one: Any) -> Operand:
        return Value(_merged(one, numbers)) if isinstance(one, Expression) else one

    own = tuple(operand(one) for one in args)
    named = tuple((name, operand(one)) for name, one in (kwargs or {}).items())
    numbers.setdefault(Operation(op, own, named), len(numbers) + 1)
    return Expression(tuple(numbers))


def _merged(expression: Expression, numbers: dict[Operation, int]) -> int:
    """Add an expression's operations to others, each by its number; the number of its value."""
    places = [0]

    def moved(operand: Operand) -> Operand:
        return Value(places[operand.index]) if isinstance(operand, Value) else operand

    for one in expression.operations:
        args, kwargs = one.replaced(moved)
        renumbered = Operation(one.op, tuple(args), tuple(kwargs.items()))
        places.append(numbers.setdefault(renumbered, len(numbers) + 1))
    return places[-1]


def _computed(op: str, args: list[Any], kwargs: dict[str, Any], dtype: torch.dtype) -> Tensor:
    if op == "_to_copy":  # between floating types, or from a mask to numbers
        return args[0].to(dtype)
    result = getattr(torch.ops.aten, op)(*args, **kwargs)
    return result[0] if isinstance(result, tuple) else result
