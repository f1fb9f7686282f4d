"""What a method returns for one group: the channels that stay, and what becomes of the weights that read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Selection:
    """The coreset of one group of N channels.

    Attributes:
        kept: Channels that stay, int64 ``(m,)``, ascending, at least one.
        method: How they were chosen, in words, for the plan; the method's own label where it is empty.
        updates: New contents of whole tensors by qualified name, of the tensors' present shapes: reweighted consumers
            with zeros in removed columns, shifted biases, rescaled statistics. They are sliced later.
        expected_error: The expected squared error of the consumers' outputs over their expected square, where the
            method knows it.
        weights: One multiplier, ``(m,)``, for all weights that read a kept channel, as importance sampling has it;
            ``None`` where they stay as they are, or ``updates`` has them.
    """

    kept: Tensor
    method: str = ""
    updates: Mapping[str, Tensor] = field(default_factory=dict)
    expected_error: float | None = None
    weights: Tensor | None = None

    @classmethod
    def whole(cls, size: int, method: str = "kept whole") -> Selection:
        """All of a group's ``size`` channels stay."""
        return cls(torch.arange(size), method, {}, 0.0)

    def factors(self, size: int) -> Tensor:
        """The multiplier of all weights that read each of ``size`` channels, zero for removed ones, float64 (N,)."""
        weights = torch.ones(len(self.kept), dtype=torch.float64) if self.weights is None else self.weights.cpu()
        return torch.zeros(size, dtype=torch.float64).index_copy_(0, self.kept, weights.double())
