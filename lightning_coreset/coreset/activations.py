r"""Scalar activations with the constants that the theory uses, and their range over intervals.

A sensitivity needs :math:`\sup_{|z| \le r} |\phi(z)|`, a bound needs the Lipschitz constant, the closed-form moments
need to know whether :math:`\phi` is piecewise linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PiecewiseLinear:
    r"""The function :math:`z \mapsto c + a z + \sum_i w_i \max(z - t_i, 0)`.

    Attributes:
        constant: The value :math:`c`.
        slope: The slope :math:`a` left of every kink.
        kinks: Pairs :math:`(t_i, w_i)` with ascending :math:`t_i`: where the slope changes, and by how much.
    """

    constant: float
    slope: float
    kinks: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Activation:
    r"""A scalar function :math:`\phi` with the constants that the theory uses.

    Attributes:
        name: The operator it stands for: of ATen ``"relu"``, of others ``"namespace::name"``; empty for the identity.
        function: :math:`\phi`, applied elementwise to a tensor of any floating dtype.
        lipschitz: The smallest :math:`L` with :math:`|\phi(a) - \phi(b)| \le L |a - b|`; infinite where there is none
            or none is known.
        args: The op's non-tensor arguments as they were given.
        turning_points: Pairs :math:`(z, \phi(z))` of every interior local extremum; empty for a monotone function,
            ``None`` where they are not known, so that nothing can be said of all inputs.
        linear: The same function in pieces, where it is piecewise linear.
        checked: The constants hold for arguments between minus this and this; everywhere for those of the table.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    lipschitz: float
    args: tuple[float | str | None, ...] = ()
    turning_points: tuple[tuple[float, float], ...] | None = ()
    linear: PiecewiseLinear | None = None
    checked: float = math.inf

    @property
    def half_slopes(self) -> tuple[float, float] | None:
        """Slopes left and right of zero where the function is linear on each side (ReLU, LeakyReLU, identity)."""
        if self.linear is None or self.linear.constant != 0 or any(at != 0 for at, _ in self.linear.kinks):
            return None
        return self.linear.slope, self.linear.slope + sum(change for _, change in self.linear.kinks)


def value_range(activation: Activation, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    r"""The exact infimum and supremum of the activation over intervals.

    Between two neighbouring turning points a function is monotone, so its extremes over an interval are among its
    values at the two ends and at the turning points inside.

    Args:
        activation: The function :math:`\phi`.
        low: Left ends, any shape.
        high: Right ends, the same shape, nowhere below ``low``.

    Returns:
        ``(infimum, supremum)``, float64, shaped like ``low``.

    Raises:
        ValueError: If the activation's turning points are not known.

    """
    if activation.turning_points is None:
        raise ValueError(
            f"Expected an activation whose turning points are known but got {activation.name!r}. Register it with "
            "turning_points=."
        )
    low, high = low.double(), high.double()
    first, last = activation.function(low), activation.function(high)
    infimum, supremum = torch.minimum(first, last), torch.maximum(first, last)
    for point, value in activation.turning_points:
        inside = (low < point) & (point < high)
        infimum = torch.where(inside, infimum.clamp(max=value), infimum)
        supremum = torch.where(inside, supremum.clamp(min=value), supremum)
    return infimum, supremum


def largest_magnitude(activation: Activation, radius: Tensor) -> Tensor:
    r"""The exact :math:`\sup_{|z| \le r} |\phi(z)|`, elementwise.

    Args:
        activation: The function :math:`\phi`.
        radius: The radii :math:`r`, any shape, finite and not negative.

    Returns:
        The suprema, float64, shaped like ``radius``.

    Raises:
        ValueError: If a radius is negative or not finite, or as in :func:`value_range`.

    Example:
        >>> from lightning_coreset.coreset import find_activation
        >>> largest_magnitude(find_activation("leaky_relu", (2.0,)), torch.tensor([0.0, 1.5]))
        tensor([0., 3.], dtype=torch.float64)

    """
    right = (radius >= 0) & (radius < math.inf)
    if not bool(right.all()):
        raise ValueError(f"Expected every radius to be finite and not negative but got {float(radius[~right][0])}.")
    infimum, supremum = value_range(activation, -radius, radius)
    return torch.maximum(infimum.abs(), supremum.abs())
