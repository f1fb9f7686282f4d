"""The inverse of regularised second moments, of which an elimination asks for few entries, and rows that read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Precision(Protocol):
    """The inverse of regularised moments of N channels, as a matrix or by samples."""

    def __len__(self) -> int:
        """N."""
        ...

    @property
    def diagonal(self) -> Tensor:
        """(N,)."""
        ...

    def block(self, these: Tensor, others: Tensor) -> Tensor:
        """The entries of some channels with others; a new tensor."""
        ...

    def blocks(self, members: Tensor) -> Tensor:
        """The block of each class, (classes, width, width), of channels (classes, width)."""
        ...


@dataclass(frozen=True, eq=False)
class DensePrecision:
    """The matrix itself, (N, N)."""

    matrix: Tensor

    def __len__(self) -> int:
        """N."""
        return len(self.matrix)

    @property
    def diagonal(self) -> Tensor:
        """(N,)."""
        return self.matrix.diagonal()

    def block(self, these: Tensor, others: Tensor) -> Tensor:
        """As a :class:`Precision`."""
        return self.matrix[these][:, others]

    def blocks(self, members: Tensor) -> Tensor:
        """As a :class:`Precision`."""
        return self.matrix[members[:, :, None], members[:, None, :]]


def compress_rows(consumers: Tensor) -> Tensor:
    r"""At most N rows that say as much as all J: an :math:`R` with :math:`R^T R = W^T W`.

    Errors and energies of the consumers, :math:`\mathrm{tr}(W A W^T)`, are those of :math:`R`, and choices with them.

    Args:
        consumers: The consumers' weights :math:`W`, ``(J, N)``.

    Returns:
        The rows, ``(min(J, N), N)``, in the dtype of ``consumers``.

    Example:
        >>> rows = compress_rows(torch.tensor([[3.0], [4.0]]))
        >>> rows.shape, (rows.T @ rows).round(decimals=4)
        (torch.Size([1, 1]), tensor([[25.]]))

    """
    if consumers.shape[0] <= consumers.shape[1]:
        return consumers
    return torch.linalg.qr(consumers, mode="r").R
