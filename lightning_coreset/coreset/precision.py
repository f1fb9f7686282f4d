"""The inverse of regularised second moments, of which an elimination asks for a few entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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
