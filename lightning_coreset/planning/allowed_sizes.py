"""The sizes to which a group may be cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lightning_coreset.planning.request import Request
from lightning_coreset.structure import ChannelGroup, Member

LEAST_NORMALIZED = 2
"""Classes that a normalised group keeps: of one channel alone a LayerNorm makes zero, and a deviation is NaN."""

# 10 * (1 - 0.7) is 3.0000000000000004.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class AllowedSizes:
    """The sizes of one group that a request allows.

    Attributes:
        group: The group's name.
        original: Classes in the original model.
        sizes: In classes, the present size first, then every smaller one that is allowed.
        multiple: How many classes are removed at a time, but for the first step.
        is_even: Whether all sizes but the first are so many apart.
        channels_of_a_class: The fewest channels that one class is in a layer that computes it.
    """

    name: str
    original: int
    sizes: tuple[int, ...]
    multiple: int = 1
    is_even: bool = True
    channels_of_a_class: int = 1

    @classmethod
    def of(cls, group: ChannelGroup, request: Request, original: int) -> AllowedSizes:
        """The sizes of a group as it is now that had ``original`` classes."""
        rounded, narrowest = _multiple(group, request.round_to), _narrowest(group)
        multiple = math.lcm(rounded, group.multiple)
        fewest = max(
            math.ceil(request.min_channels / narrowest),
            math.ceil(original * (1 - request.max_layer_ratio) - _ROUNDING),
            LEAST_NORMALIZED if group.normalized else 1,
        )
        possible = range(group.size - 1, max(group.size - 1 - multiple, 0), -1)
        first = next((n for n in possible if n % rounded == 0 and (group.size - n) % group.multiple == 0), 0)
        lower = range(first, fewest - 1, -multiple)
        return cls(group.name, original, (group.size, *lower), multiple, channels_of_a_class=narrowest)

    @property
    def smallest(self) -> int:
        """The last size."""
        return self.sizes[-1]

    @property
    def longest_step(self) -> int:
        """The most classes between two sizes; 0 where there is but one."""
        return max((above - below for above, below in self.steps()), default=0)

    def steps(self) -> Sequence[tuple[int, int]]:
        """The sizes before and after each step down."""
        return list(zip(self.sizes, self.sizes[1:], strict=False))

    def only(self, sizes: Sequence[int]) -> AllowedSizes:
        """Some of the sizes, in the same order; the present one is always among them."""
        return self if len(sizes) == len(self.sizes) else replace(self, sizes=tuple(sizes), is_even=False)

    def nearest(self, size: float) -> int:
        """The allowed size nearest to a size; the larger one of two."""
        return min(self.sizes, key=lambda allowed: (abs(allowed - size), -allowed))


def _makers(group: ChannelGroup) -> Sequence[Member]:
    """What computes the channels; consumers where a tied weight is both."""
    return group.by_role("producer") or group.by_role("consumer")


def _narrowest(group: ChannelGroup) -> int:
    """The fewest channels that one class is in a layer that computes it."""
    return max(1, min(1 if member.one_each else int(member.widths.min()) for member in _makers(group)))


def _multiple(group: ChannelGroup, round_to: int) -> int:
    """How many classes are a multiple of ``round_to`` channels, in every layer that computes them.

    Where classes have different widths no number of them is: then single classes are removed.
    """
    if round_to == 1:
        return 1
    needed = 1
    for member in _makers(group):
        widths = set(member.widths.tolist()) - {0}
        if len(widths) != 1:
            return 1
        needed = math.lcm(needed, round_to // math.gcd(round_to, widths.pop()))
    return needed
