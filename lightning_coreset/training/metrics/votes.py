"""Whether the ranks agree that a number can be measured."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class RankVotes(Metric):
    """Whether any rank cannot measure the number, and whether all ranks have counted a batch."""

    full_state_update = False
    failures: Tensor
    counted: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("failures", torch.tensor(0), dist_reduce_fx="max")
        self.add_state("counted", torch.tensor(1), dist_reduce_fx="min")

    def update(self, fails: bool, counted: bool) -> None:
        """Set this rank's vote, whatever it was before."""
        self.failures = torch.tensor(int(fails), device=self.device)
        self.counted = torch.tensor(int(counted), device=self.device)

    def compute(self) -> tuple[bool, bool]:
        """Return whether any rank fails, and whether all have counted."""
        return bool(self.failures), bool(self.counted)
