r"""Which channels to keep: backward elimination under the least-squares error of the consumers' outputs.

Shapes: N channels, J rows of the consumers (outputs times kernel positions), A channels still alive in a round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

# A round drops one by one among this many times as many candidates as it has to drop.
_CANDIDATES = 2
# The part of the channels alive that a round of a whole curve drops.
_CURVE_SHARE = 0.08


def eliminate(
    moment: Tensor,
    consumers: Tensor,
    size: int,
    *,
    rounds: int = 16,
    ridge: float = 1e-3,
    classes: Tensor | None = None,
) -> Tensor:
    r"""Drop the channels that the others can best replace, until ``size`` are left.

    With :math:`Q = (C_{AA} + \lambda I)^{-1}` and the consumers re-solved on the channels alive,
    :math:`B = W C_{:A} Q`, dropping the set :math:`D` raises the expected squared error by exactly

    .. math:: \mathrm{tr}(B_D \, Q_{DD}^{-1} B_D^T) \qquad (= \|B_q\|^2 / Q_{qq} \text{ for one channel}).

    Rounds shrink the channels geometrically. The cheapest candidates of a round, twice as many as have to go, are taken
    out one at a time with their costs kept exact; :math:`Q` and :math:`B` of the others follow once a round by a block
    downdate. Without that inner loop a round would drop both of two channels that replace each other.

    Args:
        moment: The moments :math:`C` of the activations, centred or not, ``(N, N)``. Computed in its dtype, except that
            the first inverse is always taken in float64.
        consumers: The consumers' weights, ``(J, N)``, with one row for each output and position.
        size: How many channels to keep, at least 1.
        rounds: The number of rounds. With 16 the error is within 1% of dropping one at a time on random layers.
        ridge: :math:`\lambda` as a part of the mean diagonal of ``moment``. Anything from 1e-8 to 1e-2 selects as well;
            1e-3 keeps the new weights small.
        classes: Labels ``(N,)`` of channels that must stay or go together, such as the groups of a grouped
            convolution. The cost of a class is that of dropping it whole, not the sum over its channels, which would
            call two of them free because each can replace the other. Costs are compared per channel.

    Returns:
        The positions that stay, int64, ascending, exactly ``size`` of them, or with ``classes`` whole classes of at
        most ``size`` channels together (one class at least).

    Raises:
        ValueError: If the shapes do not fit, or ``size`` or ``rounds`` is below 1.

    Example:
        >>> moment = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> eliminate(moment, torch.tensor([[1.0, 1.0, 0.5]]), 2).tolist()[1]
        2

    """
    labels = _checked(moment, consumers, size, rounds, classes)
    alive = torch.ones(len(moment), dtype=torch.bool, device=moment.device)
    if size < len(alive):
        for dropped, _ in _rounds(moment, consumers, labels, _schedule(len(alive), size, rounds), ridge):
            alive[dropped] = False
    return alive.nonzero().flatten()


def elimination_curve(moment: Tensor, consumers: Tensor, *, ridge: float = 1e-3) -> Tensor:
    r"""What it costs to drop channels as :func:`eliminate` does, for every number of them, from one elimination.

    Args:
        moment: The moments :math:`C` of the activations, as for :func:`eliminate`, ``(N, N)``.
        consumers: The consumers' weights, ``(J, N)``.
        ridge: :math:`\lambda` as a part of the mean diagonal of ``moment``.

    Returns:
        The rise of the regularised expected squared error of the consumers' outputs when 0, 1, ... N - 1 channels are
        gone, float64 ``(N,)``, never falling. The ridge makes it differ a little from
        :func:`lightning_coreset.coreset.expected_error`.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> moment = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> elimination_curve(moment, torch.tensor([[1.0, 1.0, 0.5]]), ridge=1e-6).round(decimals=3) + 0.0
        tensor([0.0000, 0.0000, 0.2500], dtype=torch.float64)

    """
    labels = _checked(moment, consumers, 1, 1, None)
    rounds = max(1, math.ceil(-math.log(len(moment)) / math.log(1 - _CURVE_SHARE)))
    costs = [moment.new_zeros(1, dtype=torch.float64)]
    if len(moment) > 1:
        schedule = _schedule(len(moment), 1, rounds)
        costs += [cost for _, cost in _rounds(moment, consumers, labels, schedule, ridge)]
    return torch.cat(costs).clamp_min(0).cumsum(0)


def _rounds(
    moment: Tensor, consumers: Tensor, labels: Tensor, targets: Sequence[int], ridge: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """The channels that each round drops, and what each class of them costs in the order in which they go."""
    alive = torch.arange(len(moment), device=moment.device)
    precision, coefficients = _first_solution(moment, consumers, ridge)
    for target in targets:
        if len(alive) <= target or bool((labels == labels[0]).all()):
            continue
        dropped, costs = _cheapest(precision, coefficients, labels, target)
        yield alive[dropped], costs
        stays = torch.ones(len(alive), dtype=torch.bool, device=alive.device)
        stays[dropped] = False
        kept = stays.nonzero().flatten()
        alive, labels = alive[kept], labels[kept]
        if len(alive) > targets[-1]:  # the last round needs no solution after it
            precision, coefficients = _downdated(precision, coefficients, kept, dropped)


def regularisation(moment: Tensor, ridge: float) -> float:
    """The ridge in the units of ``moment``: a part of its mean diagonal, or 1 where that is zero."""
    return ridge * float(moment.diagonal().double().mean()) or 1.0


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


def _first_solution(moment: Tensor, consumers: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    amount = regularisation(moment, ridge)
    shifted = moment.double().clone()
    shifted.diagonal().add_(amount)
    precision = torch.cholesky_inverse(torch.linalg.cholesky(shifted)).to(moment.dtype)
    del shifted
    weights = compress_rows(consumers.to(moment))
    # W C Q = W (I - lambda Q) spares a product of N x N matrices.
    return precision, torch.addmm(weights, weights, precision, alpha=-amount)


def _downdated(precision: Tensor, coefficients: Tensor, kept: Tensor, dropped: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse and the coefficients of the kept channels alone: a Schur complement."""
    across = precision[dropped][:, kept]
    share = torch.linalg.solve(precision[dropped][:, dropped], across)
    smaller = precision[kept][:, kept].addmm_(across.T, share, alpha=-1)
    return smaller, coefficients[:, kept].addmm_(coefficients[:, dropped], share, alpha=-1)


def _schedule(channels: int, size: int, rounds: int) -> list[int]:
    ratio = size / channels
    return [*(round(channels * ratio ** (r / rounds)) for r in range(1, rounds)), size]


def _cheapest(precision: Tensor, coefficients: Tensor, labels: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """Positions to drop in one round, so that at most ``target`` channels are left, and the cost of each class."""
    first = _costs(coefficients.square().sum(dim=0), None, precision, labels, coefficients)
    labels = torch.unique(labels, return_inverse=True)[1]
    sizes = torch.bincount(labels)
    order = (first / sizes).argsort(stable=True)
    reached = sizes[order].cumsum(0)
    surplus = len(labels) - target
    wanted = int(torch.searchsorted(reached, _CANDIDATES * surplus)) + 1
    candidates = torch.isin(labels, order[:wanted]).nonzero().flatten()
    Q = precision[candidates][:, candidates].double()
    chosen = coefficients[:, candidates].double()
    last = len(candidates) == len(labels)
    picked, costs = _one_by_one(Q, chosen.T @ chosen, labels[candidates], surplus, last=last)
    return candidates[picked], costs


def _one_by_one(Q: Tensor, H: Tensor, labels: Tensor, surplus: int, last: bool) -> tuple[Tensor, Tensor]:
    """Drop whole classes until ``surplus`` channels are gone; one class stays when the ``last`` are all here.

    Returns the channels in ascending order, and the costs of the classes in the order in which they went.
    """
    gone = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    labels = torch.unique(labels, return_inverse=True)[1]
    sizes = torch.bincount(labels)
    out = torch.zeros(len(sizes), dtype=torch.bool, device=labels.device)
    costs = []
    while int(gone.sum()) < surplus and int(out.sum()) < len(sizes) - int(last):
        cost = _costs(H.diagonal(), H, Q, labels, None) / sizes
        choice = int(torch.where(out, torch.inf, cost).argmin())
        costs.append(cost[choice] * sizes[choice])
        out[choice] = True
        members = labels == choice
        gone |= members
        drop = members.nonzero().flatten()
        share = torch.linalg.solve(Q[drop][:, drop], Q[drop])
        across = H[drop].T @ share
        H = H - across - across.T + share.T @ H[drop][:, drop] @ share
        Q = Q - Q[:, drop] @ share
        # Their rows are zero by now up to rounding; a unit block keeps the costs of classes already gone finite.
        Q[drop], Q[:, drop] = 0, 0
        Q[drop, drop] = 1
    return gone.nonzero().flatten(), torch.stack(costs)


def _costs(norms: Tensor, H: Tensor | None, Q: Tensor, labels: Tensor, coefficients: Tensor | None) -> Tensor:
    """The exact cost of dropping each class, in the order of the sorted labels."""
    labels = torch.unique(labels, return_inverse=True)[1]
    sizes = torch.bincount(labels)
    single = norms / Q.diagonal()
    if len(sizes) == len(labels):
        return torch.empty_like(single).scatter_(0, labels, single)
    costs = torch.empty(len(sizes), dtype=Q.dtype, device=Q.device)
    by_class = labels.argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    for width in sizes.unique().tolist():  # classes of one size share a batch
        which = (sizes == width).nonzero().flatten()
        members = by_class[starts[which][:, None] + torch.arange(width, device=Q.device)]
        blocks = Q[members[:, :, None], members[:, None, :]]
        if H is None:
            assert coefficients is not None
            part = coefficients[:, members]
            products = torch.einsum("jcv,jcw->cvw", part, part)
        else:
            products = H[members[:, :, None], members[:, None, :]]
        costs[which] = torch.linalg.solve(blocks, products).diagonal(dim1=1, dim2=2).sum(dim=1)
    return costs


def _checked(moment: Tensor, consumers: Tensor, size: int, rounds: int, classes: Tensor | None) -> Tensor:
    channels = len(moment)
    if moment.ndim != 2 or moment.shape[1] != channels or consumers.ndim != 2 or consumers.shape[1] != channels:
        raise ValueError(
            "Expected `moment` of shape (N, N) and `consumers` of shape (J, N) but got "
            f"{tuple(moment.shape)} and {tuple(consumers.shape)}."
        )
    if size < 1 or rounds < 1:
        raise ValueError(f"Expected `size` and `rounds` to be at least 1 but got {size} and {rounds}.")
    if classes is None:
        return torch.arange(channels, device=moment.device)
    if classes.shape != (channels,):
        raise ValueError(f"Expected one class for each of {channels} channels but got {tuple(classes.shape)}.")
    return torch.unique(classes.to(moment.device), return_inverse=True)[1]
