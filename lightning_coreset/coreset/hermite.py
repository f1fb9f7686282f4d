r"""Hermite coefficients of an activation under a Gaussian: the one-dimensional half of the closed-form moments.

For :math:`g \sim N(0, 1)`, mean :math:`m` and scale :math:`s`, the function :math:`g \mapsto \phi(m + s g)` has the
coefficients :math:`a_k = E[\phi(m + s g) h_k(g)]` in the normalised Hermite polynomials :math:`h_k`, and
:math:`\sum_k a_k^2 = E[\phi^2]`. A piecewise-linear activation is a sum of shifted ReLUs, whose coefficients are known
in closed form; any other is integrated by Gauss-Hermite quadrature.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from lightning_coreset.coreset.activations import Activation, PiecewiseLinear

# Beyond 38 standard deviations the normal density is zero in float64, and the polynomials must not overflow.
_FURTHEST = 38.0
# Integrates a smooth activation to rounding, one with a kink (hardswish, elu with alpha other than 1) to about 5e-4.
_NODES = 200


def hermite_coefficients(activation: Activation, mean: Tensor, scale: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    r"""The first Hermite coefficients of :math:`g \mapsto \phi(m + s g)` and its second moment.

    Args:
        activation: The function :math:`\phi`.
        mean: The means :math:`m`, ``(N,)``.
        scale: The scales :math:`s`, ``(N,)``, not negative; at zero the function is constant.
        terms: The highest coefficient :math:`k`.

    Returns:
        ``(coefficients, second)``: :math:`a_0 .. a_k` as float64 ``(terms + 1, N)`` and :math:`E[\phi^2]` as ``(N,)``.

    Example:
        >>> from lightning_coreset.coreset import find_activation
        >>> a, second = hermite_coefficients(find_activation(""), torch.tensor([3.0]), torch.tensor([2.0]), 2)
        >>> a.flatten(), second
        (tensor([3., 2., 0.], dtype=torch.float64), tensor([13.], dtype=torch.float64))

    """
    mean, scale = mean.double(), scale.double()
    if activation.linear is not None:
        return _of_pieces(activation.linear, mean, scale, terms)
    nodes, weights = gauss_hermite(_NODES)
    nodes, weights = nodes.to(mean.device), weights.to(mean.device)
    values = activation.function(mean + scale * nodes[:, None])
    return (_polynomials(nodes, terms) * weights) @ values, weights @ values.square()


@lru_cache(maxsize=4)
def gauss_hermite(nodes: int) -> tuple[Tensor, Tensor]:
    r"""Nodes and weights with :math:`\sum_i w_i f(g_i) = E[f(g)]` for polynomials of degree below ``2 * nodes``.

    Golub and Welsch (1969): the nodes are the eigenvalues of the Jacobi matrix of the normalised Hermite polynomials,
    the weights the squared first components of its eigenvectors.

    Args:
        nodes: The number of nodes.

    Returns:
        ``(nodes, weights)``, float64 ``(nodes,)`` each.

    Example:
        >>> g, w = gauss_hermite(20)
        >>> round(float(w @ g**4), 12)
        3.0

    """
    off = torch.arange(1, nodes, dtype=torch.float64).sqrt()
    points, vectors = torch.linalg.eigh(off.diag(1) + off.diag(-1))
    weights = vectors[0].square()
    return points, weights / weights.sum()


def _polynomials(g: Tensor, terms: int) -> Tensor:
    h = [torch.ones_like(g), g]
    for k in range(1, terms):
        h.append((g * h[k] - math.sqrt(k) * h[k - 1]) / math.sqrt(k + 1))
    return torch.stack(h[: terms + 1])


def _relu_coefficients(mean: Tensor, scale: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    # With c = m / s: a_0 = m Phi(c) + s pdf(c), a_1 = s Phi(c), a_k = s pdf(c) h_{k-2}(-c) / sqrt(k (k - 1)).
    c = (mean / scale.clamp_min(torch.finfo(torch.float64).tiny)).clamp(-_FURTHEST, _FURTHEST)
    below = torch.special.ndtr(c)
    density = scale * torch.exp(-0.5 * c.square()) / math.sqrt(2 * math.pi)
    first = [mean * below + density, scale * below]
    degrees = torch.arange(2, terms + 1, dtype=torch.float64, device=mean.device)[:, None]
    higher = density * _polynomials(-c, max(terms - 2, 1))[: max(terms - 1, 0)] / (degrees * (degrees - 1)).sqrt()
    second = (mean.square() + scale.square()) * below + mean * density
    return torch.cat([torch.stack(first), higher])[: terms + 1], second


def _of_pieces(pieces: PiecewiseLinear, mean: Tensor, scale: Tensor, terms: int) -> tuple[Tensor, Tensor]:
    c, a = pieces.constant, pieces.slope
    coefficients = torch.zeros(terms + 1, len(mean), dtype=torch.float64, device=mean.device)
    coefficients[0] = c + a * mean
    if terms > 0:
        coefficients[1] = a * scale
    second = (c + a * mean).square() + (a * scale).square()
    met: list[tuple[float, float]] = []
    for at, change in pieces.kinks:
        relu, relu_second = _relu_coefficients(mean - at, scale, terms)
        coefficients += change * relu
        # E[(c + a z) r] with r = max(z - at, 0): z r = r^2 + at r. And r' r = r^2 + (at - at') r for at' <= at.
        cross = (c + a * at) * relu[0] + a * relu_second
        for earlier, change_there in met:
            cross = cross + change_there * (relu_second + (at - earlier) * relu[0])
        second = second + 2 * change * cross + change**2 * relu_second
        met.append((at, change))
    return coefficients, second
