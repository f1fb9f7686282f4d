"""Slopes of activations on intervals: of pieces that are lines, or enclosed by interval arithmetic."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_coreset.coreset import Activation
from lightning_coreset.coreset.enclosure_rules import enclose
from lightning_coreset.expressions import Expression, applied

_ENCLOSED = frozenset("gelu silu mish tanh sigmoid elu celu selu hardswish log_sigmoid log_sigmoid_forward".split())
"""Continuous activations whose slopes can be enclosed. ``softplus`` is none: torch's has a small step."""


def enclosed_slopes(activation: Activation, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor] | None:
    """The least slope on each interval and the largest, or numbers below and above; ``None`` if they are not known.

    Args:
        activation: The activation.
        low: Left ends, float64 of any shape.
        high: Right ends.
    """
    if activation.linear is not None:
        return _of_pieces(activation, low, high)
    if activation.name not in _ENCLOSED:
        return None
    expression = applied(activation.name, [Expression(), *(one for one in activation.args if one is not None)])
    found = enclose(expression, low.reshape(-1), high.reshape(-1))
    steepest = activation.lipschitz
    return found.least.clamp(-steepest, steepest).view(low.shape), found.most.clamp(-steepest, steepest).view(low.shape)


def slope_range(activation: Activation, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The same, by the Lipschitz constant where no more is known; infinite where there is none."""
    found = enclosed_slopes(activation, low, high)
    if found is not None:
        return found
    most = torch.full_like(low, activation.lipschitz)
    if activation.turning_points == ():
        ends = activation.function(torch.tensor([-1.0, 1.0], dtype=torch.float64))
        zero = torch.zeros_like(low)
        return (zero, most) if float(ends[1]) >= float(ends[0]) else (-most, zero)
    return -most, most


def _of_pieces(activation: Activation, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    assert activation.linear is not None
    least, most, slope = torch.full_like(low, math.inf), torch.full_like(low, -math.inf), activation.linear.slope
    ends = [-math.inf, *(at for at, _ in activation.linear.kinks), math.inf]
    changes = [0.0, *(change for _, change in activation.linear.kinks)]
    for left, right, change in zip(ends, ends[1:], changes, strict=False):
        slope += change
        here = (low <= right) & (high >= left)
        least = torch.where(here, least.clamp_max(slope), least)
        most = torch.where(here, most.clamp_min(slope), most)
    return least, most
