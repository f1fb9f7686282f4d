r"""Proven bounds on linear functions of values, backward through a tape whose activations are replaced by lines.

A linear function of a value becomes one of the values before it: an affine operation hands its rows on, an activation
is replaced by the line above it where the row is positive and by the one below where it is negative, and over the ball
of radius :math:`r` around :math:`x_0`

.. math:: a \cdot x + c \le a \cdot x_0 + r \|a\| + c .

Shapes: S samples, K rows, ``...`` those of a value of one sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from lightning_coreset.agreement.relaxations import Lines
from lightning_coreset.agreement.tape import Affine, Pointwise, Tape

Coupling = Literal["apart", "paired"]
"""Whether neurons of the second network are bounded by themselves or by their difference to the first one's."""

_AT_ONCE = 2**22
"""Numbers of a value times rows that are handled at once: 32 MB, of which a pass holds several."""


@dataclass(frozen=True, eq=False)
class Relaxed:
    """A tape with lines in place of activations, valid on balls around samples.

    Attributes:
        tape: The operations.
        centers: The samples, float64 ``(S, 1, ...)``.
        radius: Of the balls.
        load: For every node the magnitudes of what is added up to compute it, ``(S, ...)``.
        lines: For every activation its lines.
        pairs: For activations of the second network the lines of their difference to the first one's, and where, as
            0 and 1, these are used when neurons are paired.
    """

    tape: Tape
    centers: Tensor
    radius: float
    load: dict[int, Tensor] = field(default_factory=dict)
    lines: dict[int, Lines] = field(default_factory=dict)
    pairs: dict[int, tuple[Lines, Tensor]] = field(default_factory=dict)

    @property
    def rows_at_once(self) -> int:
        """For how many rows a pass has memory."""
        width = max(torch.Size(node.shape).numel() for node in self.tape.nodes)
        return max(1, _AT_ONCE // (len(self.centers) * width))

    def largest(self, rows: Mapping[int, Tensor], coupling: Coupling) -> Tensor:
        """Upper bounds for all inputs of each ball.

        Args:
            rows: What multiplies values, ``(S, K, ...)`` by the number of the node; the sum of all is bounded.
            coupling: Which relaxation of the second network's activations is used. Both are valid.

        Returns:
            The bounds, ``(S, K)``.
        """
        count = next(iter(rows.values())).shape[1]
        starts = range(0, count, self.rows_at_once)
        some = [{one: part[:, at : at + self.rows_at_once] for one, part in rows.items()} for at in starts]
        return torch.cat([_Pass(self, part, coupling).run() for part in some], dim=1)


class _Pass:
    """One pass for some rows."""

    def __init__(self, relaxed: Relaxed, rows: Mapping[int, Tensor], coupling: Coupling) -> None:
        self.relaxed, self.coupling = relaxed, coupling
        self.pending = dict(rows)
        first = next(iter(rows.values()))
        self.sum, self.slack = first.new_zeros(first.shape[:2]), first.new_zeros(first.shape[:2])

    def run(self) -> Tensor:
        relaxed, tape = self.relaxed, self.relaxed.tape
        for number in range(max(self.pending), 0, -1):
            row = self.pending.pop(number, None)
            if row is None:
                continue
            node, size = tape.nodes[number], row.abs()
            self.slack += _total(size, relaxed.load[number])
            if isinstance(node, Affine):
                self.sum += row.flatten(2) @ tape.constant(number).flatten()
                for one, part in zip(node.inputs, tape.pulled_back(number, row), strict=True):
                    self._add(one, part)
            elif isinstance(node, Pointwise):
                self._through(number, node, row, size)
        row = self.pending.get(0)
        if row is not None:
            self.slack += _total(row.abs(), relaxed.load[0])
            self.sum += _total(row, relaxed.centers) + relaxed.radius * row.flatten(2).norm(dim=2)
        return self.sum + tape.rounding * self.slack

    def _through(self, number: int, node: Pointwise, row: Tensor, size: Tensor) -> None:
        """Replace an activation by lines."""
        if node.pair is not None and self.coupling == "paired":
            lines, where = self.relaxed.pairs[number]
            paired = row * where[:, None]
            row = row - paired
            self._add(node.pair.output, paired)
            self._add(node.pair.difference, self._lined(lines, -paired, paired.abs()))
            size = row.abs()
        self._add(node.inputs[0], self._lined(self.relaxed.lines[number], row, size))

    def _lined(self, lines: Lines, row: Tensor, size: Tensor) -> Tensor:
        """The row times the slope above where it is positive and below where it is negative; adds the offsets."""
        slope, bend, offset, width = lines.halves
        self.sum += _total(row, offset) + _total(size, width)
        return torch.addcmul(row * slope[:, None], size, bend[:, None])

    def _add(self, number: int, row: Tensor) -> None:
        self.pending[number] = self.pending[number] + row if number in self.pending else row


def _total(rows: Tensor, values: Tensor) -> Tensor:
    """Rows (S, K, ...) times values (S, ...)."""
    return (rows.flatten(2) @ values.flatten(1)[:, :, None])[:, :, 0]
