r"""Bases of streams that norms over channels stand behind, in which few directions are enough.

RMSNorm takes every rotation of its inputs for the same, and LayerNorm every one of what the inputs are apart from their
mean. So whatever is linear before such norms and behind them may be written in any basis (Ashkboos et al., "SliceGPT",
arXiv 2401.15024, for PCA and RMSNorm).

Shapes: N channels, m of which stay.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_coreset.coreset.elimination import regularisation


class StreamBasis(NamedTuple):
    """The directions of a stream that stay.

    Attributes:
        kept: The channels in whose place they are, int64 ``(m,)``, ascending.
        matrix: What makes the new channels of the old, float64 ``(m, N)``. Its rows are orthonormal; of a stream whose
            mean is taken off they have rank ``m - 1``, and the mean of the new channels is zero.
    """

    kept: Tensor
    matrix: Tensor


def stream_basis(
    covariance: Tensor, importance: Tensor, size: int, *, centred: bool = False, ridge: float = 1e-3
) -> StreamBasis:
    r"""The directions of a stream that matter most to its readers, as near as possible to channels as they are.

    They span what the leading right singular vectors of :math:`W C^{1/2}` do in terms of the channels, as for the
    values of a head (:func:`value_basis`), without what never varies. Of all orthonormal bases of this space, the new
    channels are the one nearest to the channels with the largest part in it (orthogonal Procrustes), so that they vary
    about as those did.

    Args:
        covariance: :math:`C` of the normalised channels, summed over the norms, ``(N, N)``.
        importance: :math:`W^T W` of the weights that read them, likewise.
        size: Channels that stay, at least 2 if ``centred``.
        centred: Whether the norms take the mean of the channels off.
        ridge: Added to the covariance where it is inverted, as a part of its mean diagonal.

    Raises:
        ValueError: If ``size`` is out of its range.

    Example:
        The first of three channels is twice the second:

        >>> covariance = torch.tensor([[4.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> basis = stream_basis(covariance, torch.eye(3), 2)
        >>> basis.kept, basis.matrix.round(decimals=1).abs()
        (tensor([0, 2]), tensor([[0.9000, 0.4000, 0.0000],
                [0.0000, 0.0000, 1.0000]], dtype=torch.float64))
    """
    total = len(covariance)
    if not (1 + centred) <= size <= total:
        raise ValueError(f"Expected a size from {1 + centred} to {total} but got {size}.")
    importance = _without_mean(_without_mean(importance.double()).T) if centred else importance
    leading = _leading(covariance.double(), importance.double(), size - centred, ridge)
    span = torch.linalg.qr(_without_mean(leading) if centred else leading).Q
    kept = span.square().sum(dim=1).argsort(descending=True, stable=True)[:size].sort().values
    return StreamBasis(kept, _nearest(span, kept, centred=centred))


def any_stream_basis(total: int, generator: torch.Generator, *, centred: bool = False) -> StreamBasis:
    """A random basis of all directions.

    Args:
        total: The number of channels.
        generator: Source of random numbers, on the CPU.
        centred: As in :func:`stream_basis`.

    Example:
        >>> _, matrix = any_stream_basis(4, torch.Generator().manual_seed(0))
        >>> (matrix @ matrix.T).round(decimals=6).equal(torch.eye(4).double())
        True
    """
    found = torch.linalg.qr(torch.randn(total, total, generator=generator, dtype=torch.float64)).Q
    if not centred:
        return StreamBasis(torch.arange(total), found)
    plane = _orthogonal_to_ones(total)
    return StreamBasis(torch.arange(total), plane @ torch.linalg.qr(plane.T @ found @ plane).Q @ plane.T)


def _leading(covariance: Tensor, importance: Tensor, count: int, ridge: float) -> Tensor:
    """The directions, (N, count), whose values tell most of what is read."""
    variances, directions = torch.linalg.eigh(covariance)
    deviations = variances.clamp_min(0).sqrt()
    vectors = torch.linalg.eigh((directions * deviations).T @ importance @ (directions * deviations))[1].flip(1)
    inverse = deviations / (variances.clamp_min(0) + regularisation(covariance, ridge))
    return directions @ (inverse[:, None] * vectors[:, :count])


def _nearest(span: Tensor, kept: Tensor, *, centred: bool) -> Tensor:
    """The orthonormal basis of a space (N, r), as rows, that is nearest to some channels."""
    outer = _orthogonal_to_ones(len(kept)) if centred else torch.eye(len(kept), dtype=span.dtype)
    left, _, right = torch.linalg.svd(outer.T @ span[kept])
    return outer @ (left @ right) @ span.T


def _without_mean(rows: Tensor) -> Tensor:
    return rows - rows.mean(dim=0)


def _orthogonal_to_ones(size: int) -> Tensor:
    """An orthonormal basis of the vectors whose sum is zero, ``(size, size - 1)``."""
    vectors = torch.eye(size, dtype=torch.float64)
    vectors[:, 0] = 1.0
    return torch.linalg.qr(vectors).Q[:, 1:]
