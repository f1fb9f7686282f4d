"""How many channels are removed from which group: one ordered list of small removals for all pruning ratios.

Every allocation is an order of the steps from each group's size to its next smaller one, and every pruning ratio a
prefix of it (``CostModel.sizes_at_ratio``). Hence a larger ratio never keeps more, and the ratio is met to the nearest
step.

An order is an int64 tensor with an entry for every step: the number of the group that shrinks by one step.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lightning_coreset.planning.allowed_sizes import AllowedSizes
from lightning_coreset.planning.cost_model import CostModel, Unit


def uniform_steps(allowed: Sequence[AllowedSizes]) -> Tensor:
    """All groups at the same pace: by the fraction of its ORIGINAL classes that a group has lost half-way of a step.

    The order does not depend on the groups' present sizes, so that taking some steps, and later some more, ends where
    taking all at once does.

    Returns:
        The numbers of the groups, (steps,).
    """
    return _by_time([_half_way(group, group.original) for group in allowed])


def ranked_steps(allowed: Sequence[AllowedSizes], scores: Mapping[str, Tensor]) -> Tensor:
    """The least important classes of all groups first.

    Args:
        allowed: The sizes that each group may have.
        scores: How important each class is, by group name, (N,); comparable between groups.

    Returns:
        The numbers of the groups, (steps,).
    """
    return _by_time([_means(group, scores[group.name]) for group in allowed])


def error_steps(
    allowed: Sequence[AllowedSizes], curves: Mapping[str, Tensor], cost_model: CostModel, unit: Unit
) -> Tensor:
    """Always the step that adds the least error for what it saves.

    Args:
        allowed: The sizes that each group may have.
        curves: For every group of known error, the error when 0, 1, ... N - 1 of its classes are gone, (N,). Groups
            without a curve follow at the pace of the others: when these have lost half of what they can lose, so
            have they.
        cost_model: Counts what a step saves.
        unit: In what it is counted.

    Returns:
        The numbers of the groups, (steps,).
    """
    priced = [number for number, one in enumerate(allowed) if one.name in curves and len(one.sizes) > 1]
    if not priced:
        return uniform_steps(allowed)
    sizes = {group.name: group.sizes[0] for group in allowed}
    chosen = list(_cheapest_first([allowed[number] for number in priced], curves, cost_model, unit, sizes))
    steps = torch.tensor([priced[number] for number, _ in chosen])
    gone = torch.tensor([saving for _, saving in chosen], dtype=torch.float64).cumsum(0)
    gone /= gone[-1].clamp_min(1e-12)
    others = [
        torch.zeros(0, dtype=torch.float64) if group.name in curves else _half_way(group, group.sizes[0])
        for group in allowed
    ]
    times = torch.cat([gone, *others])
    numbers = torch.cat([steps, _numbers(others)])
    return numbers[times.argsort(stable=True)]  # those of known error before others at the same time


def _by_time(times: Sequence[Tensor]) -> Tensor:
    """The groups' numbers in the order of their steps' times; of two at one time the lower number is first."""
    return _numbers(times)[torch.cat(list(times)).argsort(stable=True)]


def _numbers(times: Sequence[Tensor]) -> Tensor:
    lengths = torch.tensor([len(one) for one in times])
    return torch.arange(len(times)).repeat_interleave(lengths)


def _half_way(group: AllowedSizes, whole: int) -> Tensor:
    """The fraction of ``whole`` that is gone half-way of every step, (steps,)."""
    lower = torch.arange(len(group.sizes) - 1, dtype=torch.float64)
    if not group.is_even:
        sizes = lower.new_tensor(group.sizes)
        return 1 - (sizes[:-1] + sizes[1:]) / 2 / whole
    # As `AllowedSizes.of` spaces them; a tensor of the tuple would cost more than all the rest of an allocation.
    sizes = torch.cat([lower.new_tensor([group.sizes[0]]), group.sizes[min(1, len(lower))] - group.multiple * lower])
    return 1 - (sizes[:-1] + sizes[1:]) / 2 / whole


def _means(group: AllowedSizes, scores: Tensor) -> Tensor:
    """The mean score of the classes that go with every step, the least important first, (steps,)."""
    ascending = scores.double().sort().values
    pieces = ascending[: len(ascending) - group.smallest].split([above - below for above, below in group.steps()])
    return torch.stack([piece.mean() for piece in pieces]) if len(group.sizes) > 1 else ascending.new_zeros(0)


def _cheapest_first(
    allowed: Sequence[AllowedSizes],
    curves: Mapping[str, Tensor],
    cost_model: CostModel,
    unit: Unit,
    sizes: dict[str, int],
) -> Iterator[tuple[int, float]]:
    """The groups' numbers in the order of their steps' prices, each with what it saves; ``sizes`` follows.

    A step saves less once the layers next to it have shrunk, and adds more error once its own has. Prices only rise:
    so a queue is enough, in which a price is looked at again when its turn comes.
    """
    descents = [list(zip(group.steps(), _added_errors(group, curves[group.name]), strict=True)) for group in allowed]

    def offer(number: int) -> tuple[float, int, float]:
        (_, below), error = descents[number][0]
        saving = cost_model.saved(allowed[number].name, below, sizes, unit)
        return (error / saving if saving > 0 else math.inf), number, saving

    queue = [offer(number) for number in range(len(allowed))]
    heapq.heapify(queue)
    while queue:
        stale, number, _ = heapq.heappop(queue)
        price, _, saving = offer(number)
        if price > stale and queue and price > queue[0][0]:
            heapq.heappush(queue, (price, number, saving))
            continue
        (_, below), _ = descents[number].pop(0)
        sizes[allowed[number].name] = below
        yield number, saving
        if descents[number]:
            heapq.heappush(queue, offer(number))


def _added_errors(group: AllowedSizes, curve: Tensor) -> list[float]:
    """What each step adds to the error, evened out so that it never falls from class to class (a convex hull)."""
    errors, whole = curve.tolist(), group.sizes[0]
    blocks: list[tuple[float, int]] = []  # error added, classes gone
    for above, below in group.steps():
        added, classes = errors[whole - below] - errors[whole - above], above - below
        while blocks and blocks[-1][0] * classes > added * blocks[-1][1]:
            earlier = blocks.pop()
            added, classes = added + earlier[0], classes + earlier[1]
        blocks.append((added, classes))
    per_class = [added / classes for added, classes in blocks for _ in range(classes)]
    return [sum(per_class[whole - above : whole - below]) for above, below in group.steps()]
