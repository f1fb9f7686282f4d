"""Which classes are removed in a trial."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import torch

from lightning_coreset.structure import ChannelGroup, paired

_FRACTION = 0.3


def removed_classes(groups: Sequence[ChannelGroup], *, unlike: bool | None = None) -> dict[str, set[int]]:
    """Around a third of the classes of each group, of every group another fraction as far as possible.

    Groups that have to lose as many as another one, such as where the code views both by one width, would go unnoticed
    if all lost the same. At least one class goes, and half of them stay, or as many as
    have to go at a time.

    Args:
        groups: The groups.
        unlike: Whether :func:`unlike_classes` are to be among those that go; by default as chance has it.
    """
    used: dict[Fraction, int] = {}
    removed = {}
    for group in groups:
        possible = range(group.multiple, max(group.size // 2, group.multiple) + 1, group.multiple)
        counts = sorted(possible, key=lambda count: abs(count - _FRACTION * group.size))
        count = min(counts, key=lambda count: used.get(Fraction(count, group.size), 0))  # the first of the least used
        fraction = Fraction(count, group.size)
        used[fraction] = used.get(fraction, 0) + 1
        order = random.Random(0).sample(range(group.size), group.size if unlike is not None else count)
        if unlike is not None:
            others = unlike_classes(group)
            order.sort(key=lambda number: (number in others) != unlike)  # stable
        removed[group.name] = set(order[:count])
    return removed


def unlike_classes(group: ChannelGroup) -> set[int]:
    """The classes that have other numbers of positions in the group's tensors than most of its classes.

    Such as the last one of two halves that a slice cuts to an odd width: what is right where it goes may be wrong where
    it stays, and the other way round.
    """
    if all(member.one_each for member in group.members):
        return set()
    forms = list(zip(*(map(len, member.index) for member in group.members), strict=True))
    ((usual, _),) = Counter(forms).most_common(1)
    return {number for number, form in enumerate(forms) if form != usual}


def paired_at_random(group: ChannelGroup) -> ChannelGroup:
    """Dimensions of different heads are put together by their ranks later: any way must be right."""
    if group.pairing is None or group.pairing.blocks == 1:
        return group
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(group.size, generator=generator) for _ in range(group.pairing.blocks)]
    return paired(group, torch.stack(orders))
