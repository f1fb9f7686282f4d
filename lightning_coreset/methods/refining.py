"""Which producers move: as many as takes some seconds, unless all are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lightning_coreset.layers import GroupView, LayerPair, movable_pair

_MOST = 1024
"""Producers of groups with more channels stay as they are: refining them takes minutes."""
_MOST_BY_DEFAULT = 512
"""A group of so many takes about four seconds on one core, one of 128 less than one."""
_TOTAL_BY_DEFAULT = 1500
"""Of all groups together: some eight seconds."""
_SHARE_BY_DEFAULT = 2 / 3
"""Where more channels stay, as in the events of a schedule, it takes longer than all else and gains next to nothing."""


@dataclass(frozen=True)
class Refining:
    """How far producers may move.

    Attributes:
        largest: The most channels of a group whose producers move; 0 for none, of heads and streams as well.
        total: The most channels of all these groups together, the smallest groups first; ``None`` for any number.
        share: The most of its channels that may stay if they move, as a part of all.
    """

    largest: int
    total: int | None
    share: float

    @classmethod
    def of(cls, asked: bool | None) -> Refining:
        """As ``Reconstruction(refine=...)`` says."""
        if asked is None:
            return cls(_MOST_BY_DEFAULT, _TOTAL_BY_DEFAULT, _SHARE_BY_DEFAULT)
        return cls(_MOST, None, 1.0) if asked else cls(0, 0, 0.0)

    def __bool__(self) -> bool:
        """Whether anything may move."""
        return self.largest > 0

    def pairs(self, views: Sequence[GroupView], sizes: Mapping[str, int]) -> dict[str, LayerPair]:
        """The layers that may move, by the names of their groups.

        Args:
            views: The groups.
            sizes: How many channels each is to keep.
        """
        found: dict[str, LayerPair] = {}
        total = 0
        for view in sorted(views, key=lambda one: one.size):
            if view.size > self.largest or sizes[view.name] > self.share * view.size:
                continue
            if self.total is not None and total + view.size > self.total:
                break
            pair = movable_pair(view)
            if pair is not None:
                found[view.name] = pair
                total += view.size
        return found
