"""Which classes are removed in a trial."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction

from lightning_coreset.structure import ChannelGroup

_FRACTION = 0.3


def removed_classes(groups: Sequence[ChannelGroup]) -> dict[str, set[int]]:
    """Around a third of the classes of each group, of every group another fraction as far as possible.

    Groups that have to lose as many as another one, such as where the code views both by one width, would go unnoticed
    if all lost the same. At least one class goes, and half of them stay.
    """
    used: dict[Fraction, int] = {}
    removed = {}
    for group in groups:
        counts = sorted(range(1, max(group.size // 2, 1) + 1), key=lambda count: abs(count - _FRACTION * group.size))
        count = min(counts, key=lambda count: used.get(Fraction(count, group.size), 0))  # the first of the least used
        fraction = Fraction(count, group.size)
        used[fraction] = used.get(fraction, 0) + 1
        removed[group.name] = set(random.Random(0).sample(range(group.size), count))
    return removed
