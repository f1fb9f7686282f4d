"""Operators registered as activations: the one place where ``structure`` calls ``coreset``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_coreset import coreset
from lightning_coreset._registration import Registration
from lightning_coreset.structure.op_call import OpCall, name_of
from lightning_coreset.structure.registry import overload_of, register_rule
from lightning_coreset.structure.rule_kinds import Elementwise
from lightning_coreset.structure.steps import Step


@dataclass(frozen=True)
class _Activation(Elementwise):
    """The rule of an operator whose function is known for one tensor and numbers."""

    def step(self, call: OpCall) -> Step:
        """The step of a call, by which the mathematics finds the function."""
        if len(call.tensors) == 1 and len(call.numbers) == len(call.arguments) - 1:
            return Step(call.name, call.numbers)
        return Step(f"{call.name} of further arguments")


def register_activation(
    op: Any,
    function: Callable[..., Tensor],
    *,
    lipschitz: float = math.inf,
    turning_points: Sequence[float] | None = None,
    override: bool = False,
) -> Registration:
    """Say which scalar function an elementwise operator computes, so that channels behind it get coresets.

    Also registers ``Elementwise`` for the operator.

    Args:
        op: The operator, ``torch.ops.house.swish``, or the overload of it that computes the function.
        function: The same function for float64 tensors of any shape. The mathematics calls it; networks go on calling
            the operator. Where that has numbers among its arguments, they are passed on: ``function(z, *numbers)``.
        lipschitz: See ``lightning_coreset.coreset.register_activation``, as for the next one.
        turning_points: Where the function has its local extrema; ``()`` for a monotone one. Without them there are no
            bounds, and so no certificates.
        override: As for ``register_rule``.

    Returns:
        A handle that undoes both.

    Raises:
        TypeError: If ``op`` is not an operator or ``function`` is not callable.
        ValueError: If the operator has several overloads, if it has a rule and ``override`` is not set, or if what is
            claimed of the function is not so.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_coreset import plan_pruning
        >>> from lightning_coreset.structure import register_activation
        >>> @torch.library.custom_op("office::squared_relu", mutates_args=())
        ... def squared_relu(x: torch.Tensor) -> torch.Tensor:
        ...     return torch.relu(x).square()
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
        ...
        ...     def forward(self, x):
        ...         return self.b(squared_relu(self.a(x)))
        >>> function = lambda z: torch.relu(z).square()
        >>> with register_activation(torch.ops.office.squared_relu, function, turning_points=()):
        ...     plan_pruning(Net(), torch.randn(4, 4), 0.5, check=False).groups[0].method
        'reconstruction'
    """
    overload = overload_of(op)
    if not callable(function):
        raise TypeError(f"Expected a function of a tensor for {overload} but got {function!r}.")
    rule = register_rule(overload, _Activation(), override=override)
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
