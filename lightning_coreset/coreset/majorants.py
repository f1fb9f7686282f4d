r"""Quadratic functions above an activation on an interval: the least constant that makes one of them an upper bound.

For a change :math:`\Delta` of a weight, and a pre-activation :math:`z` between two ends,

.. math:: \Delta \phi(z) \le \alpha z^2 + \tau z + \gamma(\alpha, \tau), \qquad
    \gamma = \max_{l \le z \le h} \Delta \phi(z) - \alpha z^2 - \tau z.

:math:`\gamma` is convex in :math:`(\alpha, \tau)`, and its subgradient is :math:`-(z^2, z)` at the maximiser.

Shapes: R problems, N channels, G points of a grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lightning_coreset.coreset.activations import Activation, PiecewiseLinear, value_range

_SEARCHED = 96
_CELLS = 256
_REFINED, _PIECES, _ROUNDS = 24, 12, 2
"""Of a proof's cells so many are cut into so many, again and again; the others are no obstacle."""


class Majorants(Protocol):
    """An activation on the intervals of several channels."""

    low: Tensor
    high: Tensor

    def searched(self, change: Tensor, square: Tensor, tilt: Tensor) -> tuple[Tensor, Tensor]:
        r""":math:`\gamma`, or a little less, and where it is; all ``(R, N)``."""
        ...

    def proven(self, change: Tensor, square: Tensor, tilt: Tensor) -> Tensor:
        r""":math:`\gamma`, or a little more, never less: ``(R, N)``."""
        ...


def majorants(activations: Sequence[tuple[Activation, int]], low: Tensor, high: Tensor) -> Majorants:
    r"""Majorants on intervals.

    Args:
        activations: Activations :math:`\phi` with known turning points, and how many channels each of them follows.
        low: The left ends :math:`l`, float64 ``(N,)`` or ``(R, N)``.
        high: The right ends :math:`h`, likewise.
    """
    counts = [count for _, count in activations]
    ends = zip(activations, low.split(counts, dim=-1), high.split(counts, dim=-1), strict=True)
    parts = [_majorants(activation, *both) for (activation, _), *both in ends]
    return parts[0] if len(parts) == 1 else _SideBySide(parts, counts, low, high)


def _majorants(activation: Activation, low: Tensor, high: Tensor) -> Majorants:
    if activation.linear is not None:
        return _OfPieces(activation, activation.linear, low, high)
    return _OfCells(activation, low, high)


class _SideBySide:
    """Of one activation for the first channels, of another for the next."""

    def __init__(self, parts: Sequence[Majorants], counts: Sequence[int], low: Tensor, high: Tensor) -> None:
        self.parts, self.counts, self.low, self.high = parts, list(counts), low, high

    def searched(self, change: Tensor, square: Tensor, tilt: Tensor) -> tuple[Tensor, Tensor]:
        """Of all parts."""
        found = [part.searched(*given) for part, given in self._split(change, square, tilt)]
        offsets, at = zip(*found, strict=True)
        return torch.cat(offsets, dim=-1), torch.cat(at, dim=-1)

    def proven(self, change: Tensor, square: Tensor, tilt: Tensor) -> Tensor:
        """Of all parts."""
        return torch.cat([part.proven(*given) for part, given in self._split(change, square, tilt)], dim=-1)

    def _split(self, *tensors: Tensor) -> Iterator[tuple[Majorants, tuple[Tensor, ...]]]:
        given = zip(*(one.split(self.counts, dim=-1) for one in tensors), strict=True)
        return zip(self.parts, given, strict=True)


class _OfPieces:
    """Of an activation that is linear in pieces, on each of which a maximum is known."""

    def __init__(self, activation: Activation, linear: PiecewiseLinear, low: Tensor, high: Tensor) -> None:
        self.activation, self.low, self.high = activation, low, high
        kinks = [torch.full_like(low, at) for at, _ in linear.kinks]
        self.ends = torch.stack([low, *(torch.minimum(torch.maximum(at, low), high) for at in kinks), high], dim=-1)
        self.slopes = low.new_tensor([linear.slope, *(change for _, change in linear.kinks)]).cumsum(0)

    def searched(self, change: Tensor, square: Tensor, tilt: Tensor) -> tuple[Tensor, Tensor]:
        """The exact maximum: at an end of a piece or at the vertex on it."""
        change, square, tilt = change[..., None], square[..., None], tilt[..., None]
        ends = self.ends.expand(*change.shape[:-1], -1)
        vertex = torch.where(square > 0, (change * self.slopes - tilt) / (2 * square), ends[..., :-1])
        vertex = torch.minimum(torch.maximum(vertex, ends[..., :-1]), ends[..., 1:])
        z = torch.cat([ends, vertex], dim=-1)
        offset, at = (change * self.activation.function(z) - (square * z + tilt) * z).max(dim=-1)
        return offset, z.gather(-1, at[..., None])[..., 0]

    def proven(self, change: Tensor, square: Tensor, tilt: Tensor) -> Tensor:
        """The same: a vertex that rounding moves is missed by the square of that."""
        return self.searched(change, square, tilt)[0]


class _OfCells:
    """Of any activation, which is known by its values and by its range on an interval."""

    def __init__(self, activation: Activation, low: Tensor, high: Tensor) -> None:
        self.activation, self.low, self.high = activation, low, high
        self.points = self._grid(_SEARCHED)
        self.values = activation.function(self.points)

    def searched(self, change: Tensor, square: Tensor, tilt: Tensor) -> tuple[Tensor, Tensor]:
        r"""The maximum on a grid, a little below :math:`\gamma`, and where it is; all ``(R, N)``."""
        points = self.points
        rest = change[..., None] * self.values - (square[..., None] * points + tilt[..., None]) * points
        offset, at = rest.max(dim=-1)
        return offset, points.expand_as(rest).gather(-1, at[..., None])[..., 0]

    def proven(self, change: Tensor, square: Tensor, tilt: Tensor) -> Tensor:
        r""":math:`\gamma` or a little more, whatever the grid misses: ``(R, N)``."""
        edges = self._grid(_CELLS)
        low, high = edges[..., :-1], edges[..., 1:]
        parts = torch.linspace(0, 1, _PIECES + 1, dtype=low.dtype, device=low.device)
        others = torch.full_like(change, -torch.inf)
        for _ in range(_ROUNDS):
            above = self._above(change, square, tilt, low, high)
            best, cells = above.topk(_REFINED + 1, dim=-1)
            others, cells = torch.maximum(others, best[..., -1]), cells[..., :-1]
            low, high = (ends.expand_as(above).gather(-1, cells)[..., None] for ends in (low, high))
            points = low + (high - low) * parts
            points[..., -1:] = high  # exactly, so that no gap is left
            low, high = points[..., :-1].flatten(-2), points[..., 1:].flatten(-2)
        return torch.maximum(others, self._above(change, square, tilt, low, high).amax(dim=-1))

    def _above(self, change: Tensor, square: Tensor, tilt: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Upper bounds over cells, (R, N, cells): those of the activation and of the quadratic part, added."""
        change, square, tilt = change[..., None], square[..., None], tilt[..., None]
        least, most = value_range(self.activation, low, high)
        vertex = torch.where(square > 0, -tilt / (2 * square), low)
        places = low, high, torch.minimum(torch.maximum(vertex, low), high)
        quadratic = torch.stack([-(square * z + tilt) * z for z in places]).amax(dim=0)
        return torch.where(change > 0, change * most, change * least) + quadratic

    def _grid(self, cells: int) -> Tensor:
        """Points from end to end, denser around zero, where activations bend; zero is one of them if it is inside."""
        unit = torch.linspace(-1, 1, cells + 1, dtype=self.low.dtype, device=self.low.device)
        reach = torch.maximum(self.low.abs(), self.high.abs())[..., None]
        points = reach * unit.abs() ** 1.5 * unit.sign()
        return torch.minimum(torch.maximum(points, self.low[..., None]), self.high[..., None])
