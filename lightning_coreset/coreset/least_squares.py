r"""New weights for the consumers of the channels that stay, and what the change costs, in closed form.

Shapes: N channels, m of them kept, O outputs of the consumers, K positions of their kernel, J = O K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_coreset.coreset.elimination import eliminate, regularisation
from lightning_coreset.coreset.precision import compress_rows


@dataclass(frozen=True, eq=False)
class LeastSquaresFit:
    r"""A coreset of channels with the linear map that replaces the others.

    Attributes:
        kept: Positions of the channels that stay, int64 ``(m,)``, ascending.
        mix: The matrix ``(N, m)`` with :math:`h \approx \mathrm{mix} \, h_S`: new consumers are ``W @ mix``, position
            by position. Rows of kept channels are rows of the identity.
        offset: The constant ``(N,)`` that makes the approximation right on average,
            :math:`\mu - \mathrm{mix} \, \mu_S`; zero for uncentred moments. ``W @ offset``, summed over positions,
            goes into the consumer's bias.
        error: The expected squared error of the consumers' outputs, summed over the rows of ``W``.
        energy: Their expected square before pruning: the scale of ``error``.
    """

    kept: Tensor
    mix: Tensor
    offset: Tensor
    error: float
    energy: float


def reconstruct(
    moment: Tensor,
    consumers: Tensor,
    size: int,
    *,
    mean: Tensor | None = None,
    rounds: int = 16,
    ridge: float = 1e-3,
    classes: Tensor | None = None,
) -> LeastSquaresFit:
    r"""Choose ``size`` channels and the least-squares weights on them.

    Deterministic. The kept channels come from :func:`eliminate`, the weights from :func:`mixing_matrix`.

    Args:
        moment: The moments of the activations, ``(N, N)``: the covariance where the consumers can take a constant
            (``mean`` given), else the uncentred :math:`E[h h^T]`.
        consumers: The consumers' weights, ``(J, N)``.
        size: How many channels to keep, at least 1.
        mean: The mean :math:`\mu` of the activations, ``(N,)``, together with centred moments only.
        rounds: As in :func:`eliminate`.
        ridge: As in :func:`eliminate`, for the weights too.
        classes: As in :func:`eliminate`.

    Returns:
        The coreset. Its ``error`` is exact under the Gaussian distribution that the moments come from.

    Raises:
        ValueError: If the shapes do not fit, or ``size`` or ``rounds`` is below 1.

    Example:
        >>> moment = torch.tensor([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
        >>> result = reconstruct(moment, torch.ones(1, 3), 2, ridge=1e-12)
        >>> result.kept, (torch.ones(1, 3).double() @ result.mix).round(decimals=6)
        (tensor([1, 2]), tensor([[1.5000, 1.0000]], dtype=torch.float64))

    """
    consumers = compress_rows(consumers.to(moment))
    kept = eliminate(moment, consumers, size, rounds=rounds, ridge=ridge, classes=classes)
    mix = mixing_matrix(moment, kept, ridge=ridge)
    offset = torch.zeros(len(moment), dtype=mix.dtype, device=mix.device)
    if mean is not None:
        offset = mean.to(mix) - mix @ mean.to(mix)[kept]
        offset[kept] = 0
    weights = consumers.to(mix)
    change, dropped = weights.clone(), others(kept, len(moment))
    change[:, kept] = -weights[:, dropped] @ mix[dropped]  # rows of kept channels are the identity's
    return LeastSquaresFit(
        kept=kept,
        mix=mix,
        offset=offset,
        error=expected_error(moment, change),
        energy=expected_error(moment, weights),
    )


def mixing_matrix(moment: Tensor, kept: Tensor, *, ridge: float = 1e-3) -> Tensor:
    r"""The least-squares prediction of all channels from those kept, :math:`C_{:S} (C_{SS} + \lambda I)^{-1}`.

    The ridge keeps the weights small in directions that the moments hardly know. A kept channel predicts itself
    perfectly, so its row is the identity's and the ridge does not shrink it.

    Args:
        moment: The moments :math:`C` of the activations, centred or not, ``(N, N)``.
        kept: Positions of the channels that stay, ``(m,)``.
        ridge: :math:`\lambda` as a part of the mean diagonal of ``moment``.

    Returns:
        The matrix, float64 ``(N, m)``.

    Example:
        >>> mixing_matrix(torch.tensor([[1.0, 0.5], [0.5, 1.0]]), torch.tensor([0]), ridge=0.25)
        tensor([[1.0000],
                [0.4000]], dtype=torch.float64)

    """
    dropped = others(kept, len(moment))
    within = moment[kept][:, kept].double()
    within.diagonal().add_(regularisation(moment, ridge))
    factor = torch.linalg.cholesky(within)
    del within  # of matrices in double precision as few at once as may be
    of_dropped = torch.cholesky_solve(moment[kept][:, dropped].double(), factor)
    del factor
    mix = torch.zeros(len(moment), len(kept), dtype=of_dropped.dtype, device=of_dropped.device)
    mix[dropped] = of_dropped.T
    mix[kept, torch.arange(len(kept), device=kept.device)] = 1
    return mix


def others(kept: Tensor, total: int) -> Tensor:
    """The positions that are not kept."""
    return torch.ones(total, dtype=torch.bool, device=kept.device).index_fill(0, kept, False).nonzero().flatten()


def expected_error(moment: Tensor, change: Tensor) -> float:
    r"""The expected squared error :math:`\mathrm{tr}(\Delta K \Delta^T)` of a change of the consumers' weights.

    Args:
        moment: The moments :math:`K` of the activations, ``(N, N)``; centred ones when the mean error is made up for by
            an intercept.
        change: Old weights minus new ones on all N channels, ``(J, N)``, dropped channels having new weights of zero.

    Returns:
        The error, summed over the rows of ``change``.

    Example:
        >>> expected_error(torch.eye(2), torch.tensor([[3.0, 4.0]]))
        25.0

    """
    change = change.to(moment.dtype)
    return float(((change @ moment) * change).sum(dtype=torch.float64).clamp_min(0))


def variance_ratios(moment: Tensor, consumers: Tensor, kept: Tensor, weights: Tensor, correlation: Tensor) -> Tensor:
    r"""The factors by which the variance of each output shrinks, for a BatchNorm after the consumer.

    The variance of output :math:`o` is :math:`\sum_{k,l} \rho_{kl} \, w_{ok}^T C \, w_{ol}` for channels correlated by
    :math:`C` and positions by :math:`\rho`; the ratio of new to old multiplies ``running_var``.

    Args:
        moment: The covariance :math:`C` of the activations, ``(N, N)``.
        consumers: The old weights, ``(O, N, K)``.
        kept: Positions of the channels that stay, ``(m,)``.
        weights: The new weights, ``(O, m, K)``.
        correlation: The correlations :math:`\rho` of the positions, ``(K, K)``, from
            :func:`lightning_coreset.coreset.spatial_correlation` with a decay of 0.7.

    Returns:
        The ratios, float64 ``(O,)``; one where an output has no variance to begin with.

    Example:
        >>> old, new = torch.ones(1, 2, 1), torch.ones(1, 1, 1)
        >>> variance_ratios(torch.eye(2), old, torch.tensor([0]), new, torch.eye(1))
        tensor([0.5000], dtype=torch.float64)

    """
    before = _output_variances(moment, consumers, correlation)
    after = _output_variances(moment[kept][:, kept], weights, correlation)
    return torch.where(before > 0, after / before.clamp_min(torch.finfo(torch.float64).tiny), 1.0)


def _output_variances(moment: Tensor, weights: Tensor, correlation: Tensor) -> Tensor:
    rows = weights.to(moment).transpose(1, 2)  # (O, K, N)
    blurred = torch.einsum("kl,oln->okn", correlation.to(moment), rows)
    return ((rows @ moment) * blurred).sum(dim=(1, 2), dtype=torch.float64).clamp_min(0)
