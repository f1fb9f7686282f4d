"""Channels at random."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_coreset.layers import GroupView
from lightning_coreset.methods.ranking import RankingMethod
from lightning_coreset.methods.selection import Selection


@dataclass(frozen=True)
class Random(RankingMethod):
    """Keep random channels, to compare with."""

    def scores(self, group: GroupView) -> Tensor:
        """Uniform random numbers."""
        return torch.rand(group.size, generator=group.generator)

    def select(self, group: GroupView, size: int) -> Selection:
        """A random subset, all alike likely."""
        if size >= group.size:
            return Selection.whole(group.size)
        kept = torch.randperm(group.size, generator=group.generator)[:size].sort().values
        return Selection(kept, self.label)
