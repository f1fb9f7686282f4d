"""Intervals of all values of a tape, for all inputs of balls around samples.

Forward, intervals follow the operations. Where an activation is not linear on the interval of its argument, the
argument is bounded backward as well (``backward``), and the narrower interval makes the lines of all later bounds.

Shapes: S samples, ``...`` those of a value of one sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_coreset.agreement.backward import Coupling, Relaxed
from lightning_coreset.agreement.relaxations import curved, difference_lines, lines
from lightning_coreset.agreement.spreads import Spreads
from lightning_coreset.agreement.tape import Affine, Pointwise
from lightning_coreset.coreset import slope_range, value_range

_NARROW = 1e-9
"""An interval that is this narrow, relative to the magnitudes that its value is made of, is narrow enough."""


class Bounds:
    """Bounds on all values over balls around samples.

    Args:
        spreads: The tape, and what is known of it whatever the samples.
        centers: The samples, float64 ``(S, 1, ...)``.
        radius: Of the balls.

    Raises:
        ValueError: If arguments of an activation may leave the interval on which it was checked.
    """

    def __init__(self, spreads: Spreads, centers: Tensor, radius: float) -> None:
        tape = spreads.tape
        self.tape, self.spreads, self.radius = tape, spreads, radius
        self.relaxed = Relaxed(tape, centers, radius)
        self.low: dict[int, Tensor] = {}
        self.high: dict[int, Tensor] = {}
        direct = sorted(tape.direct & tape.bounded.keys())
        self._exact = dict(zip(direct, tape.run(centers, direct), strict=True)) if direct else {}
        self._set(0, centers - radius, centers + radius, centers.abs() + radius)
        for number, node in enumerate(tape.nodes):
            if isinstance(node, Affine):
                self._bound(number, node)
            elif isinstance(node, Pointwise):
                self._relax(number, node)

    def largest(self, rows: dict[int, Tensor], couplings: tuple[Coupling, ...] = ("apart",)) -> Tensor:
        """The least of the upper bounds by several couplings, ``(S, K)``; see :class:`Relaxed`."""
        return torch.stack([self.relaxed.largest(rows, one) for one in couplings]).amin(dim=0)

    def _bound(self, number: int, node: Affine) -> None:
        """The interval of an affine value."""
        ends = [(self.low[one], self.high[one]) for one in node.inputs]
        middles, reaches = [(low + high) / 2 for low, high in ends], [(high - low) / 2 for low, high in ends]
        magnitude = torch.vmap(node.magnitude)
        at_zero = node.magnitude(*(torch.zeros_like(one[0]) for one in middles))
        middle, reach = torch.vmap(node.function)(*middles), (magnitude(*reaches) - at_zero).clamp_min(0)
        load = magnitude(*(torch.maximum(low.abs(), high.abs()) for low, high in ends))
        self._set(number, middle - reach, middle + reach, load)
        if number in self._exact:
            reach = self.radius * self.spreads.of(number) if self.radius else torch.zeros_like(self._exact[number])
            self._narrow(number, self._exact[number] - reach, self._exact[number] + reach)
        elif number in self.tape.bounded:
            self._refine(number)
        if node.largest_of is not None:
            a, b = node.largest_of
            self._narrow(number, torch.maximum(self.low[a], self.low[b]), torch.maximum(self.high[a], self.high[b]))

    def _set(self, number: int, low: Tensor, high: Tensor, load: Tensor) -> None:
        room = self.tape.rounding * load
        self.low[number], self.high[number], self.relaxed.load[number] = low - room, high + room, load

    def _narrow(self, number: int, low: Tensor, high: Tensor) -> None:
        room = self.tape.rounding * self.relaxed.load[number]
        self.low[number] = torch.maximum(self.low[number], low - room)
        self.high[number] = torch.minimum(self.high[number], high + room)

    def _refine(self, number: int) -> None:
        """Bound backward what is not linear on its interval yet: for every sample others."""
        needed = self._needed(number).flatten(1)
        count = int(needed.sum(dim=1).max())
        if not count:
            return
        coupling: Coupling = "paired" if number in self.tape.differences else "apart"
        where = needed.to(torch.uint8).topk(count, dim=1).indices
        for some in where.split(max(1, self.relaxed.rows_at_once // 2), dim=1):
            rows = torch.zeros(*some.shape, needed.shape[1], dtype=torch.float64, device=some.device)
            rows = rows.scatter_(2, some[..., None], 1.0).unflatten(2, self.tape.nodes[number].shape)
            both = self.relaxed.largest({number: torch.cat([rows, -rows], dim=1)}, coupling)
            high, low = both[:, : some.shape[1]], -both[:, some.shape[1] :]
            for ends, found, best in ((self.low, low, torch.maximum), (self.high, high, torch.minimum)):
                flat = ends[number].flatten(1)
                flat = flat.scatter(1, some, best(flat.gather(1, some), found))
                ends[number] = flat.view_as(ends[number])

    def _needed(self, number: int) -> Tensor:
        """Where an activation of the value is curved; for a difference, where those of both neurons are."""
        found = torch.zeros_like(self.low[number], dtype=torch.bool)
        for reader in self.tape.bounded[number]:
            here = curved(reader.activation, self.low[reader.inputs[0]], self.high[reader.inputs[0]])
            if reader.pair is not None and reader.pair.difference == number:
                other = reader.pair.source
                here &= curved(reader.activation, self.low[other], self.high[other])
            found |= here
        # What is as narrow as this is not worth a pass; mostly it is rounding alone.
        return found & (self.high[number] - self.low[number] > _NARROW * self.relaxed.load[number])

    def _relax(self, number: int, node: Pointwise) -> None:
        """The interval of an activation, and its lines."""
        low, high = self.low[node.inputs[0]], self.high[node.inputs[0]]
        furthest = torch.maximum(low.abs(), high.abs())
        if float(furthest.max()) > node.activation.checked:
            raise ValueError(
                f"Expected arguments of {node.place} between -{node.activation.checked:g} and "
                f"{node.activation.checked:g}, where its constants were checked, but in the ball of radius "
                f"{self.radius:g} they may reach {float(furthest.max()):.4g}. Choose a smaller radius."
            )
        found = self.relaxed.lines[number] = lines(node.activation, low, high)
        least, most = value_range(node.activation, low, high)
        load = torch.maximum(least.abs(), most.abs()) + found.weight(furthest)
        if node.pair is not None:
            self._relax_pair(number, node, found.gap(low, high))
            pair_lines = self.relaxed.pairs[number][0]
            load = (
                load + self.relaxed.load[node.pair.output] + pair_lines.weight(self.relaxed.load[node.pair.difference])
            )
        self._set(number, least, most, load)

    def _relax_pair(self, number: int, node: Pointwise, own_gap: Tensor) -> None:
        """Lines of the difference to the other network's activation, where they are nearer than those of both."""
        assert node.pair is not None
        source, difference = node.pair.source, node.pair.difference
        ends = self.low[source], self.high[source]
        gap = lines(node.activation, *ends).gap(*ends) + own_gap
        low, high = self.low[difference], self.high[difference]
        own = self.low[node.inputs[0]], self.high[node.inputs[0]]
        hull = torch.minimum(ends[0], own[0]), torch.maximum(ends[1], own[1])
        slopes = slope_range(node.activation, *hull)
        finite = slopes[0].isfinite() & slopes[1].isfinite()
        found = difference_lines((slopes[0].where(finite, 0.0), slopes[1].where(finite, 0.0)), low, high)
        self.relaxed.pairs[number] = found, ((found.gap(low, high) < gap) & finite).to(low.dtype)
