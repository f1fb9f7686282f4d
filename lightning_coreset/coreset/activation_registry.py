"""Activations that users add: a scalar function with the constants that the bounds need, checked on a grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lightning_coreset._registration import Registration
from lightning_coreset.coreset.activation_table import REGISTERED
from lightning_coreset.coreset.activations import Activation

_FURTHEST = 50.0
_POINTS = 2**16 + 1
"""Of the grid on which what is claimed of a function is checked: 0.0015 apart, with zero among them."""
_BISECTIONS = 24
_ROUNDING = 1e-6


def register_activation(
    name: str,
    function: Callable[[Tensor], Tensor],
    *,
    lipschitz: float = math.inf,
    turning_points: Sequence[float] | None = None,
    override: bool = False,
) -> Registration:
    r"""Tell the mathematics what scalar function an operator computes.

    Its expected moments are integrated by Gauss-Hermite quadrature, so that groups behind it get the coreset form and
    new weights. What is said of *all* inputs (sensitivities, certificates, propagated radii) needs the constants below;
    without ``turning_points`` such groups are ranked and get no certificate.

    Args:
        name: ``"namespace::name"`` of the operator, as its steps are called; not one of ATen's.
        function: :math:`\phi`, applied elementwise to a float64 tensor of any shape. Where the operator is called with
            numbers other than its defaults they are passed on, as ``function(z, *numbers)``, and the constants below,
            which hold for a call without them, are not used.
        lipschitz: An :math:`L` with :math:`|\phi(a) - \phi(b)| \le L |a - b|`. The sample size of the theorem and the
            spectral bound need it; infinite where there is none, as for a square.
        turning_points: Where the function has its interior local extrema, all of them, ascending; empty for a monotone
            one. What is checked is checked between -50 and 50, and there it counts: where weights and radius let
            pre-activations leave this interval, the group has no certificate.
        override: Whether the name may be registered already; this function then counts until it is removed.

    Returns:
        The registration, whose ``remove()`` takes it back.

    Raises:
        ValueError: If the name is not qualified or is registered and ``override`` is not set; if the function is not
            elementwise, finite and continuous between -50 and 50; or if a claim is refuted there: by a steeper slope
            than ``lipschitz``, or an extremum that is not among the ``turning_points``.

    Example:
        >>> from lightning_coreset.coreset import find_activation, register_activation
        >>> relu2 = lambda z: torch.relu(z).square()
        >>> with register_activation("house::relu2", relu2, turning_points=()):
        ...     find_activation("house::relu2").name
        'house::relu2'
        >>> find_activation("house::relu2") is None
        True
    """
    if "::" not in name or name.startswith("aten::"):
        raise ValueError(f"Expected the name of an activation as 'namespace::name', not of aten, but got {name!r}.")
    if REGISTERED.get(name) and not override:
        raise ValueError(f"Expected an activation that is not registered yet but {name} is. Pass override=True.")
    if not (lipschitz > 0 or math.isinf(lipschitz)):
        raise ValueError(f"Expected the lipschitz constant of {name} to be positive but got {lipschitz!r}.")
    z, values = _evaluated(name, function)
    _check_slopes(name, function, z, values, lipschitz)
    turns = None if turning_points is None else [float(point) for point in turning_points]
    if turns is not None:
        _check_monotone(name, z, values, turns)
    points = None if turns is None else tuple((at, float(function(torch.tensor(at).double()))) for at in turns)

    def build(op: str, numbers: tuple[float | str | None, ...]) -> Activation | None:
        if not numbers:
            return Activation(op, function, lipschitz, (), points, checked=_FURTHEST)
        try:
            function(torch.zeros(1, dtype=torch.float64), *numbers)
        except TypeError:  # it takes no numbers
            return None
        return Activation(op, lambda z: function(z, *numbers), math.inf, numbers, None)

    REGISTERED.setdefault(name, []).append(build)
    return Registration(lambda: REGISTERED[name].remove(build))


def _evaluated(name: str, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """A grid and the function's values there; ``ValueError`` if it is no scalar function of each number alone."""
    z = torch.linspace(-_FURTHEST, _FURTHEST, _POINTS, dtype=torch.float64)
    values, third = function(z.clone()), len(z) // 3  # it may write into its argument
    if not isinstance(values, Tensor) or values.shape != z.shape or values.dtype != torch.float64:
        raise ValueError(f"Expected the activation {name} to map a float64 tensor to one of its shape but it does not.")
    if not bool(values.isfinite().all()):
        raise ValueError(f"Expected the activation {name} to be finite between -50 and 50 but it is not.")
    # Fewer numbers, in another order and shape: each must come out as before.
    some = function(z[:third].flip(0).reshape(1, -1)).reshape(-1).flip(0)
    if not torch.allclose(values[:third], some, rtol=1e-12, atol=1e-12):
        raise ValueError(
            f"Expected the activation {name} to be elementwise but a value depends on the others or on its position."
        )
    return z, values


def _check_slopes(name: str, function: Callable[[Tensor], Tensor], z: Tensor, values: Tensor, lipschitz: float) -> None:
    """Bisect all steps of the grid towards their steeper half: a jump stays as high as it is, a slope may grow."""
    left, right, low, high = z[:-1], z[1:], values[:-1], values[1:]
    for _ in range(_BISECTIONS):
        steepest = ((high - low) / (right - left)).abs()
        at = int(steepest.argmax())
        if float(steepest[at]) > lipschitz * (1 + _ROUNDING):
            raise ValueError(
                f"Expected the slopes of the activation {name} to be at most lipschitz={lipschitz:g} but near "
                f"{float(left[at]):.4g} one is {float(steepest[at]):.6g}."
            )
        middle = (left + right) / 2
        value = function(middle.clone())
        first = (value - low).abs() >= (high - value).abs()
        left, right = torch.where(first, left, middle), torch.where(first, middle, right)
        low, high = torch.where(first, low, value), torch.where(first, value, high)
    jumps = (high - low).abs() > _ROUNDING * (values[1:] - values[:-1]).abs().clamp_min(1e-9)
    if bool(jumps.any()):
        at = int(jumps.nonzero()[0])
        raise ValueError(
            f"Expected the activation {name} to be continuous but it jumps by {float((high - low)[at]):.4g} near "
            f"{float(left[at]):.4g}."
        )


def _check_monotone(name: str, z: Tensor, values: Tensor, turns: Sequence[float]) -> None:
    """Between two neighbouring turning points the function may only rise or only fall, as far as the grid goes."""
    if any(not low < high for low, high in pairwise(turns)):
        raise ValueError(f"Expected the turning_points of {name} to ascend but got {list(turns)}.")
    for low, high in pairwise([-math.inf, *turns, math.inf]):
        steps = values[(z >= low) & (z <= high)].diff()
        noise = _ROUNDING**2 * values.abs().amax()
        if bool((steps > noise).any()) and bool((steps < -noise).any()):
            rises = bool(steps[steps.abs() > noise][0] > 0)
            turned = (steps < -noise) if rises else (steps > noise)
            at = float(z[(z >= low) & (z <= high)][int(turned.nonzero()[0])])
            raise ValueError(
                f"Expected the activation {name} to be monotone between {low:g} and {high:g} but it turns near "
                f"{at:.4g}. Name all turning_points."
            )
