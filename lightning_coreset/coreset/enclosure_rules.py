"""Enclosures of the operators that activations are written out with, and of expressions of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lightning_coreset.coreset.intervals import (
    JUMP,
    Condition,
    Enclosure,
    NoEnclosureError,
    add,
    both,
    chain,
    constant,
    divide,
    hull,
    multiply,
    power,
    reciprocal,
    scaled,
    square,
    square_root,
    subtract,
    where,
)
from lightning_coreset.expressions import Expression, Operand, Operation, ScalarTensor, Value


def enclose(expression: Expression, low: Tensor, high: Tensor) -> Enclosure:
    """Bounds of an expression and of its slope over the cells from ``low`` to ``high``, both float64 (n,).

    Raises:
        NoEnclosureError: If one of its operations has no rule, or its value is no number.

    Example:
        >>> from lightning_coreset.expressions import applied
        >>> square = enclose(applied("square", [Expression()]), torch.tensor([-1.0]), torch.tensor([2.0]))
        >>> square.low, square.high, square.least, square.most
        (tensor([0.]), tensor([4.]), tensor([-2.]), tensor([4.]))
    """
    one, nowhere = torch.ones_like(low), torch.zeros_like(low, dtype=torch.bool)
    values: list[Enclosure | Condition] = [Enclosure(low, high, one, one, nowhere)]
    for operation in expression.operations:
        values.append(_enclosed(operation, values))
    last = values[-1]
    if not isinstance(last, Enclosure):
        raise NoEnclosureError
    return last


def _enclosed(operation: Operation, values: list[Any]) -> Any:
    def value(operand: Operand) -> Any:
        if isinstance(operand, Value):
            return values[operand.index]
        return operand.value if isinstance(operand, ScalarTensor) else operand

    args, kwargs = operation.replaced(value)
    rule = _RULES.get(operation.op)
    if rule is None:
        raise NoEnclosureError
    try:
        return rule(*args, **kwargs)
    except (TypeError, AttributeError):  # in a form that the rule does not know
        raise NoEnclosureError from None


def _rising(function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> Callable[..., Enclosure]:
    """A rising function whose slope is monotone."""

    def rule(u: Enclosure) -> Enclosure:
        ends = slope(u.low), slope(u.high)
        return chain(u, function(u.low), function(u.high), torch.minimum(*ends), torch.maximum(*ends))

    return rule


def _sigmoidal(function: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor]) -> Callable[..., Enclosure]:
    """A rising function whose slope is even and falls with the distance from zero."""

    def rule(u: Enclosure) -> Enclosure:
        least = slope(torch.maximum(u.low.abs(), u.high.abs()))
        nearest = torch.where((u.low < 0) & (u.high > 0), 0.0, torch.minimum(u.low.abs(), u.high.abs()))
        return chain(u, function(u.low), function(u.high), least, slope(nearest))

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
    if beta <= 0 or math.log1p(math.exp(-threshold)) / beta > JUMP:
        raise NoEnclosureError
    return _rising(partial(functional.softplus, beta=beta, threshold=threshold), lambda x: torch.sigmoid(beta * x))(u)


def _maximum(a: Any, b: Any) -> Enclosure:
    a, b = both(a, b)
    return hull(a, b, a.high >= b.low, b.high >= a.low, torch.maximum(a.low, b.low), torch.maximum(a.high, b.high))


def _minimum(a: Any, b: Any) -> Enclosure:
    return _negative(_maximum(*map(_negative, both(a, b))))


def _negative(a: Enclosure) -> Enclosure:
    return Enclosure(-a.high, -a.low, -a.most, -a.least, a.jumps)


def _greater(a: Any, b: Any) -> Condition:
    a, b = both(a, b)
    return Condition(a.high >= b.low, a.low <= b.high)


def _less(a: Any, b: Any) -> Condition:
    a, b = both(a, b)
    return Condition(a.low <= b.high, a.high >= b.low)


def _clamp(u: Enclosure, low: Any = None, high: Any = None, **named: Any) -> Enclosure:
    low, high = named.get("min", low), named.get("max", high)
    bounded = u if low is None else _maximum(u, low)
    return bounded if high is None else _minimum(bounded, high)


def _exponential(u: Enclosure, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Enclosure:
    below = scaled(_expm1(scaled(_minimum(u, 0.0), input_scale)), alpha * scale)
    return where(_greater(u, 0.0), scaled(u, scale), below)


_exp = _rising(torch.exp, torch.exp)
_expm1 = _rising(torch.expm1, torch.exp)
_relu = partial(_maximum, b=0.0)


def _hardsigmoid(u: Enclosure) -> Enclosure:
    return _clamp(add(scaled(u, 1 / 6), 0.5), 0.0, 1.0)


def _gelu(u: Enclosure, approximate: str = "none") -> Enclosure:
    if approximate == "tanh":
        inner = scaled(add(u, scaled(power(u, 3), 0.044715)), math.sqrt(2 / math.pi))
        return multiply(scaled(u, 0.5), add(_tanh(inner), 1.0))
    return multiply(scaled(u, 0.5), add(_erf(scaled(u, math.sqrt(0.5))), 1.0))


_RULES: dict[str, Callable[..., Any]] = {
    "add": add,
    "sub": subtract,
    "rsub": lambda a, b, alpha=1: subtract(b, a if alpha == 1 else scaled(a, alpha)),
    "mul": multiply,
    "div": divide,
    "neg": _negative,
    "reciprocal": reciprocal,
    "square": square,
    "pow": power,
    "sqrt": square_root,
    "exp": _exp,
    "expm1": _expm1,
    "log": _rising(torch.log, torch.reciprocal),
    "log1p": _rising(torch.log1p, lambda u: 1 / (1 + u)),
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "erf": _erf,
    "erfc": lambda u: subtract(1.0, _erf(u)),
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
    "leaky_relu": lambda u, slope=0.01: where(_greater(u, 0.0), u, scaled(u, slope)),
    "elu": _exponential,
    "celu": lambda u, alpha=1.0: _exponential(u, alpha, 1.0, 1 / alpha),
    "selu": lambda u: _exponential(u, 1.6732632423543772, 1.0507009873554805),
    "silu": lambda u: multiply(u, _sigmoid(u)),
    "mish": lambda u: multiply(u, _tanh(_softplus(u))),
    "gelu": _gelu,
    "hardsigmoid": _hardsigmoid,
    "hardswish": lambda u: multiply(u, _hardsigmoid(u)),
    "abs": lambda u: _maximum(u, _negative(u)),
    "maximum": _maximum,
    "fmax": _maximum,
    "minimum": _minimum,
    "fmin": _minimum,
    "where": where,
    "gt": _greater,
    "ge": _greater,
    "lt": _less,
    "le": _less,
    "zeros_like": lambda u: constant(0.0, u),
    "ones_like": lambda u: constant(1.0, u),
    "full_like": lambda u, value: constant(float(value), u),
}
