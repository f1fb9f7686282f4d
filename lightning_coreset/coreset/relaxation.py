r"""Sums of ReLUs over a ball as a semidefinite program, to which products of pairs of parts are added where it pays.

With :math:`h_p = \max(z_p, 0)`, :math:`t_p = \max(-z_p, 0)` and :math:`v = (x, 1, h)`, everything that is linear in
the products of two of :math:`1, h_1, \dots, t_1, \dots` is linear in :math:`v v^T`, since :math:`t = h - z`. For
multipliers :math:`\gamma, c` and nonpositive :math:`y`

.. math:: v^T C v + v^T Z v = \gamma + \sum_p c_p h_p t_p + \sum_i y_i \, g_i(x) \le \gamma

on the unit ball, if :math:`C` is the sum to bound, :math:`Z` is what makes this an identity and every :math:`g_i` is
never negative: :math:`1 - \|x\|^2`, a part, a part times what is left to its largest value, or a product of a part and
a sum of parts with nonnegative weights. If :math:`Z` is positive semidefinite, then :math:`v^T C v \le \gamma`. Over
all multipliers and all products of two parts this is the dual of the doubly nonnegative relaxation (Burer, 2009, "On
the copositive representation of binary and continuous nonconvex quadratic programs").

Shapes: N channels, q coordinates of inputs, V = q + 1 + N, K = 1 + 2 N parts, m multipliers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, eq=False)
class Relaxation:
    r"""The program: multipliers are :math:`(\gamma, c, y)`, with y for the ball, for parts, their ranges and products.

    Attributes:
        goal: C, (V, V).
        parts: What makes parts, and after them sums of parts, from v, (K + products, V).
        left: The first factor of what every multiplier multiplies, (m,).
        right: And the second, (m,).
        most: The largest values of h and of t, (2 N,).
        inputs: q.
    """

    goal: Tensor
    parts: Tensor
    left: Tensor
    right: Tensor
    most: Tensor
    inputs: int

    @classmethod
    def of(cls, rows: Tensor, on: Tensor, off: Tensor, low: Tensor, high: Tensor) -> Relaxation:
        r"""The program without products.

        Args:
            rows: Of :math:`z` in coordinates ``(x, 1)``, ``(N, q + 1)``.
            on: The weights of h in the sum, ``(N,)``.
            off: The weights of t.
            low: The least values of z.
            high: The largest.
        """
        channels, inputs = len(rows), rows.shape[1] - 1
        one, eye = rows.new_zeros(1, inputs + 1), torch.eye(channels, dtype=rows.dtype, device=rows.device)
        one[0, -1] = 1
        parts = torch.cat([pad(one, (0, channels)), pad(eye, (inputs + 1, 0)), torch.cat([-rows, eye], dim=1)])
        sums = torch.cat([on, off]) @ parts[1:] / 2
        goal = torch.outer(parts[0], sums)
        each = torch.arange(1, 1 + 2 * channels, device=rows.device)
        none = torch.zeros_like(each)
        h, t = each.split(channels)
        left, right = torch.cat([none[:1], h, none[:1], none, each]), torch.cat([none[:1], t, none[:1], each, each])
        # A part that is always zero gets a range that is not: its own column of the program stays away from zero.
        most = torch.cat([high, -low]).clamp_min(1e-6)
        return cls(goal + goal.T, parts, left, right, most, inputs)

    @property
    def channels(self) -> int:
        """N."""
        return len(self.most) // 2

    @property
    def rows(self) -> Tensor:
        """Of z in coordinates (x, 1), (N, q + 1)."""
        return -self.parts[1 + self.channels : 1 + 2 * self.channels, : self.inputs + 1]

    @property
    def free(self) -> int:
        """How many of the multipliers may have any sign: gamma and c. The next one is that of the ball."""
        return 1 + self.channels

    def with_products(self, factor: Tensor, weights: Tensor) -> Relaxation:
        """With products of the parts ``factor``, (P,), and sums of parts with ``weights``, (P, K), not negative."""
        sums = weights @ self.parts[: weights.shape[1]]
        place = torch.arange(len(sums), device=factor.device) + len(self.parts)
        return replace(
            self,
            parts=torch.cat([self.parts, sums]),
            left=torch.cat([self.left, factor]),
            right=torch.cat([self.right, place]),
        )

    def values(self, moments: Tensor) -> Tensor:
        """What multipliers multiply, for a symmetric matrix in place of v v^T, (m,)."""
        products = ((self.parts @ moments)[self.left] * self.parts[self.right]).sum(dim=1)
        products[self.free] -= moments.diagonal()[: self.inputs].sum()
        return self._of_ranges(products)

    def slack(self, multipliers: Tensor) -> Tensor:
        """Z, (V, V)."""
        return self.combined(multipliers) - self.goal

    def combined(self, multipliers: Tensor) -> Tensor:
        """The matrices of all multipliers, each times its multiplier, added up, (V, V)."""
        each = multipliers.clone()
        lines, ranges = self._lines_and_ranges()
        each[lines] += self.most * each[ranges]
        each[ranges] = -each[ranges]
        half = (each[:, None] * self.parts[self.right]).T @ self.parts[self.left] / 2
        total = half + half.T
        total.diagonal()[: self.inputs] -= multipliers[self.free]
        return total

    def magnitude(self, multipliers: Tensor) -> Tensor:
        """The sum of the norms of all terms of Z, ()."""
        norms = self.parts.norm(dim=1)
        each = multipliers.abs()
        lines, ranges = self._lines_and_ranges()
        each[lines] += self.most * each[ranges]
        return (each * norms[self.left] * norms[self.right]).sum() + each[self.free] + self.goal.norm()

    def products_of(self, first: Tensor, second: Tensor) -> Tensor:
        r"""Of symmetric X, Y: the traces :math:`\mathrm{tr}(B_i X B_j Y)` of all multipliers' matrices, ``(m, m)``."""
        n, ball = self.inputs, self.free
        one, other = self.parts @ first @ self.parts.T, self.parts @ second @ self.parts.T
        left, right = self.left, self.right
        crossing = _taken(one, left, right).mul_(_taken(other, right, left))
        traces = crossing + crossing.T
        traces += _taken(one, left, left).mul_(_taken(other, right, right))
        traces += _taken(one, right, right).mul_(_taken(other, left, left))
        traces = self._of_ranges(self._of_ranges(traces.div_(4)).T)
        # The ball has a matrix that is no product of parts beside that of (1, 1).
        crossed = (self.parts @ first[:, :n]) @ (second[:n] @ self.parts.T)
        border = self._of_ranges((crossed[left, right] + crossed[right, left]) / 2)
        traces[ball] -= border
        traces[:, ball] -= border
        traces[ball, ball] += (first[:n, :n] * second[:n, :n]).sum()
        return traces

    def _of_ranges(self, products: Tensor) -> Tensor:
        """Squares of parts turned into parts times what is left to their largest values, in place."""
        lines, ranges = self._lines_and_ranges()
        most = self.most if products.ndim == 1 else self.most[:, None]
        products[ranges] = most * products[lines] - products[ranges]
        return products

    def _lines_and_ranges(self) -> tuple[slice, slice]:
        first, parts = self.free + 1, len(self.most)
        return slice(first, first + parts), slice(first + parts, first + 2 * parts)

    def violated(self, moments: Tensor) -> tuple[Tensor, Tensor]:
        """The products with one factor that moments break most, added up by how much they break them.

        Returns:
            ``(factor, weights)`` for :meth:`with_products`.
        """
        size = 1 + 2 * self.channels
        parts = self.parts[:size]
        products = parts @ moments @ parts.T
        length = products.diagonal().clamp_min(1e-300).sqrt()
        broken = (-products / length / length[:, None]).clamp_min(0)
        h = torch.arange(1, 1 + self.channels, device=moments.device)
        t = h + self.channels
        broken[h, t] = broken[t, h] = broken[0] = broken[:, 0] = 0  # zero, and the parts themselves, are there already
        broken.fill_diagonal_(0)
        factor = (broken.sum(dim=1) > 0).nonzero().flatten()
        weights = broken[factor] / length
        return factor, weights / (weights @ length * length[factor])[:, None]


def is_positive(matrix: Tensor) -> bool:
    """Whether a matrix has a Cholesky factor."""
    return int(torch.linalg.cholesky_ex(matrix).info) == 0


def _taken(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return matrix[rows][:, columns]
