r"""The least-squares solution on the channels that are left, and what it costs to drop more of them.

Shapes: A channels alive of N, D dropped; J rows of the consumers, c candidates of a round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_coreset.coreset.precision import DensePrecision, Precision, compress_rows
from lightning_coreset.coreset.sampled_moment import SampledMoment


@dataclass(frozen=True, eq=False)
class Solution:
    r"""One consumer's solution on the channels alive.

    Their precision is a block of that of all channels less a product of thin matrices, a Schur complement:
    :math:`Q_A = Q_{AA} - R^T S`, with a row of each for every channel dropped. A round asks for few of its entries:
    the diagonal, and those of its candidates. Only these are computed, where to bring the whole matrix up to date in
    every round would take several times as many operations, and a copy.

    Attributes:
        precision: :math:`Q = (C + \lambda I)^{-1}` of the N channels that there were at first.
        alive: Which of them are left, int64 (A,).
        diagonal: That of the precision of the channels alive, (A,).
        coefficients: :math:`B = W C_{:A} Q_A`, (J, A).
        rows: :math:`R`: of every channel dropped, its row of the precision when it was, (D, A).
        shares: :math:`S`: the same by the inverse of the block of those dropped with it, (D, A).
    """

    precision: Precision
    alive: Tensor
    diagonal: Tensor
    coefficients: Tensor
    rows: Tensor
    shares: Tensor

    @classmethod
    def of(cls, moment: Tensor | SampledMoment, consumers: Tensor, amount: float) -> Solution:
        """The solution on all channels, with the ridge in the units of ``moment``."""
        if isinstance(moment, SampledMoment):
            of_samples = moment.precision(amount)
            return cls._whole(of_samples, of_samples.times(consumers))
        shifted = moment.double().clone()
        shifted.diagonal().add_(amount)
        factor = torch.linalg.cholesky(shifted)
        del shifted  # four matrices in double precision at once would be the most that an event holds
        precision = torch.cholesky_inverse(factor).to(moment.dtype)
        del factor
        weights = compress_rows(consumers.to(moment))
        # W C Q = W (I - lambda Q) spares a product of N x N matrices.
        return cls._whole(DensePrecision(precision), torch.addmm(weights, weights, precision, alpha=-amount))

    @classmethod
    def _whole(cls, precision: Precision, coefficients: Tensor) -> Solution:
        alive = torch.arange(len(precision), device=coefficients.device)
        none_dropped = coefficients[:0]
        return cls(precision, alive, precision.diagonal, coefficients, none_dropped, none_dropped)

    def without(self, dropped: Tensor, kept: Tensor) -> Solution:
        """The solution on the kept channels alone."""
        rows = self._block(dropped, torch.arange(len(self.alive), device=self.alive.device))
        shares = torch.linalg.solve(rows[:, dropped], rows[:, kept])
        rows = rows[:, kept]
        found = Solution(
            self.precision,
            self.alive[kept],
            self.diagonal[kept] - (rows * shares).sum(dim=0),
            self.coefficients[:, kept].addmm_(self.coefficients[:, dropped], shares, alpha=-1),
            torch.cat([self.rows[:, kept], rows]),
            torch.cat([self.shares[:, kept], shares]),
        )
        if 2 * len(kept) > len(self.precision):
            return found
        everything = torch.arange(len(kept), device=kept.device)  # few are left: the others are in the way by now
        return self._whole(DensePrecision(found._block(everything, everything)), found.coefficients)

    def at(self, candidates: Tensor) -> Candidates:
        """What is needed to drop some of these one at a time, in float64."""
        chosen = self.coefficients[:, candidates].double()
        return Candidates(self._block(candidates, candidates).double(), chosen.T @ chosen)

    def blocks(self, members: Tensor) -> Tensor:
        """The precision within each class, (classes, width, width), of positions (classes, width)."""
        taken = torch.einsum("dcv,dcw->cvw", self.rows[:, members], self.shares[:, members])
        return self.precision.blocks(self.alive[members]) - taken

    def products(self, members: Tensor) -> Tensor:
        """The coefficients' products within each class, (classes, width, width)."""
        part = self.coefficients[:, members]
        return torch.einsum("jcv,jcw->cvw", part, part)

    def norms(self) -> Tensor:
        """The squared norms of the coefficients of each channel, (A,)."""
        return self.coefficients.square().sum(dim=0)

    def _block(self, these: Tensor, others: Tensor) -> Tensor:
        """A block of the precision of the channels alive."""
        block = self.precision.block(self.alive[these], self.alive[others])
        return block.addmm_(self.rows[:, these].T, self.shares[:, others], alpha=-1)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Of one consumer, for the candidates of a round: the block of the precision, and the coefficients' products.

    Attributes:
        precision: (c, c).
        squares: The coefficients' products, (c, c).
    """

    precision: Tensor
    squares: Tensor

    def without(self, drop: Tensor) -> Candidates:
        """Without some of them, whose rows are left in place."""
        Q, H = self.precision, self.squares
        share = torch.linalg.solve(Q[drop][:, drop], Q[drop])
        across = H[drop].T @ share
        H = H - across - across.T + share.T @ H[drop][:, drop] @ share
        Q = Q - Q[:, drop] @ share
        # Their rows are zero by now up to rounding; a unit block keeps the costs of classes already gone finite.
        Q[drop], Q[:, drop] = 0, 0
        Q[drop, drop] = 1
        return Candidates(Q, H)

    @property
    def diagonal(self) -> Tensor:
        """That of the precision, (c,)."""
        return self.precision.diagonal()

    def blocks(self, members: Tensor) -> Tensor:
        """The precision within each class, as of a :class:`Solution`."""
        return self.precision[members[:, :, None], members[:, None, :]]

    def products(self, members: Tensor) -> Tensor:
        """The coefficients' products within each class, likewise."""
        return self.squares[members[:, :, None], members[:, None, :]]

    def norms(self) -> Tensor:
        """The squared norms of the coefficients, (c,)."""
        return self.squares.diagonal()


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
    single = state.norms() / state.diagonal
    if len(sizes) == len(labels):
        return torch.empty_like(single).scatter_(0, labels, single)
    costs = torch.empty(len(sizes), dtype=single.dtype, device=single.device)
    by_class = labels.argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    for width in sizes.unique().tolist():  # classes of one size share a batch
        which = (sizes == width).nonzero().flatten()
        members = by_class[starts[which][:, None] + torch.arange(width, device=single.device)]
        found = torch.linalg.solve(state.blocks(members), state.products(members))
        costs[which] = found.diagonal(dim1=1, dim2=2).sum(dim=1)
    return costs
