"""What was chosen for one group: the classes that stay, and what becomes of the tensors that read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_coreset.structure import ChannelGroup


@dataclass(frozen=True, eq=False)
class Selection:
    """The coreset of one group.

    Attributes:
        kept: Classes that stay, int64 (m,), ascending.
        method: How they were chosen, in words.
        updates: New values of whole tensors by name, removed columns being zero: reweighted consumers, shifted biases,
            repaired statistics. Not sliced yet.
        expected_error: The expected squared error of the consumers' outputs over their expected square, under the
            Gaussian law of the activations; ``None`` where it is not known.
    """

    kept: Tensor
    method: str
    updates: Mapping[str, Tensor] = field(default_factory=dict)
    expected_error: float | None = None

    @classmethod
    def whole(cls, group: ChannelGroup) -> Selection:
        """All classes stay."""
        return cls(torch.arange(group.size), "kept whole", {}, 0.0)

    @classmethod
    def weighted(
        cls, group: ChannelGroup, kept: Tensor, weights: Tensor, tensors: Mapping[str, Tensor], method: str
    ) -> Selection:
        """One multiplier (m,) for all that reads a kept class."""
        factor = torch.zeros(group.size, dtype=torch.float64)
        factor[kept] = weights.cpu()
        return cls(kept, method, scale_consumers(group, factor, tensors))


def scale_consumers(group: ChannelGroup, factor: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The group's consumers with the columns of every class multiplied by its factor (N,)."""
    scaled: dict[str, Tensor] = {}
    for member in group.by_role("consumer"):
        tensor = scaled.get(member.name, tensors[member.name].detach())
        # One number more at the end, where classes with fewer positions than others have their -1.
        column = torch.ones(tensor.shape[member.dim] + 1, dtype=torch.float64)
        column[member.positions] = factor[:, None]
        shape = [1] * tensor.dim()
        shape[member.dim] = -1
        scaled[member.name] = tensor * column[:-1].reshape(shape).to(tensor.device, tensor.dtype)
    return scaled
