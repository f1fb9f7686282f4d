r"""Least squares on samples of what consumers read: moments, correlations of positions, new weights.

Shapes: R samples, N channels, T positions at which a consumer reads a channel, M inputs of the new consumer, O outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_coreset.coreset.elimination import regularisation
from lightning_coreset.coreset.gaussian_moments import matrix_dtype
from lightning_coreset.coreset.sampled_moment import products_of_rows

_USUAL = (2.0**-40, 2.0**40)
"""Between these largest values products of samples are computed as they are."""


@dataclass(frozen=True, eq=False)
class SampleFit:
    """New weights by least squares, and how near they come.

    Attributes:
        weights: float64 ``(O, M)``.
        constant: What is added to the outputs, float64 ``(O,)``; zero where none may be.
        error: The mean squared error of the outputs, added up over them.
        energy: Their mean square, around their mean where a constant may be added.
        variance_ratios: The variance of the new outputs over that of the old ones, float64 ``(O,)``.
    """

    weights: Tensor
    constant: Tensor
    error: float
    energy: float
    variance_ratios: Tensor


def fit_samples(
    inputs: Tensor, targets: Tensor, start: Tensor, *, intercept: bool = True, ridge: float = 1e-3
) -> SampleFit:
    r"""Weights with which the inputs come nearest to the targets.

    .. math:: \min_U \; \tfrac1R \sum_r \|y_r - U x_r - c\|^2 + \lambda \|U - U_0\|^2

    The ridge pulls to a start, the old weights of what is kept, not to zero: where the samples say nothing, a weight
    stays as it was. Where there are fewer samples than inputs, the equations are solved for the samples: with
    :math:`E = Y - X U_0^T` and :math:`A = (X X^T / R + \lambda I)^{-1} E` the weights are :math:`U_0 + A^T X / R`, and
    what is left of the targets is :math:`\lambda A`.

    Args:
        inputs: What the new consumer reads, ``(R, M)``.
        targets: What the old consumer made of all channels, ``(R, O)``.
        start: The weights :math:`U_0`, ``(O, M)``.
        intercept: Whether a constant may be added.
        ridge: :math:`\lambda` as a part of the mean diagonal of the inputs' moments.

    Returns:
        The fit; the error is that on the samples.

    Example:
        >>> inputs = torch.tensor([[1.0], [2.0], [3.0]])
        >>> fit = fit_samples(inputs, 2 * inputs + 1, torch.zeros(1, 1), ridge=1e-9)
        >>> fit.weights.round(decimals=4), fit.constant.round(decimals=4)
        (tensor([[2.]], dtype=torch.float64), tensor([1.], dtype=torch.float64))

    """
    samples = len(inputs)
    mean, wanted = inputs.mean(dim=0).double(), targets.mean(dim=0).double()
    if not intercept:
        mean, wanted = torch.zeros_like(mean), torch.zeros_like(wanted)
    centred, rest = inputs - mean.to(inputs), targets - wanted.to(targets)
    lacking = rest - centred @ start.T.to(centred)
    solve = _by_samples if samples < inputs.shape[1] else _by_inputs
    change, left = solve(centred, lacking, ridge)
    weights = start.double() + change
    before, after = _variances(rest), _variances(rest - left.to(rest))
    return SampleFit(
        weights=weights,
        constant=wanted - weights @ mean,
        error=_mean_square(left),
        energy=_mean_square(rest),
        variance_ratios=torch.where(before > 0, after / before.clamp_min(torch.finfo(torch.float64).tiny), 1.0),
    )


def _by_inputs(inputs: Tensor, lacking: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """By how much weights change, float64 (O, M), and what is left of what is lacking, (R, O)."""
    moment = _products(inputs, inputs) / len(inputs)
    across = _products(lacking, inputs) / len(inputs)
    moment.diagonal().add_(regularisation(moment, ridge))
    change = torch.cholesky_solve(across.T, torch.linalg.cholesky(moment)).T
    return change, lacking - inputs @ change.T.to(inputs)


def _by_samples(inputs: Tensor, lacking: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """The same from a matrix over samples, where these are fewer than the inputs."""
    samples = len(inputs)
    within = products_of_rows(inputs).div_(samples)
    amount = ridge * float(within.diagonal().sum()) / inputs.shape[1] or 1.0
    within.diagonal().add_(amount)
    found = torch.cholesky_solve(lacking.double(), torch.linalg.cholesky(within))
    scale = _power_of_two(found)
    change = _products((found / scale).to(inputs), inputs) * (scale / samples)
    return change, found.mul_(amount)


def sample_moments(samples: Tensor, *, centred: bool) -> tuple[Tensor, Tensor]:
    """The mean and the second moments of samples, around the mean or not.

    Args:
        samples: ``(R, N)``.
        centred: Whether the moments are those around the mean.

    Returns:
        ``(mean, moment)``, float64 ``(N,)`` and ``(N, N)``, the latter in float32 above 2048 channels.

    Example:
        >>> sample_moments(torch.tensor([[1.0], [3.0]]), centred=True)
        (tensor([2.], dtype=torch.float64), tensor([[1.]], dtype=torch.float64))

    """
    mean = samples.mean(dim=0, dtype=torch.float64)
    around = samples - mean.to(samples) if centred else samples
    return mean, _products(around, around, matrix_dtype(samples.shape[1])) / len(samples)


def position_correlation(samples: Tensor) -> Tensor:
    """How what a channel is at one position goes with what it is at another, over all channels.

    Args:
        samples: ``(R, N, T)``.

    Returns:
        Correlations, float64 ``(T, T)``, positive semi-definite.

    Example:
        >>> position_correlation(torch.tensor([[[1.0, 1.0]], [[2.0, 2.0]]]))
        tensor([[1.0000, 1.0000],
                [1.0000, 1.0000]], dtype=torch.float64)

    """
    flat = (samples - samples.mean(dim=0)).flatten(0, 1)
    covariance = _products(flat, flat)
    scale = covariance.diagonal().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    correlation = covariance / scale[:, None] / scale
    correlation.fill_diagonal_(1.0)
    return correlation


def _products(left: Tensor, right: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """The sums over samples of products, (N, M); samples whose squares single precision cannot hold are scaled."""
    scales = [_power_of_two(values) for values in (left, right)]
    left, right = (
        values if scale == 1 else values / scale for values, scale in zip((left, right), scales, strict=True)
    )
    return (left.T @ right).to(dtype) * (scales[0] * scales[1])


def _power_of_two(values: Tensor) -> float:
    """What to divide by, without rounding, where the largest value is so small or large that squares are lost."""
    largest = float(values.abs().amax()) if values.numel() else 0.0
    usual = largest in {0.0, math.inf} or math.isnan(largest) or _USUAL[0] <= largest <= _USUAL[1]
    return 1.0 if usual else 2.0 ** max(math.frexp(largest)[1], -120)  # the inverse of less would be infinite


def _variances(values: Tensor) -> Tensor:
    return values.double().var(dim=0, unbiased=False)


def _mean_square(values: Tensor) -> float:
    return float(values.double().square().sum(dim=1).mean())
