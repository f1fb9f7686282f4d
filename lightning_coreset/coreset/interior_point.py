r"""A primal-dual interior-point method for the relaxation of a sum of ReLUs, which is valid after every step.

The matrices :math:`X` (in place of v v^T) and :math:`Z`, and the numbers :math:`s` (values of what must not be
negative) and :math:`-y`, stay positive, and :math:`X Z` and :math:`-y s` are led to zero together (the direction of
Helmberg, Rendl, Vanderbei and Wolkowicz, 1996; Mehrotra's predictor and corrector). Multipliers are dual feasible from
the first step on, so that each of them proves a bound; X need not meet its conditions until the end.

Shapes: V = q + 1 + N, m multipliers, i of them nonpositive.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_coreset.coreset.relaxation import Relaxation, is_positive

_PREDICTED, _KEPT = 0.95, 0.93
"""How much of the way to the boundary is gone in the predictor and in the step itself."""


@dataclass(frozen=True, eq=False)
class _Variables:
    """What the method changes.

    Attributes:
        moments: X, (V, V).
        values: s, (i,).
        multipliers: Of the relaxation, (m,).
        slack: Their Z, (V, V).
    """

    moments: Tensor
    values: Tensor
    multipliers: Tensor
    slack: Tensor

    @property
    def prices(self) -> Tensor:
        """Of the conditions that are no equations, (i,)."""
        return -self.multipliers[-len(self.values) :]


class Point(_Variables):
    """Where the method is: matrices are positive definite, values and prices positive."""

    @property
    def bound(self) -> float:
        """What the multipliers prove."""
        return float(self.multipliers[0])

    @property
    def gap(self) -> float:
        """How far the bound may be from the least, exactly so where X meets its conditions."""
        return float((self.moments * self.slack).sum() + self.values @ self.prices)

    @property
    def average(self) -> float:
        """The mean of the products that are led to zero."""
        return self.gap / (len(self.moments) + len(self.values))

    def moved(self, direction: _Variables, primal: float, dual: float) -> Point:
        """After so much of a direction, of what belongs to X and of what belongs to Z."""
        return Point(
            self.moments + primal * direction.moments,
            self.values + primal * direction.values,
            self.multipliers + dual * direction.multipliers,
            self.slack + dual * direction.slack,
        )


class _Step:
    """One step: everything that predictor and corrector share."""

    def __init__(self, problem: Relaxation, point: Point) -> None:
        self.problem, self.point = problem, point
        self.factors = torch.linalg.cholesky(point.moments), torch.linalg.cholesky(point.slack)
        self.inverse = torch.cholesky_inverse(self.factors[1])
        traces = problem.products_of(point.moments, self.inverse)
        diagonal = traces.diagonal()
        diagonal[problem.free :] += point.values / point.prices
        self.unit = diagonal.rsqrt()
        traces *= self.unit
        traces *= self.unit[:, None]
        self.factor = _factor((traces + traces.T) / 2)
        self.right = torch.zeros_like(point.multipliers)
        self.right[0] = 1

    def direction(self, target: float, predicted: _Variables | None = None) -> _Variables:
        """Towards X Z = target, to second order if a direction has been predicted."""
        problem, point = self.problem, self.point
        moments, values = target * self.inverse, target / point.prices
        if predicted is not None:
            moments = moments - predicted.moments @ predicted.slack @ self.inverse
            values = values - predicted.values * predicted.prices / point.prices
        right = problem.values((moments + moments.T) / 2) - self.right
        right[problem.free :] -= values
        multipliers = self.unit * torch.cholesky_solve((self.unit * right)[:, None], self.factor)[:, 0]
        slack = problem.combined(multipliers)
        moments = moments - point.moments - point.moments @ slack @ self.inverse
        values = values - point.values + point.values * multipliers[problem.free :] / point.prices
        return _Variables((moments + moments.T) / 2, values, multipliers, slack)

    def lengths(self, direction: _Variables, share: float) -> tuple[float, float]:
        """How far one may go for X and for Z, at most 1."""
        point, (moments, slack) = self.point, self.factors
        primal = min(_to_boundary(moments, direction.moments), _to_zero(point.values, direction.values))
        dual = min(_to_boundary(slack, direction.slack), _to_zero(point.prices, direction.prices))
        return min(1.0, share * primal), min(1.0, share * dual)


def stepped(problem: Relaxation, point: Point) -> Point | None:
    """The point after one step; ``None`` where rounding lets no step be made, which happens close to the end."""
    step = _Step(problem, point)
    predicted = step.direction(0.0)
    primal, dual = step.lengths(predicted, _PREDICTED)
    there = point.moved(predicted, primal, dual).average
    share = min(1.0, max(0.02, (there / point.average) ** 2))
    if min(primal, dual) < 0.2:  # at the boundary already: back to the middle first
        share = max(share, 0.5)
    direction = step.direction(share * point.average, predicted)
    after = point.moved(direction, *step.lengths(direction, _KEPT))
    after = replace(after, slack=problem.slack(after.multipliers))  # exactly theirs, whatever was rounded on the way
    return after if is_positive(after.slack) and is_positive(after.moments) else None


def _factor(matrix: Tensor) -> Tensor:
    """The Cholesky factor of a matrix with ones on its diagonal, or of the next larger one that has a factor."""
    room = 1e-14
    while True:
        matrix.diagonal().add_(room)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not int(failed):
            return factor
        room *= 100


def _to_boundary(factor: Tensor, change: Tensor) -> float:
    """How much of a change a positive definite matrix bears, of which the Cholesky factor is given."""
    inner = torch.linalg.solve_triangular(factor, change, upper=False)
    inner = torch.linalg.solve_triangular(factor, inner.T, upper=False)
    least = float(torch.linalg.eigvalsh((inner + inner.T) / 2)[0])
    return -1 / least if least < 0 else float("inf")


def _to_zero(numbers: Tensor, change: Tensor) -> float:
    falling = change < 0
    return float((numbers / -change)[falling].min()) if bool(falling.any()) else float("inf")


def start(problem: Relaxation) -> Point:
    """A point inside, from inputs in the ball and multipliers of parts in proportion to what these allow."""
    moments = _moments_of_inputs(problem)
    values = problem.values(moments)[problem.free :].clamp_min(0.01)
    multipliers = _inside(problem, values)
    return Point(moments, values, multipliers, problem.slack(multipliers))


def _moments_of_inputs(problem: Relaxation) -> Tensor:
    """The mean of v v^T over inputs in the ball, with some room: inside all that the program asks, (V, V)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4 * len(problem.goal), problem.inputs, generator=generator, dtype=torch.float64).to(problem.goal)
    x = 0.95 * x / x.norm(dim=1, keepdim=True)
    v = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    v = torch.cat([v, (v @ problem.rows.T).clamp_min(0)], dim=1)
    moments = v.T @ v / len(v)
    moments.diagonal()[problem.inputs + 1 :] += 0.01
    return moments


def _inside(problem: Relaxation, lengths: Tensor) -> Tensor:
    """Multipliers that make Z positive definite, (m,); those of parts and ranges in proportion to 1 / ``lengths``."""
    rows, signed = problem.rows[:, :-1], slice(problem.free + 1, None)
    largest = float(torch.linalg.eigvalsh(rows.T @ rows)[-1].clamp_min(1e-12))
    size = math.sqrt(largest) / 2
    multipliers = problem.goal.new_zeros(len(problem.left))
    multipliers[1 : problem.free] = size / largest
    while True:
        multipliers[0], multipliers[problem.free] = 2 * size, -size
        if is_positive(problem.slack(multipliers)):
            break
        size *= 1.3
    multipliers[0] *= 1.5
    multipliers[problem.free] *= 1.5
    multipliers[signed] = -0.01 / lengths[1:]
    while not is_positive(problem.slack(multipliers)):
        multipliers[signed] /= 2
    multipliers[signed] /= 2
    return multipliers
