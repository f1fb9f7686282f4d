r"""Which channels to keep: backward elimination under the least-squares error of the consumers' outputs.

Shapes: N channels, J rows of the consumers (outputs times kernel positions), A channels still alive in a round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lightning_coreset.coreset.elimination_state import Solution, costs_of_classes, drop_one_by_one
from lightning_coreset.coreset.sampled_moment import SampledMoment

Moment: TypeAlias = Tensor | SampledMoment
"""Second moments of channels, as a matrix (N, N) or by fewer samples than channels."""

# A round drops one by one among this many times as many candidates as it has to drop.
_CANDIDATES = 2
# The part of the channels alive that a round of a whole curve drops.
_CURVE_SHARE = 0.08


def eliminate(
    moment: Moment | Sequence[Moment],
    consumers: Tensor | Sequence[Tensor],
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
    out one at a time with their costs kept exact; :math:`B` and the diagonal of :math:`Q` of the others follow once a
    round by a block downdate, and other entries of :math:`Q` where they are asked for. Without that inner loop a round
    would drop both of two channels that replace each other.

    Args:
        moment: The moments :math:`C` of the activations, centred or not, ``(N, N)``. Computed in its dtype, except that
            the first inverse is always taken in float64. Several where consumers see the channels differently, as
            the layers that read a residual stream do: their errors are added, and each has a solution of its own.
            A :class:`SampledMoment` stands for the matrix where there are fewer samples than channels.
        consumers: The consumers' weights, ``(J, N)``, with one row for each output and position; as many as moments.
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
    readers = _readers(moment, consumers)
    labels = _checked(readers, size, rounds, classes)
    alive = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    if size < len(alive):
        for dropped, _ in _rounds(readers, labels, _schedule(len(alive), size, rounds), ridge):
            alive[dropped] = False
    return alive.nonzero().flatten()


def elimination_curve(
    moment: Moment | Sequence[Moment],
    consumers: Tensor | Sequence[Tensor],
    *,
    ridge: float = 1e-3,
    classes: Tensor | None = None,
) -> Tensor:
    r"""What it costs to drop channels as :func:`eliminate` does, for every number of them, from one elimination.

    Args:
        moment: The moments :math:`C` of the activations, as for :func:`eliminate`, ``(N, N)``.
        consumers: The consumers' weights, ``(J, N)``.
        ridge: :math:`\lambda` as a part of the mean diagonal of ``moment``.
        classes: As for :func:`eliminate`.

    Returns:
        The rise of the regularised expected squared error of the consumers' outputs when 0, 1, ... N - 1 channels are
        gone, float64 ``(N,)``, never falling; with ``classes`` when so many of them are gone. The ridge makes it differ
        a little from :func:`lightning_coreset.coreset.expected_error`.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> moment = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> elimination_curve(moment, torch.tensor([[1.0, 1.0, 0.5]]), ridge=1e-6).round(decimals=3) + 0.0
        tensor([0.0000, 0.0000, 0.2500], dtype=torch.float64)

    """
    readers = _readers(moment, consumers)
    labels = _checked(readers, 1, 1, classes)
    largest = int(torch.bincount(labels).max())
    rounds = max(1, math.ceil(-math.log(len(labels)) / math.log(1 - _CURVE_SHARE)))
    costs = [torch.zeros(1, dtype=torch.float64, device=labels.device)]
    if len(labels) > largest:
        schedule = _schedule(len(labels), largest, rounds)
        costs += [cost.double() for _, cost in _rounds(readers, labels, schedule, ridge)]
    return torch.cat(costs).clamp_min(0).cumsum(0)


def _rounds(
    readers: Sequence[tuple[Moment, Tensor]], labels: Tensor, targets: Sequence[int], ridge: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """The channels that each round drops, and what each class of them costs in the order in which they go."""
    alive = torch.arange(len(labels), device=labels.device)
    solutions = [Solution.of(moment, consumers, regularisation(moment, ridge)) for moment, consumers in readers]
    for target in targets:
        if len(alive) <= target or bool((labels == labels[0]).all()):
            continue
        dropped, costs = _cheapest(solutions, labels, target)
        yield alive[dropped], costs
        stays = torch.ones(len(alive), dtype=torch.bool, device=alive.device)
        stays[dropped] = False
        kept = stays.nonzero().flatten()
        alive, labels = alive[kept], labels[kept]
        if len(alive) > targets[-1]:  # the last round needs no solution after it
            solutions = [solution.without(dropped, kept) for solution in solutions]


def regularisation(moment: Moment, ridge: float) -> float:
    """The ridge in the units of ``moment``: a part of its mean diagonal, or 1 where that is zero."""
    by_samples = isinstance(moment, SampledMoment)
    return ridge * (moment.mean_diagonal if by_samples else float(moment.diagonal().double().mean())) or 1.0


def _schedule(channels: int, size: int, rounds: int) -> list[int]:
    ratio = size / channels
    return [*(round(channels * ratio ** (r / rounds)) for r in range(1, rounds)), size]


def _cheapest(solutions: Sequence[Solution], labels: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """Positions to drop in one round, so that at most ``target`` channels are left, and the cost of each class."""
    first = torch.stack([costs_of_classes(solution, labels).double() for solution in solutions]).sum(dim=0)
    labels = torch.unique(labels, return_inverse=True)[1]
    sizes = torch.bincount(labels)
    order = (first / sizes).argsort(stable=True)
    reached = sizes[order].cumsum(0)
    surplus = len(labels) - target
    wanted = int(torch.searchsorted(reached, _CANDIDATES * surplus)) + 1
    candidates = torch.isin(labels, order[:wanted]).nonzero().flatten()
    chosen = [solution.at(candidates) for solution in solutions]
    last = len(candidates) == len(labels)
    picked, costs = drop_one_by_one(chosen, labels[candidates], surplus, last=last)
    return candidates[picked], costs


def _readers(moment: Moment | Sequence[Moment], consumers: Tensor | Sequence[Tensor]) -> list[tuple[Moment, Tensor]]:
    moments = [moment] if isinstance(moment, Tensor | SampledMoment) else list(moment)
    weights = [consumers] if isinstance(consumers, Tensor) else list(consumers)
    if len(moments) != len(weights) or not moments:
        raise ValueError(
            f"Expected as many `consumers` as moments, at least one, but got {len(weights)} and {len(moments)}."
        )
    return list(zip(moments, weights, strict=True))


def _checked(readers: Sequence[tuple[Moment, Tensor]], size: int, rounds: int, classes: Tensor | None) -> Tensor:
    channels = len(readers[0][0])
    for moment, consumers in readers:
        if moment.shape != (channels, channels) or consumers.ndim != 2 or consumers.shape[1] != channels:
            raise ValueError(
                "Expected `moment` of shape (N, N) and `consumers` of shape (J, N) but got "
                f"{tuple(moment.shape)} and {tuple(consumers.shape)}."
            )
    if size < 1 or rounds < 1:
        raise ValueError(f"Expected `size` and `rounds` to be at least 1 but got {size} and {rounds}.")
    device = readers[0][0].device
    if classes is None:
        return torch.arange(channels, device=device)
    if classes.shape != (channels,):
        raise ValueError(f"Expected one class for each of {channels} channels but got {tuple(classes.shape)}.")
    return torch.unique(classes.to(device), return_inverse=True)[1]
