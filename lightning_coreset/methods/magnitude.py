"""Channels by the norm of their filters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lightning_coreset._arguments import is_whole_number
from lightning_coreset.layers import GroupView
from lightning_coreset.methods.ranking import RankingMethod


@dataclass(frozen=True)
class Magnitude(RankingMethod):
    """Keep the channels whose filters have the largest norm; a heuristic, to compare with.

    Attributes:
        p: 1 or 2, the norm.
    """

    p: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        if not is_whole_number(self.p) or self.p not in (1, 2):
            raise ValueError(f"Expected p to be 1 or 2 but got {self.p!r}.")

    @property
    def label(self) -> str:
        """With the norm: ``"magnitude (L2)"``."""
        return f"{super().label} (L{self.p})"

    def scores(self, group: GroupView) -> Tensor:
        """Norms over the mean of their group: layers have filters of very different sizes."""
        norms = group.producer_norms(self.p)
        return norms / norms.mean().clamp_min(1e-12)
