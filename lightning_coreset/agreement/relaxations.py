r"""Straight lines below and above an activation on intervals of its argument, proven.

For every interval :math:`[l, h]` slopes and offsets with

.. math:: s z + t \le \phi(z) \le \bar s z + \bar t, \qquad l \le z \le h.

Any slope will do, with the offset that it needs: of a few slopes the one is taken whose line is nearest in the middle
of the interval. For ReLU these are the lines of Zhang et al. (2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_coreset.coreset import Activation, value_range
from lightning_coreset.coreset.majorants import majorants
from lightning_coreset.coreset.slopes import enclosed_slopes

_ROUNDING = 64 * torch.finfo(torch.float64).eps
_SLOPES = 9
_CELLS = 64
_AT_ONCE = 2**13
"""Intervals whose offsets are proven together, each on some hundreds of cells."""


@dataclass(frozen=True, eq=False)
class Lines:
    """One line below and one above, each in the shape of the intervals.

    Attributes:
        slope: Of the line below.
        offset: Of the line below.
        upper_slope: Of the line above.
        upper_offset: Of the line above.
    """

    slope: Tensor
    offset: Tensor
    upper_slope: Tensor
    upper_offset: Tensor

    def gap(self, low: Tensor, high: Tensor) -> Tensor:
        """How far they are apart in the middle of the intervals."""
        return (self.upper_slope - self.slope) * (low + high) / 2 + self.upper_offset - self.offset

    def weight(self, magnitude: Tensor) -> Tensor:
        """The magnitude of what a line adds up, for arguments of this magnitude."""
        steepest = torch.maximum(self.slope.abs(), self.upper_slope.abs())
        return steepest * magnitude + torch.maximum(self.offset.abs(), self.upper_offset.abs())

    @cached_property
    def halves(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The mean of both slopes and half of their difference; the same of the offsets."""
        slopes, offsets = (self.upper_slope, self.slope), (self.upper_offset, self.offset)
        return (*_mean_and_half(*slopes), *_mean_and_half(*offsets))


def _mean_and_half(upper: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
    return (upper + lower) / 2, (upper - lower) / 2


def lines(activation: Activation, low: Tensor, high: Tensor) -> Lines:
    """Lines below and above an activation.

    Args:
        activation: Its turning points must be known.
        low: Left ends, float64 of any shape.
        high: Right ends, nowhere below ``low``.

    Returns:
        The lines, valid in real arithmetic for the numbers as they are returned.

    Example:
        >>> from lightning_coreset.coreset import find_activation
        >>> found = lines(find_activation("relu"), torch.tensor([-1.0]).double(), torch.tensor([3.0]).double())
        >>> found.upper_slope, found.upper_offset.round(decimals=6), found.slope, found.offset
        (tensor([0.7500], dtype=torch.float64), tensor([0.7500], dtype=torch.float64), tensor([1.], dtype=torch.float64), tensor([0.], dtype=torch.float64))
    """  # noqa: E501
    if activation.half_slopes == (0.0, 1.0):
        return _of_relu(low, high)
    flat = [_of_any(activation, *ends) for ends in _pieces(low, high)]
    names = ("slope", "offset", "upper_slope", "upper_offset")
    return Lines(*(torch.cat([getattr(one, name) for one in flat]).view(low.shape) for name in names))


def curved(activation: Activation, low: Tensor, high: Tensor) -> Tensor:
    """The intervals on which the activation is not linear, to more than rounding."""
    if activation.linear is None:
        return high - low > 1e-7 * torch.maximum(low.abs(), high.abs()).clamp_min(1e-3)
    found = torch.zeros_like(low, dtype=torch.bool)
    for at, _ in activation.linear.kinks:
        found |= (low < at) & (high > at)
    return found


def difference_lines(slopes: tuple[Tensor, Tensor], low: Tensor, high: Tensor) -> Lines:
    r"""Lines below and above :math:`\phi(z) - \phi(z')` as a function of :math:`z - z'`.

    With the slopes of :math:`\phi` between :math:`m` and :math:`M` it lies between the lesser and the greater of
    :math:`m d` and :math:`M d`: the one is concave, the other convex, so that the ends of the interval decide.

    Args:
        slopes: :math:`m` and :math:`M` between the neurons' arguments, in the shape of the intervals.
        low: The least values of :math:`d = z - z'`.
        high: The largest.
    """
    flattest, steepest = slopes
    ends = torch.stack([low, high])
    least, most = torch.minimum(flattest * ends, steepest * ends), torch.maximum(flattest * ends, steepest * ends)
    width = (high - low).clamp_min(1e-300)
    slope = torch.minimum(torch.maximum((least[1] - least[0]) / width, flattest), steepest)
    upper = torch.minimum(torch.maximum((most[1] - most[0]) / width, flattest), steepest)
    room = _ROUNDING * torch.maximum(flattest.abs(), steepest.abs()) * ends.abs().amax(0)
    return Lines(slope, (least - slope * ends).amin(0) - room, upper, (most - upper * ends).amax(0) + room)


def _of_relu(low: Tensor, high: Tensor) -> Lines:
    above, across = (low >= 0).to(low.dtype), (low < 0) & (high > 0)
    upper = torch.where(across, high / (high - low).clamp_min(1e-300), above)
    offset = torch.where(across, -upper * low * (1 + _ROUNDING) + _ROUNDING * high, 0.0)
    slope = torch.where(across, (high > -low).to(low.dtype), above)
    return Lines(slope, torch.zeros_like(low), upper, offset)


def _pieces(low: Tensor, high: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(low.reshape(-1).split(_AT_ONCE), high.reshape(-1).split(_AT_ONCE), strict=True))


def _of_any(activation: Activation, low: Tensor, high: Tensor) -> Lines:
    """Of intervals (n,)."""
    found, middle, slopes = (
        majorants([(activation, low.shape[-1])], low, high),
        (low + high) / 2,
        _slopes(activation, low, high),
    )
    zero, one = torch.zeros_like(slopes), torch.ones_like(slopes)
    reach = torch.maximum(low.abs(), high.abs())
    least, most = value_range(activation, low, high)
    cells = _Cells.of(activation, low, high)
    chosen = []
    for sign in (-1, 1):  # a line below is one above the negative
        offsets, _ = found.searched(sign * one, zero, sign * slopes)
        best = (offsets + sign * slopes * middle).argmin(dim=0, keepdim=True)
        slope = slopes.gather(0, best)
        if cells is None:
            offset = found.proven(sign * one[:1], zero[:1], sign * slope)[0]
        else:
            offset = cells.offset(sign, slope[0])
        room = _ROUNDING * (slope[0].abs() * reach + torch.maximum(least.abs(), most.abs()))
        chosen += [slope[0], sign * (offset + room)]
    return Lines(*chosen)


@dataclass(frozen=True, eq=False)
class _Cells:
    """Parts of intervals, (cells, n), with bounds of a smooth activation and of its slope on each."""

    low: Tensor
    high: Tensor
    least: Tensor
    most: Tensor
    value: Tensor
    slopes: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, activation: Activation, low: Tensor, high: Tensor) -> _Cells | None:
        """``None`` for an activation whose slopes cannot be enclosed, or that consists of lines."""
        parts = torch.linspace(0, 1, _CELLS + 1, dtype=low.dtype, device=low.device)[:, None]
        edges = torch.minimum(low + (high - low) * parts, high)
        edges[-1] = high
        left, right = edges[:-1], edges[1:]
        slopes = None if activation.linear is not None else enclosed_slopes(activation, left, right)
        if slopes is None:
            return None
        return cls(left, right, *value_range(activation, left, right), activation.function((left + right) / 2), slopes)

    def offset(self, sign: int, slope: Tensor) -> Tensor:
        r"""A number above :math:`\pm (\phi(z) - s z)` for all z, (n,).

        On a cell of width w it is at most the value in the middle and w / 2 times the steepest slope more; and at most
        the largest value of the activation and of the line, apart.
        """
        middle = self.value - slope * (self.low + self.high) / 2
        steepest = torch.maximum((self.slopes[0] - slope).abs(), (self.slopes[1] - slope).abs())
        by_slopes = sign * middle + steepest * (self.high - self.low) / 2
        apart = torch.maximum(sign * self.least, sign * self.most)
        apart = apart + torch.maximum(-sign * slope * self.low, -sign * slope * self.high)
        return torch.fmin(by_slopes, apart).amax(dim=0)


def _slopes(activation: Activation, low: Tensor, high: Tensor) -> Tensor:
    """Slopes at points of the intervals, and those of the chords, (candidates, n)."""
    parts = torch.linspace(0, 1, _SLOPES, dtype=low.dtype, device=low.device)[:, None]
    at = low + (high - low) * parts
    step = torch.maximum((high - low) / 64, 1e-5 * (1 + at.abs()))
    left = torch.cat([at - step, torch.minimum(low, high - step[:1])[None].view(1, -1)])
    right = torch.cat([at + step, high[None]])
    slopes = (activation.function(right) - activation.function(left)) / (right - left)
    # A line of slope zero is proven by the range alone.
    return torch.cat([slopes, torch.zeros_like(slopes[:1])])
