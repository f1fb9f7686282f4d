r"""Enclosures of a function and its slope over intervals: interval arithmetic through the operations of an expression.

For every cell :math:`[a, b]` the bounds contain :math:`f(z)` and :math:`f'(z)` for all :math:`z` in it, up to the
rounding of float64. They overestimate where one value enters an operation twice, by less the smaller the cells are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_coreset.expressions import Expression, Operand, Operation, ScalarTensor, Value


class NoEnclosure(Exception):
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
class _Condition:
    """What a comparison may be over cells, bool (n,) each."""

    may_be: Tensor
    may_not_be: Tensor


_JUMP = 1e-8
"""Branches that differ by less where they meet count as continuous, as torch's softplus does at its threshold."""


def enclose(expression: Expression, low: Tensor, high: Tensor) -> Enclosure:
    """Bounds of an expression and of its slope over the cells from ``low`` to ``high``, both float64 (n,).

    Raises:
        NoEnclosure: If one of its operations has no rule, or its value is no number.

    Example:
        >>> from lightning_coreset.expressions import applied
        >>> square = enclose(applied("square", [Expression()]), torch.tensor([-1.0]), torch.tensor([2.0]))
        >>> square.low, square.high, square.least, square.most
        (tensor([0.]), tensor([4.]), tensor([-2.]), tensor([4.]))
    """
    one, nowhere = torch.ones_like(low), torch.zeros_like(low, dtype=torch.bool)
    values: list[Enclosure | _Condition] = [Enclosure(low, high, one, one, nowhere)]
    for operation in expression.operations:
        values.append(_enclosed(operation, values, low))
    last = values[-1]
    if not isinstance(last, Enclosure):
        raise NoEnclosure
    return last


def _enclosed(operation: Operation, values: list[Any], like: Tensor) -> Any:
    def value(operand: Operand) -> Any:
        if isinstance(operand, Value):
            return values[operand.index]
        return operand.value if isinstance(operand, ScalarTensor) else operand

    args, kwargs = operation.replaced(value)
    rule = _RULES.get(operation.op)
    if rule is None:
        raise NoEnclosure
    try:
        return rule(*args, **kwargs)
    except (TypeError, AttributeError):  # in a form that the rule does not know
        raise NoEnclosure from None


def _constant(value: float, like: Enclosure) -> Enclosure:
    zero = torch.zeros_like(like.low)
    return Enclosure(zero + value, zero + value, zero, zero, torch.zeros_like(like.jumps))


def _both(a: Any, b: Any) -> tuple[Enclosure, Enclosure]:
    """Two operands of which one may be a number."""
    if isinstance(a, Enclosure):
        return a, b if isinstance(b, Enclosure) else _constant(float(b), a)
    return _constant(float(a), b), b


def _times(low: Tensor, high: Tensor, least: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """The product of two intervals."""
    ends = torch.stack([low * least, low * most, high * least, high * most])
    return ends.amin(0), ends.amax(0)


def _chain(u: Enclosure, low: Tensor, high: Tensor, least: Tensor, most: Tensor) -> Enclosure:
    """A function of ``u`` with these values and slopes."""
    return Enclosure(low, high, *_times(least, most, u.least, u.most), u.jumps)


def _add(a: Any, b: Any, alpha: float = 1) -> Enclosure:
    a, b = _both(a, b)
    b = _scaled(b, alpha)
    return Enclosure(a.low + b.low, a.high + b.high, a.least + b.least, a.most + b.most, a.jumps | b.jumps)


def _scaled(a: Enclosure, factor: float) -> Enclosure:
    if factor == 1:
        return a
    return Enclosure(
        *_times(a.low, a.high, torch.full_like(a.low, factor), torch.full_like(a.low, factor)),
        *_times(a.least, a.most, torch.full_like(a.low, factor), torch.full_like(a.low, factor)),
        a.jumps,
    )


def _subtract(a: Any, b: Any, alpha: float = 1) -> Enclosure:
    a, b = _both(a, b)
    return _add(a, _scaled(b, -alpha))


def _multiply(a: Any, b: Any) -> Enclosure:
    for mask, other in ((a, b), (b, a)):
        if isinstance(mask, _Condition):
            return _where(mask, other, 0.0)
    if a is b:
        return _square(a)
    a, b = _both(a, b)
    first, second = _times(a.least, a.most, b.low, b.high), _times(b.least, b.most, a.low, a.high)
    return Enclosure(
        *_times(a.low, a.high, b.low, b.high), first[0] + second[0], first[1] + second[1], a.jumps | b.jumps
    )


def _divide(a: Any, b: Any) -> Enclosure:
    if isinstance(b, Enclosure):
        return _multiply(a, _reciprocal(b))
    return Enclosure(*(one if one.dtype == torch.bool else one / b for one in _ordered(a, b < 0)))


def _ordered(a: Enclosure, turned: bool) -> tuple[Tensor, ...]:
    if turned:
        return a.high, a.low, a.most, a.least, a.jumps
    return a.low, a.high, a.least, a.most, a.jumps


def _reciprocal(u: Enclosure) -> Enclosure:
    across = (u.low <= 0) & (u.high >= 0)
    infinite = torch.full_like(u.low, math.inf)
    low, high = torch.where(across, -infinite, 1 / u.high), torch.where(across, infinite, 1 / u.low)
    slopes = -1 / u.low.square(), -1 / u.high.square()
    least, most = torch.minimum(*slopes), torch.maximum(*slopes)
    return _chain(u, low, high, torch.where(across, -infinite, least), torch.where(across, infinite, most))


def _square(u: Enclosure) -> Enclosure:
    ends = u.low.square(), u.high.square()
    across = (u.low < 0) & (u.high > 0)
    low = torch.where(across, 0.0, torch.minimum(*ends))
    return _chain(u, low, torch.maximum(*ends), 2 * u.low, 2 * u.high)


def _power(u: Any, exponent: Any) -> Enclosure:
    if not isinstance(u, Enclosure) or not float(exponent).is_integer() or not 1 <= exponent <= 16:
        if exponent == 0.5:
            return _square_root(u)
        raise NoEnclosure
    n = int(exponent)
    if n == 1:
        return u
    if n % 2 == 0:
        ends = u.low**n, u.high**n
        low = torch.where((u.low < 0) & (u.high > 0), 0.0, torch.minimum(*ends))
        return _chain(u, low, torch.maximum(*ends), n * u.low ** (n - 1), n * u.high ** (n - 1))
    slopes = n * u.low ** (n - 1), n * u.high ** (n - 1)
    least = torch.where((u.low < 0) & (u.high > 0), 0.0, torch.minimum(*slopes))
    return _chain(u, u.low**n, u.high**n, least, torch.maximum(*slopes))


def _square_root(u: Enclosure) -> Enclosure:
    return _chain(u, u.low.sqrt(), u.high.sqrt(), 0.5 / u.high.sqrt(), 0.5 / u.low.sqrt())


def _rising(function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> Callable[..., Enclosure]:
    """A rising function whose slope is monotone."""

    def rule(u: Enclosure) -> Enclosure:
        ends = slope(u.low), slope(u.high)
        return _chain(u, function(u.low), function(u.high), torch.minimum(*ends), torch.maximum(*ends))

    return rule


def _sigmoidal(function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> Callable[..., Enclosure]:
    """A rising function whose slope is even and falls with the distance from zero."""

    def rule(u: Enclosure) -> Enclosure:
        least = slope(torch.maximum(u.low.abs(), u.high.abs()))
        nearest = torch.where((u.low < 0) & (u.high > 0), 0.0, torch.minimum(u.low.abs(), u.high.abs()))
        return _chain(u, function(u.low), function(u.high), least, slope(nearest))

    return rule


def _tanh_slope(u: Tensor) -> Tensor:
    tail = torch.exp(-2 * u.abs())  # and not 1 - tanh(u)^2, of which nothing is left where tanh is nearly 1
    return 4 * tail / (1 + tail).square()


def _sigmoid_slope(u: Tensor) -> Tensor:
    tail = torch.exp(-u.abs())
    return tail / (1 + tail).square()


_tanh = _sigmoidal(torch.tanh, _tanh_slope)
_sigmoid = _sigmoidal(torch.sigmoid, _sigmoid_slope)
_erf = _sigmoidal(torch.erf, lambda u: 2 / math.sqrt(math.pi) * torch.exp(-u.square()))
_log_sigmoid = _rising(functional.logsigmoid, lambda u: torch.sigmoid(-u))


def _softplus(u: Enclosure, beta: float = 1, threshold: float = 20) -> Enclosure:
    if beta <= 0 or math.log1p(math.exp(-threshold)) / beta > _JUMP:
        raise NoEnclosure
    return _rising(partial(functional.softplus, beta=beta, threshold=threshold), lambda x: torch.sigmoid(beta * x))(u)


def _maximum(a: Any, b: Any) -> Enclosure:
    a, b = _both(a, b)
    return _hull(
        a, b, a.high >= b.low, b.high >= a.low, torch.maximum(a.low, b.low), torch.maximum(a.high, b.high)
    )


def _minimum(a: Any, b: Any) -> Enclosure:
    return _negative(_maximum(*map(_negative, _both(a, b))))


def _negative(a: Enclosure) -> Enclosure:
    return Enclosure(-a.high, -a.low, -a.most, -a.least, a.jumps)


def _hull(a: Enclosure, b: Enclosure, may_be_a: Tensor, may_be_b: Tensor, low: Tensor, high: Tensor) -> Enclosure:
    """One of two values, with these bounds."""
    only_a, only_b = may_be_a & ~may_be_b, may_be_b & ~may_be_a
    least = torch.where(only_a, a.least, torch.where(only_b, b.least, torch.minimum(a.least, b.least)))
    most = torch.where(only_a, a.most, torch.where(only_b, b.most, torch.maximum(a.most, b.most)))
    return Enclosure(low, high, least, most, (may_be_a & a.jumps) | (may_be_b & b.jumps))


def _where(condition: Any, a: Any, b: Any) -> Enclosure:
    if not isinstance(condition, _Condition):
        raise NoEnclosure
    if not isinstance(a, Enclosure) and not isinstance(b, Enclosure):
        zero = torch.zeros_like(condition.may_be, dtype=torch.float64)
        a = Enclosure(zero + a, zero + a, zero, zero, condition.may_be & False)
    a, b = _both(a, b)
    only_a, only_b = ~condition.may_not_be, ~condition.may_be
    low = torch.where(only_a, a.low, torch.where(only_b, b.low, torch.minimum(a.low, b.low)))
    high = torch.where(only_a, a.high, torch.where(only_b, b.high, torch.maximum(a.high, b.high)))
    one = _hull(a, b, condition.may_be, condition.may_not_be, low, high)
    apart = torch.maximum(a.high - b.low, b.high - a.low)
    jumps = condition.may_be & condition.may_not_be & ~(apart <= _JUMP)  # of infinite branches as well: NaN
    return Enclosure(one.low, one.high, one.least, one.most, one.jumps | jumps)


def _greater(a: Any, b: Any) -> _Condition:
    a, b = _both(a, b)
    return _Condition(a.high >= b.low, a.low <= b.high)


def _less(a: Any, b: Any) -> _Condition:
    a, b = _both(a, b)
    return _Condition(a.low <= b.high, a.high >= b.low)


def _clamp(u: Enclosure, low: Any = None, high: Any = None, **named: Any) -> Enclosure:
    low, high = named.get("min", low), named.get("max", high)
    bounded = u if low is None else _maximum(u, low)
    return bounded if high is None else _minimum(bounded, high)


def _exponential(u: Enclosure, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Enclosure:
    below = _scaled(_expm1(_scaled(_minimum(u, 0.0), input_scale)), alpha * scale)
    return _where(_greater(u, 0.0), _scaled(u, scale), below)


_exp = _rising(torch.exp, torch.exp)
_expm1 = _rising(torch.expm1, torch.exp)
_relu = partial(_maximum, b=0.0)


def _hardsigmoid(u: Enclosure) -> Enclosure:
    return _clamp(_add(_scaled(u, 1 / 6), 0.5), 0.0, 1.0)


def _gelu(u: Enclosure, approximate: str = "none") -> Enclosure:
    if approximate == "tanh":
        inner = _scaled(_add(u, _scaled(_power(u, 3), 0.044715)), math.sqrt(2 / math.pi))
        return _multiply(_scaled(u, 0.5), _add(_tanh(inner), 1.0))
    return _multiply(_scaled(u, 0.5), _add(_erf(_scaled(u, math.sqrt(0.5))), 1.0))


_RULES: dict[str, Callable[..., Any]] = {
    "add": _add,
    "sub": _subtract,
    "rsub": lambda a, b, alpha=1: _subtract(b, a if alpha == 1 else _scaled(a, alpha)),
    "mul": _multiply,
    "div": _divide,
    "neg": _negative,
    "reciprocal": _reciprocal,
    "square": _square,
    "pow": _power,
    "sqrt": _square_root,
    "exp": _exp,
    "expm1": _expm1,
    "log": _rising(torch.log, torch.reciprocal),
    "log1p": _rising(torch.log1p, lambda u: 1 / (1 + u)),
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "erf": _erf,
    "erfc": lambda u: _subtract(1.0, _erf(u)),
    "atan": _sigmoidal(torch.atan, lambda u: 1 / (1 + u.square())),
    "asinh": _sigmoidal(torch.asinh, lambda u: 1 / (1 + u.square()).sqrt()),
    "softplus": _softplus,
    "log_sigmoid": _log_sigmoid,
    "log_sigmoid_forward": _log_sigmoid,
    "relu": _relu,
    "relu6": lambda u: _clamp(u, 0.0, 6.0),
    "hardtanh": lambda u, low=-1.0, high=1.0: _clamp(u, low, high),
    "clamp": _clamp,
    "clamp_min": _maximum,
    "clamp_max": _minimum,
    "leaky_relu": lambda u, slope=0.01: _where(_greater(u, 0.0), u, _scaled(u, slope)),
    "elu": _exponential,
    "celu": lambda u, alpha=1.0: _exponential(u, alpha, 1.0, 1 / alpha),
    "selu": lambda u: _exponential(u, 1.6732632423543772, 1.0507009873554805),
    "silu": lambda u: _multiply(u, _sigmoid(u)),
    "mish": lambda u: _multiply(u, _tanh(_softplus(u))),
    "gelu": _gelu,
    "hardsigmoid": _hardsigmoid,
    "hardswish": lambda u: _multiply(u, _hardsigmoid(u)),
    "abs": lambda u: _maximum(u, _negative(u)),
    "maximum": _maximum,
    "fmax": _maximum,
    "minimum": _minimum,
    "fmin": _minimum,
    "where": _where,
    "gt": _greater,
    "ge": _greater,
    "lt": _less,
    "le": _less,
    "zeros_like": lambda u: _constant(0.0, u),
    "ones_like": lambda u: _constant(1.0, u),
    "full_like": lambda u, value: _constant(float(value), u),
}
