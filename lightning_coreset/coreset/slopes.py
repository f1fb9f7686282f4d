"""Slopes of activations on intervals: of pieces that are lines, or enclosed by interval arithmetic."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from lightning_coreset.coreset.activations import Activation
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
    r"""Numbers :math:`m \le M` with :math:`\phi(a) - \phi(b) = s (a - b)`, :math:`m \le s \le M`, on intervals.

    Args:
        activation: The function :math:`\phi`.
        low: Left ends, float64 of any shape.
        high: Right ends, the same shape.

    Returns:
        ``(m, M)``, shaped like ``low``: the slopes of pieces that are lines, or enclosed by interval arithmetic; of
        other functions the Lipschitz constant with either sign, or zero and that constant where they are monotone.
        Infinite where there is no such constant, or the interval holds a step.

    Example:
        >>> from lightning_coreset.coreset import find_activation
        >>> low, high = torch.tensor([-2.0, 1.0]).double(), torch.tensor([3.0, 2.0]).double()
        >>> slope_range(find_activation("relu"), low, high)
        (tensor([0., 1.], dtype=torch.float64), tensor([1., 1.], dtype=torch.float64))

    """
    found = enclosed_slopes(activation, low, high)
    if found is not None:
        return found
    most = torch.full_like(low, activation.lipschitz)
    for (at, before), (also_at, behind) in pairwise(activation.turning_points or ()):
        if at == also_at and before != behind:  # a step, as of softplus at its threshold, however small
            most = torch.where((low <= at) & (high >= at), math.inf, most)
    if activation.turning_points == ():
        unit = min(activation.checked, 1.0)
        first, last = activation.function(torch.tensor([-unit, unit], dtype=torch.float64)).tolist()
        zero = torch.zeros_like(low)
        if first != last:
            return (zero, most) if last > first else (-most, zero)
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
