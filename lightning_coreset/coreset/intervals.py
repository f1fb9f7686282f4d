r"""Enclosures of a function and its slope over intervals: interval arithmetic through the operations of an expression.

For every cell :math:`[a, b]` the bounds contain :math:`f(z)` and :math:`f'(z)` for all :math:`z` in it, up to the
rounding of float64. They overestimate where one value enters an operation twice, by less the smaller the cells are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class NoEnclosureError(Exception):
    """An operation whose values and slopes over an interval are not known."""


@dataclass(frozen=True, eq=False)
class Enclosure:
    """Bounds of a value and of its slope over cells, float64 (n,) each.

    Attributes:
        low: Lower bounds of the value.
        high: Upper bounds.
        least: Lower bounds of the slope.
        most: Upper bounds.
        jumps: Where the function may jump within the cell, for two branches meet there with different values.
    """

    low: Tensor
    high: Tensor
    least: Tensor
    most: Tensor
    jumps: Tensor


@dataclass(frozen=True, eq=False)
class Condition:
    """What a comparison may be over cells, bool (n,) each."""

    may_be: Tensor
    may_not_be: Tensor


JUMP = 1e-8
"""Branches that differ by less where they meet count as continuous, as torch's softplus does at its threshold."""


def constant(value: float, like: Enclosure) -> Enclosure:
    """A number, the same over all cells."""
    zero = torch.zeros_like(like.low)
    return Enclosure(zero + value, zero + value, zero, zero, torch.zeros_like(like.jumps))


def both(a: Any, b: Any) -> tuple[Enclosure, Enclosure]:
    """Two operands of which one may be a number."""
    if isinstance(a, Enclosure):
        return a, b if isinstance(b, Enclosure) else constant(float(b), a)
    return constant(float(a), b), b


def _times(low: Tensor, high: Tensor, least: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """The product of two intervals."""
    ends = torch.stack([low * least, low * most, high * least, high * most])
    return ends.amin(0), ends.amax(0)


def chain(u: Enclosure, low: Tensor, high: Tensor, least: Tensor, most: Tensor) -> Enclosure:
    """A function of ``u`` with these values and slopes."""
    return Enclosure(low, high, *_times(least, most, u.least, u.most), u.jumps)


def add(a: Any, b: Any, alpha: float = 1) -> Enclosure:
    """The sum, the second operand times ``alpha``."""
    a, b = both(a, b)
    b = scaled(b, alpha)
    return Enclosure(a.low + b.low, a.high + b.high, a.least + b.least, a.most + b.most, a.jumps | b.jumps)


def scaled(a: Enclosure, factor: float) -> Enclosure:
    """A value times a number."""
    if factor == 1:
        return a
    return Enclosure(
        *_times(a.low, a.high, torch.full_like(a.low, factor), torch.full_like(a.low, factor)),
        *_times(a.least, a.most, torch.full_like(a.low, factor), torch.full_like(a.low, factor)),
        a.jumps,
    )


def subtract(a: Any, b: Any, alpha: float = 1) -> Enclosure:
    """The difference, the second operand times ``alpha``."""
    a, b = both(a, b)
    return add(a, scaled(b, -alpha))


def multiply(a: Any, b: Any) -> Enclosure:
    """The product; with a condition the value where it holds, else zero."""
    for mask, other in ((a, b), (b, a)):
        if isinstance(mask, Condition):
            return where(mask, other, 0.0)
    if a is b:
        return square(a)
    a, b = both(a, b)
    first, second = _times(a.least, a.most, b.low, b.high), _times(b.least, b.most, a.low, a.high)
    return Enclosure(
        *_times(a.low, a.high, b.low, b.high), first[0] + second[0], first[1] + second[1], a.jumps | b.jumps
    )


def divide(a: Any, b: Any) -> Enclosure:
    """The quotient."""
    if isinstance(b, Enclosure):
        return multiply(a, reciprocal(b))
    return Enclosure(*(one if one.dtype == torch.bool else one / b for one in _ordered(a, b < 0)))


def _ordered(a: Enclosure, turned: bool) -> tuple[Tensor, ...]:
    if turned:
        return a.high, a.low, a.most, a.least, a.jumps
    return a.low, a.high, a.least, a.most, a.jumps


def reciprocal(u: Enclosure) -> Enclosure:
    """One over the value; unbounded in a cell with a zero."""
    across = (u.low <= 0) & (u.high >= 0)
    infinite = torch.full_like(u.low, math.inf)
    low, high = torch.where(across, -infinite, 1 / u.high), torch.where(across, infinite, 1 / u.low)
    slopes = -1 / u.low.square(), -1 / u.high.square()
    least, most = torch.minimum(*slopes), torch.maximum(*slopes)
    return chain(u, low, high, torch.where(across, -infinite, least), torch.where(across, infinite, most))


def square(u: Enclosure) -> Enclosure:
    """The square."""
    ends = u.low.square(), u.high.square()
    across = (u.low < 0) & (u.high > 0)
    low = torch.where(across, 0.0, torch.minimum(*ends))
    return chain(u, low, torch.maximum(*ends), 2 * u.low, 2 * u.high)


def power(u: Any, exponent: Any) -> Enclosure:
    """A whole power from 1 to 16, or the root."""
    if not isinstance(u, Enclosure) or not float(exponent).is_integer() or not 1 <= exponent <= 16:
        if exponent == 0.5:
            return square_root(u)
        raise NoEnclosureError
    n = int(exponent)
    if n == 1:
        return u
    if n % 2 == 0:
        ends = u.low**n, u.high**n
        low = torch.where((u.low < 0) & (u.high > 0), 0.0, torch.minimum(*ends))
        return chain(u, low, torch.maximum(*ends), n * u.low ** (n - 1), n * u.high ** (n - 1))
    slopes = n * u.low ** (n - 1), n * u.high ** (n - 1)
    least = torch.where((u.low < 0) & (u.high > 0), 0.0, torch.minimum(*slopes))
    return chain(u, u.low**n, u.high**n, least, torch.maximum(*slopes))


def square_root(u: Enclosure) -> Enclosure:
    """The root."""
    return chain(u, u.low.sqrt(), u.high.sqrt(), 0.5 / u.high.sqrt(), 0.5 / u.low.sqrt())


def hull(a: Enclosure, b: Enclosure, may_be_a: Tensor, may_be_b: Tensor, low: Tensor, high: Tensor) -> Enclosure:
    """One of two values, with these bounds."""
    only_a, only_b = may_be_a & ~may_be_b, may_be_b & ~may_be_a
    least = torch.where(only_a, a.least, torch.where(only_b, b.least, torch.minimum(a.least, b.least)))
    most = torch.where(only_a, a.most, torch.where(only_b, b.most, torch.maximum(a.most, b.most)))
    return Enclosure(low, high, least, most, (may_be_a & a.jumps) | (may_be_b & b.jumps))


def where(condition: Any, a: Any, b: Any) -> Enclosure:
    """The first value where the condition holds, else the second; a jump where both may be and lie apart."""
    if not isinstance(condition, Condition):
        raise NoEnclosureError
    if not isinstance(a, Enclosure) and not isinstance(b, Enclosure):
        zero = torch.zeros_like(condition.may_be, dtype=torch.float64)
        a = Enclosure(zero + a, zero + a, zero, zero, condition.may_be & False)
    a, b = both(a, b)
    only_a, only_b = ~condition.may_not_be, ~condition.may_be
    low = torch.where(only_a, a.low, torch.where(only_b, b.low, torch.minimum(a.low, b.low)))
    high = torch.where(only_a, a.high, torch.where(only_b, b.high, torch.maximum(a.high, b.high)))
    one = hull(a, b, condition.may_be, condition.may_not_be, low, high)
    apart = torch.maximum(a.high - b.low, b.high - a.low)
    jumps = condition.may_be & condition.may_not_be & ~(apart <= JUMP)  # of infinite branches as well: NaN
    return Enclosure(one.low, one.high, one.least, one.most, one.jumps | jumps)
