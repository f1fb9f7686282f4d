r"""The least-squares solution on the channels that are left, and what it costs to drop more of them.

Shapes: A channels alive, J rows of the consumers, c candidates of a round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Solution:
    r"""One consumer's solution on the channels alive.

    Attributes:
        precision: :math:`Q = (C_{AA} + \lambda I)^{-1}`, (A, A).
        coefficients: :math:`B = W C_{:A} Q`, (J, A).
    """

    precision: Tensor
    coefficients: Tensor

    @classmethod
    def of(cls, moment: Tensor, consumers: Tensor, amount: float) -> Solution:
        """The solution on all channels, with the ridge in the units of ``moment``."""
        shifted = moment.double().clone()
        shifted.diagonal().add_(amount)
        precision = torch.cholesky_inverse(torch.linalg.cholesky(shifted)).to(moment.dtype)
        del shifted
        weights = compress_rows(consumers.to(moment))
        # W C Q = W (I - lambda Q) spares a product of N x N matrices.
        return cls(precision, torch.addmm(weights, weights, precision, alpha=-amount))

    def without(self, dropped: Tensor, kept: Tensor) -> Solution:
        """The solution on the kept channels alone: a Schur complement."""
        across = self.precision[dropped][:, kept]
        share = torch.linalg.solve(self.precision[dropped][:, dropped], across)
        smaller = self.precision[kept][:, kept].addmm_(across.T, share, alpha=-1)
        return Solution(smaller, self.coefficients[:, kept].addmm_(self.coefficients[:, dropped], share, alpha=-1))

    def at(self, candidates: Tensor) -> Candidates:
        """What is needed to drop some of these one at a time, in float64."""
        chosen = self.coefficients[:, candidates].double()
        return Candidates(self.precision[candidates][:, candidates].double(), chosen.T @ chosen)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Of one consumer, for the candidates of a round: the block of the precision, and the coefficients' products.

    Attributes:
        precision: (c, c).
        products: (c, c).
    """

    precision: Tensor
    products: Tensor

    def without(self, drop: Tensor) -> Candidates:
        """Without some of them, whose rows are left in place."""
        Q, H = self.precision, self.products
        share = torch.linalg.solve(Q[drop][:, drop], Q[drop])
        across = H[drop].T @ share
        H = H - across - across.T + share.T @ H[drop][:, drop] @ share
        Q = Q - Q[:, drop] @ share
        # Their rows are zero by now up to rounding; a unit block keeps the costs of classes already gone finite.
        Q[drop], Q[:, drop] = 0, 0
        Q[drop, drop] = 1
        return Candidates(Q, H)


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


def drop_one_by_one(readers: Sequence[Candidates], labels: Tensor, surplus: int, last: bool) -> tuple[Tensor, Tensor]:
    """Drop whole classes until ``surplus`` channels are gone; one class stays when the ``last`` are all here.

    Returns the channels in ascending order, and the costs of the classes in the order in which they went.
    """
    gone = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    labels = torch.unique(labels, return_inverse=True)[1]
    sizes = torch.bincount(labels)
    out = torch.zeros(len(sizes), dtype=torch.bool, device=labels.device)
    costs = []
    while int(gone.sum()) < surplus and int(out.sum()) < len(sizes) - int(last):
        cost = torch.stack([costs_of_classes(one, labels) for one in readers]).sum(dim=0) / sizes
        choice = int(torch.where(out, torch.inf, cost).argmin())
        costs.append(cost[choice] * sizes[choice])
        out[choice] = True
        members = labels == choice
        gone |= members
        drop = members.nonzero().flatten()
        readers = [one.without(drop) for one in readers]
    return gone.nonzero().flatten(), torch.stack(costs)


def costs_of_classes(state: Solution | Candidates, labels: Tensor) -> Tensor:
    """The exact cost of dropping each class, in the order of the sorted labels."""
    labels = torch.unique(labels, return_inverse=True)[1]
    sizes = torch.bincount(labels)
    Q, single = state.precision, _norms(state) / state.precision.diagonal()
    if len(sizes) == len(labels):
        return torch.empty_like(single).scatter_(0, labels, single)
    costs = torch.empty(len(sizes), dtype=Q.dtype, device=Q.device)
    by_class = labels.argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    for width in sizes.unique().tolist():  # classes of one size share a batch
        which = (sizes == width).nonzero().flatten()
        members = by_class[starts[which][:, None] + torch.arange(width, device=Q.device)]
        blocks = Q[members[:, :, None], members[:, None, :]]
        costs[which] = torch.linalg.solve(blocks, _products(state, members)).diagonal(dim1=1, dim2=2).sum(dim=1)
    return costs


def _norms(state: Solution | Candidates) -> Tensor:
    if isinstance(state, Candidates):
        return state.products.diagonal()
    return state.coefficients.square().sum(dim=0)


def _products(state: Solution | Candidates, members: Tensor) -> Tensor:
    """The coefficients' products within each class, (classes, width, width)."""
    if isinstance(state, Candidates):
        return state.products[members[:, :, None], members[:, None, :]]
    part = state.coefficients[:, members]
    return torch.einsum("jcv,jcw->cvw", part, part)
