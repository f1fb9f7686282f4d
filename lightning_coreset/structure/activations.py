"""Operators registered as activations: the one place where ``structure`` calls ``coreset``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_coreset import coreset
from lightning_coreset._compat import schema_of
from lightning_coreset.structure.op_call import OpCall, name_of
from lightning_coreset.structure.registry import Registration, overload_of, register_rule
from lightning_coreset.structure.rule_kinds import Elementwise
from lightning_coreset.structure.steps import Step


@dataclass(frozen=True)
class _Activation(Elementwise):
    """The rule of an operator whose function is known for some values of its arguments beside the tensor."""

    arguments: tuple[Any, ...] = ()

    def step(self, call: OpCall) -> Step:
        """The step of a call, by which the mathematics knows the function."""
        given = tuple(call.arguments.values())[1:]
        return Step(call.name, call.numbers) if given == self.arguments else Step(f"{call.name}{given}")


def register_activation(
    op: Any,
    function: Callable[[Tensor], Tensor],
    *,
    arguments: tuple[Any, ...] = (),
    lipschitz: float | None = None,
    turning_points: Sequence[float] | None = None,
    override: bool = False,
) -> Registration:
    """Say which scalar function an elementwise operator computes, so that channels behind it get coresets.

    Also registers ``Elementwise`` for the operator.

    Args:
        op: The operator, ``torch.ops.house.swish``, or the overload of it that computes the function.
        function: The same function for tensors of any shape, in double precision. The mathematics calls it; networks
            go on calling the operator.
        arguments: The values of the operator's further arguments, all of them and in the order of its schema, with
            which it computes ``function``. Called with others it is an unknown function.
        lipschitz: See ``lightning_coreset.coreset.register_activation``, as for the next one.
        turning_points: Where the function turns from rising to falling or back.
        override: As for ``register_rule``.

    Returns:
        A handle that undoes both.

    Raises:
        TypeError: If ``op`` is not an operator or ``function`` is not callable.
        ValueError: If the operator has several overloads or takes other arguments, if it has a rule and ``override``
            is not set, or if the numbers do not fit the function.
    """
    overload = overload_of(op)
    names = [argument.name for argument in schema_of(overload).arguments]
    if len(names) != 1 + len(arguments):
        raise ValueError(
            f"Expected {overload} to take one tensor and {len(arguments)} more arguments, as many as arguments has "
            f"values, but it takes {', '.join(names)}."
        )
    if not callable(function):
        raise TypeError(f"Expected a function of a tensor for {overload} but got {function!r}.")
    rule = register_rule(overload, _Activation(tuple(arguments)), override=override)
    try:
        mathematics = coreset.register_activation(
            name_of(overload), function, lipschitz=lipschitz, turning_points=turning_points
        )
    except BaseException:
        rule.remove()
        raise

    def undo() -> None:
        rule.remove()
        mathematics.remove()

    return Registration(undo)
