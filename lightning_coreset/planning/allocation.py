"""How many channels go from which group: one ordered list of small removals, and where to stop in it.

Every allocation is an order of the steps down the groups' ladders, and every pruning ratio a prefix of it. Hence a
larger ratio never keeps more, and the ratio is met to the nearest step.

An order is an int64 tensor with an entry for every step: the number of the ladder on which it goes one rung down.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lightning_coreset.planning.allowed_sizes import AllowedSizes
from lightning_coreset.planning.cost_model import CostModel, ModelCost, Unit


def solve(
    order: Tensor, ladders: Sequence[AllowedSizes], meter: CostModel, ratio: float, unit: Unit, original: ModelCost
) -> dict[str, int]:
    """Go so many steps that what is gone is nearest to a ratio; every step makes the model smaller.

    Args:
        order: The numbers of the ladders, step by step, (steps,).
        ladders: The sizes of all groups to begin with.
        meter: Counts the model.
        ratio: The fraction of ``original`` that shall be gone.
        unit: What is counted.
        original: The totals of the original model.

    Returns:
        Classes that stay, by group name.
    """

    def sizes(count: int) -> dict[str, int]:
        taken = order[:count].bincount(minlength=len(ladders)).tolist()
        return {ladder.group: ladder.sizes[steps] for ladder, steps in zip(ladders, taken, strict=True)}

    def gone(count: int) -> float:
        return meter.gone(sizes(count), original, unit)

    count = bisect_left(range(len(order)), ratio, key=gone)
    if count > 0 and abs(gone(count - 1) - ratio) <= abs(gone(count) - ratio):
        count -= 1
    return sizes(count)


def uniform_steps(ladders: Sequence[AllowedSizes]) -> Tensor:
    """All groups at the same pace: by the fraction of its ORIGINAL classes that a group has lost half-way of a step.

    The order does not depend on where the groups are by now, so that going some steps, and later some more, ends where
    going all at once does.

    Returns:
        The numbers of the ladders, (steps,).
    """
    return _by_time([_half_way(ladder, ladder.original) for ladder in ladders])


def ranked_steps(ladders: Sequence[AllowedSizes], scores: Mapping[str, Tensor]) -> Tensor:
    """The least important classes of all groups first.

    Args:
        ladders: The sizes that each group may have.
        scores: How important each class is, by group name, (N,); comparable between groups.

    Returns:
        The numbers of the ladders, (steps,).
    """
    return _by_time([_means(ladder, scores[ladder.group]) for ladder in ladders])


def error_steps(ladders: Sequence[AllowedSizes], curves: Mapping[str, Tensor], meter: CostModel, unit: Unit) -> Tensor:
    """Always the step that adds the least error for what it saves.

    Args:
        ladders: The sizes that each group may have.
        curves: For every group of known error, the error when 0, 1, ... N - 1 of its classes are gone, (N,). Groups
            without a curve go along at the pace of the others: when these have lost half of what they can lose, so
            have they.
        meter: Counts what a step saves.
        unit: In what it is counted.

    Returns:
        The numbers of the ladders, (steps,).
    """
    priced = [number for number, one in enumerate(ladders) if one.group in curves and len(one.sizes) > 1]
    if not priced:
        return uniform_steps(ladders)
    sizes = {ladder.group: ladder.sizes[0] for ladder in ladders}
    chosen = list(_cheapest_first([ladders[number] for number in priced], curves, meter, unit, sizes))
    steps = torch.tensor([priced[number] for number, _ in chosen])
    gone = torch.tensor([saving for _, saving in chosen], dtype=torch.float64).cumsum(0)
    gone /= gone[-1].clamp_min(1e-12)
    others = [
        torch.zeros(0, dtype=torch.float64) if ladder.group in curves else _half_way(ladder, ladder.sizes[0])
        for ladder in ladders
    ]
    times = torch.cat([gone, *others])
    numbers = torch.cat([steps, _numbers(others)])
    return numbers[times.argsort(stable=True)]  # those of known error before others at the same time


def _by_time(times: Sequence[Tensor]) -> Tensor:
    """The ladders' numbers in the order of their steps' times; of two at one time the lower number comes first."""
    return _numbers(times)[torch.cat(list(times)).argsort(stable=True)]


def _numbers(times: Sequence[Tensor]) -> Tensor:
    lengths = torch.tensor([len(one) for one in times])
    return torch.arange(len(times)).repeat_interleave(lengths)


def _half_way(ladder: AllowedSizes, whole: int) -> Tensor:
    """The fraction of ``whole`` that is gone half-way of every step, (steps,)."""
    lower = torch.arange(len(ladder.sizes) - 1, dtype=torch.float64)
    rungs = torch.cat([lower.new_tensor([ladder.sizes[0]]), ladder.sizes[min(1, len(lower))] - ladder.multiple * lower])
    return 1 - (rungs[:-1] + rungs[1:]) / 2 / whole


def _means(ladder: AllowedSizes, scores: Tensor) -> Tensor:
    """The mean score of the classes that go with every step, the least important first, (steps,)."""
    ascending = scores.double().sort().values
    pieces = ascending[: len(ascending) - ladder.smallest].split([above - below for above, below in ladder.steps()])
    return torch.stack([piece.mean() for piece in pieces]) if len(ladder.sizes) > 1 else ascending.new_zeros(0)


def _cheapest_first(
    ladders: Sequence[AllowedSizes], curves: Mapping[str, Tensor], meter: CostModel, unit: Unit, sizes: dict[str, int]
) -> Iterator[tuple[int, float]]:
    """The ladders' numbers in the order of their steps' prices, each with what it saves; ``sizes`` follows.

    A step saves less once the layers next to it have shrunk, and adds more error once its own has. Prices only rise:
    so a queue is enough, in which a price is looked at again when its turn comes.
    """
    descents = [
        list(zip(ladder.steps(), _added_errors(ladder, curves[ladder.group]), strict=True)) for ladder in ladders
    ]

    def offer(number: int) -> tuple[float, int, float]:
        (_, below), error = descents[number][0]
        saving = meter.saved(ladders[number].group, below, sizes, unit)
        return (error / saving if saving > 0 else math.inf), number, saving

    queue = [offer(number) for number in range(len(ladders))]
    heapq.heapify(queue)
    while queue:
        stale, number, _ = heapq.heappop(queue)
        price, _, saving = offer(number)
        if price > stale and queue and price > queue[0][0]:
            heapq.heappush(queue, (price, number, saving))
            continue
        (_, below), _ = descents[number].pop(0)
        sizes[ladders[number].group] = below
        yield number, saving
        if descents[number]:
            heapq.heappush(queue, offer(number))


def _added_errors(ladder: AllowedSizes, curve: Tensor) -> list[float]:
    """What each step adds to the error, evened out so that it never falls from class to class (a convex hull)."""
    errors, whole = curve.tolist(), ladder.sizes[0]
    blocks: list[tuple[float, int]] = []  # error added, classes gone
    for above, below in ladder.steps():
        added, classes = errors[whole - below] - errors[whole - above], above - below
        while blocks and blocks[-1][0] * classes > added * blocks[-1][1]:
            earlier = blocks.pop()
            added, classes = added + earlier[0], classes + earlier[1]
        blocks.append((added, classes))
    per_class = [added / classes for added, classes in blocks for _ in range(classes)]
    return [sum(per_class[whole - above : whole - below]) for above, below in ladder.steps()]
