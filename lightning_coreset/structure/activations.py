"""Operators registered as activations: the one place where ``structure`` calls ``coreset``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_coreset import coreset
from lightning_coreset._registration import Registration
from lightning_coreset.structure.op_call import name_of
from lightning_coreset.structure.registry import overload_of, register_rule
from lightning_coreset.structure.rule_kinds import Elementwise


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
            the operator. It is compared with the operator on some numbers, where that runs on the CPU. Where the
            operator is called with numbers other than its defaults, they are passed on: ``function(z, *numbers)``.
        lipschitz: See ``lightning_coreset.coreset.register_activation``, as for the next one.
        turning_points: Where the function has its local extrema; ``()`` for a monotone one. Without them there are no
            bounds, and so no certificates.
        override: As for ``register_rule``.

    Returns:
        A handle that undoes both.

    Raises:
        TypeError: If ``op`` is not an operator or ``function`` is not callable.
        ValueError: If the operator has several overloads, if it has a rule and ``override`` is not set, or if what is
            claimed of the function is not so: it computes something else than the operator, or as in
            ``lightning_coreset.coreset.register_activation``.

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
        ...     plan_pruning(Net(), torch.randn(4, 4), 0.5, self_check=False).groups[0].method
        'reconstruction (probes)'
    """
    overload = overload_of(op)
    if not callable(function):
        raise TypeError(f"Expected a function of a tensor for {overload} but got {function!r}.")
    _check_computes(overload, function)
    rule = register_rule(overload, Elementwise(), override=override)
    try:
        mathematics = coreset.register_activation(
            name_of(overload), function, lipschitz=lipschitz, turning_points=turning_points, override=override
        )
    except BaseException:
        rule.remove()
        raise

    def undo() -> None:
        rule.remove()
        mathematics.remove()

    return Registration(undo)


def _check_computes(overload: Any, function: Callable[..., Tensor]) -> None:
    """Compare a function with the operator that it stands for, if that runs on float64 numbers on the CPU."""
    z = torch.linspace(-8.0, 8.0, 257, dtype=torch.float64)
    try:
        with torch.no_grad():
            computed = overload(z.clone())
    except Exception:  # no kernel for these, or further arguments: then it is the user's word alone
        return
    if not isinstance(computed, Tensor) or computed.shape != z.shape:
        return
    claimed = function(z.clone())
    wrong = ~torch.isclose(claimed, computed.double(), rtol=1e-4, atol=1e-5, equal_nan=True)
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        raise ValueError(
            f"Expected a function that computes what {overload} does but at {float(z[at]):g} it gives "
            f"{float(claimed[at]):.6g} where the operator gives {float(computed[at]):.6g}."
        )
