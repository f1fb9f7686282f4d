"""Activations of what a network writes out in element-wise operations, such as ``x * torch.sigmoid(1.702 * x)``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from lightning_coreset.coreset.activation_table import find_activation, in_pieces
from lightning_coreset.coreset.activations import Activation
from lightning_coreset.coreset.range_proof import Proof, prove
from lightning_coreset.expressions import Expression

_NAMED: tuple[tuple[str, tuple[float | str, ...]], ...] = (
    ("gelu", ()),
    ("gelu", ("tanh",)),
    ("silu", ()),
    ("mish", ()),
    ("hardswish", ()),
    ("softplus", ()),
    ("log_sigmoid", ()),
    ("sigmoid", ()),
    ("tanh", ()),
    ("elu", ()),
    ("selu", ()),
    ("relu", ()),
    ("hardsigmoid", ()),
    ("hardtanh", (0.0, 6.0)),
)
_SAME = 1e-12
_NEAR = 50.0
_MOST_KINKS = 16


@lru_cache(maxsize=256)
def written_out_activation(expression: Expression) -> Activation | None:
    """The activation that a network computes in several operations.

    One that is the same function as an activation of the table, to 1e-12, has its name and its constants. One that is
    linear in pieces has these, so that its moments are exact. Of others moments are integrated numerically; what is
    said of all inputs (``lipschitz``, ``turning_points``) is proven between minus and plus ``checked`` by interval
    arithmetic, and unknown where it cannot be proven.

    Args:
        expression: The function.

    Returns:
        The activation; ``None`` where the function is not finite and continuous between -50 and 50, or an operator
        takes other arguments in double precision than in the network.

    Example:
        >>> from lightning_coreset.expressions import applied
        >>> z = Expression()
        >>> swish = written_out_activation(applied("mul", (z, applied("sigmoid", (z,)))))
        >>> swish.name, round(swish.lipschitz, 6)
        ('silu', 1.099839)
    """
    proof = prove(expression)
    if proof is None or proof.checked < _NEAR:  # else it has shown this as well
        try:
            continuous = _is_continuous(expression)
        except (RuntimeError, TypeError, AttributeError):
            return None
        if not continuous:
            return None
    z = _points(_NEAR if proof is None else max(proof.checked, _NEAR))
    values = expression(z)
    known = _of_table(z, values) or _in_pieces(expression, values, z)
    if known is None:
        return _proven(Activation(str(expression), expression, math.inf, (), None), proof)
    if proof is not None and _agree(known, proof):
        return replace(known, checked=proof.checked)
    return _proven(known, proof)


def _is_continuous(function: Callable[[Tensor], Tensor]) -> bool:
    """Halve all steps of a grid towards their steeper half: a jump stays as high as it is."""
    z = torch.linspace(-_NEAR, _NEAR, 2**14 + 1, dtype=torch.float64)
    values = function(z)
    if values.dtype != torch.float64 or not bool(values.isfinite().all()):
        return False
    left, right, low, high = z[:-1], z[1:], values[:-1], values[1:]
    for _ in range(28):
        middle = (left + right) / 2
        value = function(middle)
        first = ~((value - low).abs() < (high - value).abs())
        left, right = torch.where(first, left, middle), torch.where(first, middle, right)
        low, high = torch.where(first, low, value), torch.where(first, value, high)
    return bool(((high - low).abs() <= 1e-6 * values.diff().abs() + 1e-8).all())


def _points(furthest: float) -> Tensor:
    """Where functions are compared: close together up to 50, and further out on a scale of powers."""
    near = torch.linspace(-_NEAR, _NEAR, 40_001, dtype=torch.float64)
    far = _NEAR * torch.logspace(0, math.log2(furthest / _NEAR), 200, base=2.0, dtype=torch.float64)
    return torch.cat([-far.flip(0), near, far])


def _of_table(z: Tensor, values: Tensor) -> Activation | None:
    for name, args in _NAMED:
        activation = find_activation(name, args)
        assert activation is not None
        if _same(values, activation.function(z)):
            return activation
    return None


def _same(values: Tensor, others: Tensor) -> bool:
    return bool(((values - others).abs() <= _SAME * (1 + others.abs())).all())


def _in_pieces(expression: Expression, values: Tensor, z: Tensor) -> Activation | None:
    """A function that is linear between a few kinks, if it is one."""
    grid = torch.linspace(-_NEAR, _NEAR, 3_201, dtype=torch.float64)
    at = expression(grid)
    slopes = at.diff() / grid.diff()
    steepest = float(slopes.abs().max())
    # A kink within a cell bends the function at both ends of the cell, one at a point of the grid there alone.
    bends = ((slopes.diff().abs() > 1e-9 * steepest).nonzero().squeeze(1) + 1).tolist()
    starts = [0, *(bend for bend in bends if bend + 1 not in bends)]
    stops = [*(bend for bend in bends if bend - 1 not in bends), len(grid) - 1]
    if len(starts) > _MOST_KINKS + 1 or any(stop <= start for start, stop in zip(starts, stops, strict=True)):
        return None
    lines = []
    for start, stop in zip(starts, stops, strict=True):
        slope = float((at[stop] - at[start]) / (grid[stop] - grid[start]))
        lines.append((slope, float(at[start] - slope * grid[start])))
    kinks = []
    for (left, constant), (right, other) in pairwise(lines):
        where = (constant - other) / (right - left)  # where both lines meet
        kinks.append((0.0 if abs(where) < _SAME else where, right - left))
    pieces = in_pieces(str(expression), (), expression, lines[0][0], tuple(kinks))
    assert pieces.linear is not None
    line = pieces.linear.constant + pieces.linear.slope * z
    for where, change in kinks:
        line = line + change * (z - where).clamp_min(0)
    return pieces if bool(((line - values).abs() <= 1e-11 * steepest * (1 + z.abs())).all()) else None


def _agree(known: Activation, proof: Proof) -> bool:
    """Whether the constants of an activation are those that were proven."""
    if known.turning_points is None or len(known.turning_points) != len(proof.turning_points):
        return False
    near = all(
        abs(one[0] - other[0]) < 1e-4 and abs(one[1] - other[1]) < 1e-8
        for one, other in zip(known.turning_points, proof.turning_points, strict=True)
    )
    return near and abs(known.lipschitz - proof.lipschitz) <= 2e-5 * known.lipschitz


def _proven(activation: Activation, proof: Proof | None) -> Activation:
    if proof is None:
        return replace(activation, lipschitz=math.inf, turning_points=None)
    return replace(
        activation,
        lipschitz=proof.lipschitz,
        turning_points=proof.turning_points,
        checked=proof.checked,
    )
