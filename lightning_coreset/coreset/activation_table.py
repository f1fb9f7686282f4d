"""The activations that the mathematics knows, by the operator that computes them.

An operator that is not in the table is unknown (``None``): nothing is guessed by probing it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from lightning_coreset.coreset.activations import Activation, PiecewiseLinear

_Args = tuple[float | str | None, ...]
Build = Callable[[str, _Args], Activation | None]
"""Makes an activation from its name and its non-tensor arguments; ``None`` outside of the range of its constants."""

REGISTERED: dict[str, list[Build]] = {}
"""What users added, by ``"namespace::name"``; the last one of a name counts."""


def find_activation(op: str, args: tuple[float | str | None, ...] = ()) -> Activation | None:
    """Look an activation up by the operator that computes it.

    Args:
        op: Base name of the ATen op as a ``TorchDispatchMode`` sees it, such as ``"relu"``, ``"hardtanh"`` (what
            ``ReLU6`` becomes) or ``"elu"`` (what ``SELU`` becomes); the in-place twin ``"relu_"`` is the same function,
            and ``""`` is the identity. For an operator of another namespace ``"namespace::name"``, as it was
            registered.
        args: The op's non-tensor arguments in the order of its schema; those left out take the schema's defaults.

    Returns:
        The activation, or ``None`` where the op is not a known activation or its arguments leave the range in which
        the constants hold (a softplus with ``beta <= 0``, for example).

    Example:
        >>> find_activation("hardtanh", (0.0, 6.0)).lipschitz
        1.0
        >>> find_activation("argsort") is None
        True

    """
    if REGISTERED.get(op):
        return REGISTERED[op][-1](op, args)
    build = _TABLE.get(op.removesuffix("_"))
    return None if build is None else build(op.removesuffix("_"), args)


def _filled(args: _Args, defaults: tuple[float, ...]) -> tuple[float, ...]:
    given = [float(a) if isinstance(a, int | float) else default for a, default in zip(args, defaults, strict=False)]
    return (*given, *defaults[len(given) :])


def in_pieces(
    name: str, args: _Args, function: Callable[[Tensor], Tensor], slope: float, kinks: tuple[tuple[float, float], ...]
) -> Activation:
    """A continuous piecewise-linear activation; the constant follows from its value left of the first kink."""
    anchor = kinks[0][0] if kinks else 0.0
    constant = float(function(torch.tensor(anchor, dtype=torch.float64))) - slope * anchor
    slopes, turning, current = [slope], [], slope
    for at, change in kinks:
        if current * (current + change) < 0:
            turning.append((at, float(function(torch.tensor(at, dtype=torch.float64)))))
        current += change
        slopes.append(current)
    steepest = max(abs(s) for s in slopes)
    return Activation(name, function, steepest, args, tuple(turning), PiecewiseLinear(constant, slope, kinks))


def _identity(name: str, args: _Args) -> Activation:
    return in_pieces(name, args, lambda z: z, 1.0, ())


def _relu(name: str, args: _Args) -> Activation:
    return in_pieces(name, args, torch.relu, 0.0, ((0.0, 1.0),))


RELU = _relu("relu", ())
"""What other functions are written with."""


def _leaky_relu(name: str, args: _Args) -> Activation:
    (slope,) = _filled(args, (0.01,))
    return in_pieces(name, args, partial(functional.leaky_relu, negative_slope=slope), slope, ((0.0, 1.0 - slope),))


def _clipped(name: str, args: _Args, low: float, high: float) -> Activation | None:
    if not low < high:
        return None
    function = partial(torch.clamp, min=low, max=high)
    # an open end has no kink; open at both ends it is the identity
    kinks = tuple((at, change) for at, change in ((low, 1.0), (high, -1.0)) if math.isfinite(at))
    return in_pieces(name, args, function, 1.0 if low == -math.inf else 0.0, kinks)


def _hardtanh(name: str, args: _Args) -> Activation | None:
    return _clipped(name, args, *_filled(args, (-1.0, 1.0)))


def _clamp(name: str, args: _Args) -> Activation | None:
    return _clipped(name, args, *_filled(args, (-math.inf, math.inf)))


def _clamp_max(name: str, args: _Args) -> Activation | None:
    return _clipped(name, args, -math.inf, *_filled(args, (math.inf,)))


def _hardsigmoid(name: str, args: _Args) -> Activation:
    return in_pieces(name, args, functional.hardsigmoid, 0.0, ((-3.0, 1 / 6), (3.0, -1 / 6)))


def _softshrink(name: str, args: _Args) -> Activation | None:
    (at,) = _filled(args, (0.5,))
    return (
        in_pieces(name, args, partial(functional.softshrink, lambd=at), 1.0, ((-at, -1.0), (at, 1.0)))
        if at >= 0
        else None
    )


def _exponential(name: str, args: _Args, negative: float, positive: float, rate: float) -> Activation | None:
    # a x for x > 0, b (exp(rate x) - 1) below: with a rate below zero it has no Lipschitz constant
    if rate < 0:
        return None
    function = partial(_expm1_below_zero, negative=negative, positive=positive, rate=rate)
    turns = ((0.0, 0.0),) if positive * negative * rate < 0 else ()
    return Activation(name, function, max(abs(positive), abs(negative) * rate), args, turns)


def _expm1_below_zero(z: Tensor, negative: float, positive: float, rate: float) -> Tensor:
    return torch.where(z > 0, positive * z, negative * torch.expm1(rate * z.clamp(max=0)))


def _elu(name: str, args: _Args) -> Activation | None:
    alpha, scale, input_scale = _filled(args, (1.0, 1.0, 1.0))
    return _exponential(name, args, alpha * scale, scale, input_scale)


def _celu(name: str, args: _Args) -> Activation | None:
    (alpha,) = _filled(args, (1.0,))
    return None if alpha <= 0 else _exponential(name, args, alpha, 1.0, 1 / alpha)


def _selu(name: str, args: _Args) -> Activation | None:
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return _exponential(name, args, alpha * scale, scale, 1.0)


def _softplus(name: str, args: _Args) -> Activation | None:
    beta, threshold = _filled(args, (1.0, 20.0))
    if beta <= 0 or threshold < 0:
        return None
    # PyTorch switches to the identity above the threshold and steps DOWN there by log1p(exp(-threshold)) / beta: both
    # sides of the step are listed, so the suprema stay exact. Only a step as small as the default's 2e-9 is Lipschitz.
    step, at = math.log1p(math.exp(-threshold)) / beta, threshold / beta
    function = partial(functional.softplus, beta=beta, threshold=threshold)
    return Activation(name, function, 1.0 if step < 1e-3 * at else math.inf, args, ((at, at + step), (at, at)))


def _smooth(
    function: Callable[[Tensor], Tensor], lipschitz: float, *turning_points: tuple[float, float]
) -> Callable[[str, _Args], Activation]:
    return lambda name, args: Activation(name, function, lipschitz, args, turning_points)


# The single dips of GELU, SiLU and Mish solve phi' = 0, their Lipschitz constants are |phi'| where phi'' = 0 (rounded
# up in the last digit); GELU's is at sqrt(2).
_GELU_ERF = _smooth(functional.gelu, 1.128904145185155, (-0.7517915246935644, -0.16997120747990366))
_GELU_TANH = _smooth(
    partial(functional.gelu, approximate="tanh"), 1.128993068658773, (-0.7524614220710163, -0.1700407505712541)
)


def _gelu(name: str, args: _Args) -> Activation:
    return (_GELU_TANH if args[:1] == ("tanh",) else _GELU_ERF)(name, args)


_TABLE: dict[str, Build] = {
    "": _identity,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "hardtanh": _hardtanh,
    "relu6": lambda name, args: _clipped(name, args, 0.0, 6.0),
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp_max,
    "softshrink": _softshrink,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _smooth(functional.hardswish, 1.5, (-1.5, -0.375)),
    "elu": _elu,
    "celu": _celu,
    "selu": _selu,
    "softplus": _softplus,
    "log_sigmoid": _smooth(functional.logsigmoid, 1.0),
    "log_sigmoid_forward": _smooth(functional.logsigmoid, 1.0),
    "sigmoid": _smooth(torch.sigmoid, 0.25),
    "tanh": _smooth(torch.tanh, 1.0),
    "gelu": _gelu,
    "silu": _smooth(functional.silu, 1.099839320128868, (-1.278464542761074, -0.2784645427610738)),
    "mish": _smooth(functional.mish, 1.088498161251728, (-1.1924312145154952, -0.3088434130172504)),
}
