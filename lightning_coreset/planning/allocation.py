"""How many channels go from which group: one ordered list of small removals, and where to stop in it.

Every allocation is an order of the steps down the groups' ladders, and every pruning ratio a prefix of it. Hence a
larger ratio never keeps more, and the ratio is met to the nearest step.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from torch import Tensor

from lightning_coreset.planning.ladders import Ladder
from lightning_coreset.planning.sizes import Meter, Totals, Unit


class Step(NamedTuple):
    """One removal: a group goes down to the next smaller size that it may have.

    Attributes:
        group: The group's name.
        size: Classes that are left.
    """

    group: str
    size: int


def solve(
    steps: Sequence[Step], ladders: Sequence[Ladder], meter: Meter, ratio: float, unit: Unit, original: Totals
) -> dict[str, int]:
    """Go so many steps that what is gone is nearest to a ratio; every step makes the model smaller.

    Args:
        steps: The removals, in order.
        ladders: The sizes of all groups to begin with.
        meter: Counts the model.
        ratio: The fraction of ``original`` that shall be gone.
        unit: What is counted.
        original: The totals of the original model.

    Returns:
        Classes that stay, by group name.
    """

    def sizes(count: int) -> dict[str, int]:
        return {ladder.group: ladder.rungs[0] for ladder in ladders} | {step.group: step.size for step in steps[:count]}

    def gone(count: int) -> float:
        return meter.gone(sizes(count), original, unit)

    count = bisect_left(range(len(steps)), ratio, key=gone)
    if count > 0 and abs(gone(count - 1) - ratio) <= abs(gone(count) - ratio):
        count -= 1
    return sizes(count)


def uniform_steps(ladders: Sequence[Ladder]) -> list[Step]:
    """All groups at the same pace: by the fraction of its ORIGINAL classes that a group has lost half-way of a step.

    The order does not depend on where the groups are by now, so that going some steps, and later some more, ends where
    going all at once does.
    """
    timed = [
        (1 - (above + below) / 2 / ladder.original, number, Step(ladder.group, below))
        for number, ladder in enumerate(ladders)
        for above, below in ladder.steps()
    ]
    return [step for _, _, step in sorted(timed, key=lambda entry: entry[:2])]


def ranked_steps(ladders: Sequence[Ladder], scores: Mapping[str, Tensor]) -> list[Step]:
    """The least important classes of all groups first.

    Args:
        ladders: The sizes that each group may have.
        scores: How important each class is, by group name, (N,); comparable between groups.
    """
    timed = []
    for number, ladder in enumerate(ladders):
        ascending = scores[ladder.group].sort().values
        whole = len(ascending)
        timed += [
            (float(ascending[whole - above : whole - below].mean()), number, -below, Step(ladder.group, below))
            for above, below in ladder.steps()
        ]
    return [step for *_, step in sorted(timed, key=lambda entry: entry[:3])]


def error_steps(ladders: Sequence[Ladder], curves: Mapping[str, Tensor], meter: Meter, unit: Unit) -> list[Step]:
    """Always the step that adds the least error for what it saves.

    Args:
        ladders: The sizes that each group may have.
        curves: For every group of known error, the error when 0, 1, ... N - 1 of its classes are gone, (N,). Groups
            without a curve go along at the pace of the others: when these have lost half of what they can lose, so
            have they.
        meter: Counts what a step saves.
        unit: In what it is counted.
    """
    priced = [ladder for ladder in ladders if ladder.group in curves and len(ladder.rungs) > 1]
    if not priced:
        return uniform_steps(ladders)
    sizes = {ladder.group: ladder.rungs[0] for ladder in ladders}
    steps, saved = zip(*_cheapest_first(priced, curves, meter, unit, sizes), strict=True)
    total = max(sum(saved), 1e-12)
    timed = [(gone / total, 0, step) for gone, step in zip(accumulate(saved), steps, strict=True)]
    for number, ladder in enumerate(ladders, 1):
        if ladder.group not in curves:
            timed += [
                (1 - (above + below) / 2 / ladder.rungs[0], number, Step(ladder.group, below))
                for above, below in ladder.steps()
            ]
    return [step for _, _, step in sorted(timed, key=lambda entry: entry[:2])]


def _cheapest_first(
    ladders: Sequence[Ladder], curves: Mapping[str, Tensor], meter: Meter, unit: Unit, sizes: dict[str, int]
) -> Iterator[tuple[Step, float]]:
    """The steps in the order of their prices, each with what it saves; ``sizes`` follows.

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
        yield Step(ladders[number].group, below), saving
        if descents[number]:
            heapq.heappush(queue, offer(number))


def _added_errors(ladder: Ladder, curve: Tensor) -> list[float]:
    """What each step adds to the error, evened out so that it never falls from class to class (a convex hull)."""
    errors, whole = curve.tolist(), ladder.rungs[0]
    blocks: list[tuple[float, int]] = []  # error added, classes gone
    for above, below in ladder.steps():
        added, classes = errors[whole - below] - errors[whole - above], above - below
        while blocks and blocks[-1][0] * classes > added * blocks[-1][1]:
            earlier = blocks.pop()
            added, classes = added + earlier[0], classes + earlier[1]
        blocks.append((added, classes))
    per_class = [added / classes for added, classes in blocks for _ in range(classes)]
    return [sum(per_class[whole - above : whole - below]) for above, below in ladder.steps()]
