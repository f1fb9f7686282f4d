r"""Second moments of fewer samples than channels, without the matrix of all channels.

Shapes: R samples, N channels; J rows of consumers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_coreset.coreset.gaussian_moments import matrix_dtype
from lightning_coreset.coreset.precision import compress_rows

_BLOCK = 512
"""Samples whose products are computed at once; of two blocks only one order is, since products are symmetric."""


@dataclass(frozen=True, eq=False)
class SampledMoment:
    r"""The second moments :math:`C = X^T X / R` of channels, by the samples themselves.

    Where there are fewer samples than channels, these take less memory than :math:`C`, and what an elimination asks of
    the precision :math:`Q = (C + \lambda I)^{-1}` is had from matrices over samples (Woodbury):

    .. math:: Q = \tfrac1\lambda (I - Y^T Y), \quad W C Q = (W Y^T) Y, \quad
        Y = L^{-1} X / \sqrt R, \quad L L^T = X X^T / R + \lambda I .

    Attributes:
        samples: :math:`X`, around the mean where the moments are, ``(R, N)``.

    Example:
        >>> SampledMoment.of(torch.tensor([[1.0, 2.0], [3.0, 2.0]]), centred=True).samples
        tensor([[-1.,  0.],
                [ 1.,  0.]])

    """

    samples: Tensor

    @classmethod
    def of(cls, samples: Tensor, *, centred: bool) -> SampledMoment:
        """The moments of samples, around the mean or not.

        Args:
            samples: ``(R, N)``.
            centred: Whether the moments are those around the mean.
        """
        return cls(samples - samples.mean(dim=0, dtype=torch.float64).to(samples) if centred else samples)

    def __len__(self) -> int:
        """The number of channels."""
        return self.samples.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """That of the matrix, ``(N, N)``."""
        return len(self), len(self)

    @property
    def device(self) -> torch.device:
        """Where the samples are."""
        return self.samples.device

    @property
    def dtype(self) -> torch.dtype:
        """That of blocks of the precision, as of a matrix over as many channels."""
        return matrix_dtype(len(self))

    @property
    def mean_diagonal(self) -> float:
        """The mean over channels of their mean squares."""
        return float(self.samples.double().square().sum()) / max(self.samples.numel(), 1)

    def precision(self, amount: float) -> SampledPrecision:
        r"""The inverse of the moments with :math:`\lambda` = ``amount`` on the diagonal.

        Always in float64: entries are differences :math:`1 - y_i \cdot y_j`, which lose as many digits as a channel's
        moment is larger than :math:`\lambda`, three with the usual ridge.
        """
        within = products_of_rows(self.samples) / len(self.samples)
        within.diagonal().add_(amount)
        factor = torch.linalg.cholesky(within)
        del within
        found = self.samples.to(torch.float64, copy=True).div_(math.sqrt(len(self.samples)))
        torch.linalg.solve_triangular(factor, found, upper=False, out=found)
        return SampledPrecision(found, amount, self.dtype)


@dataclass(frozen=True, eq=False)
class SampledPrecision:
    r"""The precision of :class:`SampledMoment`: :math:`(I - Y^T Y) / \lambda`.

    Attributes:
        whitened: :math:`Y`, float64 ``(R, N)``.
        amount: :math:`\lambda`.
        dtype: Of the blocks.
    """

    whitened: Tensor
    amount: float
    dtype: torch.dtype

    def __len__(self) -> int:
        """The number of channels."""
        return self.whitened.shape[1]

    @property
    def diagonal(self) -> Tensor:
        """The diagonal, ``(N,)``, positive."""
        rest = 1 - torch.linalg.vector_norm(self.whitened, dim=0).square()
        return (rest.clamp_min(torch.finfo(torch.float64).eps) / self.amount).to(self.dtype)

    def block(self, these: Tensor, others: Tensor) -> Tensor:
        """The entries of some channels with others."""
        few, most = self.whitened[:, these].T, 2 * len(others) > len(self)  # of which a copy would be large
        made = (few @ self.whitened)[:, others] if most else few @ self.whitened[:, others]
        return ((these[:, None] == others).double() - made).div_(self.amount).to(self.dtype)

    def blocks(self, members: Tensor) -> Tensor:
        """The block of each class, ``(classes, width, width)``, of channels ``(classes, width)``."""
        part = self.whitened[:, members]
        within = torch.einsum("rcv,rcw->cvw", part, part)
        own = torch.eye(members.shape[1], dtype=torch.float64, device=members.device)
        return ((own - within) / self.amount).to(self.dtype)

    def times(self, consumers: Tensor) -> Tensor:
        r""":math:`W C Q` of consumers ``(J, N)``, or as many rows with the same products as there are samples."""
        whitened = self.whitened.to(self.dtype)
        seen = consumers.to(whitened) @ whitened.T
        return compress_rows(seen) @ whitened


def products_of_rows(rows: Tensor) -> Tensor:
    """The products of all rows with each other, float64 ``(R, R)``, with no copy of all rows in that precision."""
    starts = range(0, len(rows), _BLOCK)
    made = torch.empty(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for start in starts:
        own = rows[start : start + _BLOCK].double()
        for before in starts[: start // _BLOCK + 1]:
            other = own if before == start else rows[before : before + _BLOCK].double()
            block = own @ other.T
            made[start : start + _BLOCK, before : before + _BLOCK] = block
            made[before : before + _BLOCK, start : start + _BLOCK] = block.T
    return made
