r"""The sharpest upper bound here on a sum of ReLUs over a ball: products of pairs of channels count as well.

The parabolas of ``joint_bound`` look at every channel by itself. What they miss is that for *different* channels, too,
the parts :math:`\max(z_p, 0)` and :math:`\max(-z_p, 0)` have products that are not negative. ``relaxation`` has the
program with these, whose number grows with the square of that of channels; so only such sums of products are added as
the last moments break, as often as it pays. Every step of ``interior_point`` leaves multipliers that prove a bound;
the last ones are checked with room for rounding.

Shapes: J rows, N channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_coreset.coreset.ball import Ball
from lightning_coreset.coreset.interior_point import Point, start, stepped
from lightning_coreset.coreset.relaxation import Relaxation, is_positive

_GAPS = (0.6, 0.5, 0.4, 0.3, 0.2)
"""How near to its least, relatively, a bound is brought before products are added once more: at first not near, since
early moments tell as well which products matter, and starting again is easiest far from the boundary."""
_STEPS = 60
MOST_CHANNELS = 1000
"""More would take tens of gigabytes: some 40 N^2 numbers for each matrix of conditions, of which several live."""
_CONDITIONS = 6000
"""Products are added while there are fewer conditions: a matrix of 6000 x 6000 takes 0.3 GB."""
_NOTHING = 1e-3
"""Of the norm of the changes in units of what channels mostly are."""
_BACK = (0.1, 0.02)
"""How far moments and multipliers go back to where they began before products are added."""


def worst_with_products(
    ball: Ball, change: Tensor, slopes: tuple[float, float], bound: Tensor, rows: int, enough: float
) -> Tensor:
    r"""Bound :math:`|\sum_p \Delta_{jp} \phi(z_p)|` over the ball for the rows that could be the worst.

    The row with the largest bound is next, until that is a row that was: then the largest of all cannot become less.
    A row is bounded no further than to the largest so far.

    Args:
        ball: The channels, all followed by one activation.
        change: :math:`\Delta`, float64 ``(J, N)``.
        slopes: Those of :math:`\phi` left and right of zero, where it is zero.
        bound: What is known, ``(J,)``.
        rows: How many rows at most.
        enough: Rows need not be bounded more tightly.

    Returns:
        The bounds of those rows, infinity for the others, ``(J,)``.
    """
    found = torch.full_like(bound, torch.inf)
    for _ in range(min(rows, len(bound))):
        row = int(torch.minimum(bound, found).argmax())
        if float(bound[row]) <= enough or bool(found[row].isfinite()):
            break
        one = bound_with_products(ball, change[row], slopes, enough=enough)
        other = bound_with_products(ball, -change[row], slopes, enough=max(enough, float(one)))
        found[row] = torch.maximum(one, other)
        enough = max(enough, float(found[row]))
    return found


def bound_with_products(
    ball: Ball, change: Tensor, slopes: tuple[float, float], *, gap: float = 0.03, enough: float = 0.0
) -> Tensor:
    r"""Bound :math:`\sum_p \Delta_p \phi(z_p)` over the ball.

    Args:
        ball: The channels, all followed by one activation.
        change: :math:`\Delta`, float64 ``(N,)``.
        slopes: Those of :math:`\phi` left and right of zero, where it is zero.
        gap: How near to the least that this method knows the bound is brought, relatively.
        enough: It need not be tighter.

    Returns:
        The bound, ``()``.
    """
    matters = (change != 0) & (ball.rows != 0).any(dim=1)
    if not bool(matters.any()):
        return change.new_zeros(())
    # Every channel in units of what it mostly is on the ball, where a coordinate of x is about 1 / sqrt(q).
    rows = ball.rows[matters]
    unit = (rows[:, -1].square() + rows[:, :-1].square().mean(dim=1)).sqrt().clamp_min(1e-150)
    weight = change[matters] * unit
    size = weight.norm() * max(abs(slope) for slope in slopes)
    if not float(size) > 0:
        return change.new_zeros(())
    low, high = ((end[matters] / unit) for end in (ball.low, ball.high))
    left, right = (slope * weight / size for slope in slopes)
    problem = Relaxation.of(rows / unit[:, None], right, -left, low * (1 + 1e-12), high * (1 + 1e-12))
    problem, point = _solved(problem, gap, enough / float(size))
    return _proven(problem, point) * size


def _solved(problem: Relaxation, gap: float, enough: float) -> tuple[Relaxation, Point]:
    """The program with products, and the point that proves most."""
    point = first = start(problem)
    best, gaps = (problem, point), [*_GAPS, gap]
    for _ in range(_STEPS):
        while _is_near(point, gaps[0]) and len(gaps) > 1:
            problem, point = _with_products(problem, point, first)
            gaps.pop(0)
        if _is_near(point, gaps[0]) or best[1].bound <= enough:
            break
        after = stepped(problem, point)
        if after is None:
            break
        point = after
        if point.bound < best[1].bound:
            best = problem, point
    return best


def _is_near(point: Point, gap: float) -> bool:
    """Whether the bound is near to its least; where that is nothing beside single channels, near to nothing."""
    return point.gap < gap * max(point.bound, _NOTHING)


def _with_products(problem: Relaxation, point: Point, first: Point) -> tuple[Relaxation, Point]:
    """With products that the moments break, and a point inside the larger program."""
    factor, weights = problem.violated(point.moments)
    if not len(factor) or len(problem.left) + len(factor) > _CONDITIONS:
        return problem, point
    problem = problem.with_products(factor, weights)
    moments = (1 - _BACK[0]) * point.moments + _BACK[0] * first.moments
    values = problem.values(moments)[problem.free :]
    old = len(point.values)
    values = torch.cat([values[:old].clamp_min(1e-3), values[old:].clamp_min(0.05)])
    multipliers = (1 - _BACK[1]) * point.multipliers
    multipliers[: len(first.multipliers)] += _BACK[1] * first.multipliers
    multipliers = torch.cat([multipliers, multipliers.new_zeros(len(factor))])
    slack = problem.slack(multipliers)
    price = (moments * slack).sum() / len(moments) / values[old:]
    while True:  # ends, since the slack is positive definite
        multipliers[-len(factor) :] = -price
        new = problem.slack(multipliers)
        if is_positive(new - slack / 2):
            return problem, Point(moments, values, multipliers, new)
        price = price * 0.6


def _proven(problem: Relaxation, point: Point) -> Tensor:
    r"""The bound of the multipliers with room for rounding.

    A matrix that has a Cholesky factor is positive semidefinite but for V eps times its trace (Rump, 2006); what
    forming Z rounds is below as many eps times the magnitude of its terms. What is missing to that is added to Z, and
    as often the largest :math:`\|v\|^2` to the bound.
    """
    eps = torch.finfo(point.slack.dtype).eps
    rounding = 8 * (len(point.slack) + len(problem.left)) * eps * problem.magnitude(point.multipliers)
    longest = 2 + problem.most[: problem.channels].square().sum()
    added, eye = torch.zeros_like(rounding), torch.eye(len(point.slack)).to(point.slack)
    while not is_positive(point.slack + (added - rounding) * eye):
        added = 2 * added + rounding
    return point.multipliers[0] + added * longest
