"""What was chosen for one group: the classes that stay, and what becomes of the tensors that read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_coreset.structure import ChannelGroup, Member
from lightning_coreset.surgery import scale_dims_


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
        weights: One multiplier, float64 (m,), for all that reads a kept class; ``None`` where it stays as it is or
            ``updates`` says what it becomes.
    """

    kept: Tensor
    method: str
    updates: Mapping[str, Tensor] = field(default_factory=dict)
    expected_error: float | None = None
    weights: Tensor | None = None

    @classmethod
    def whole(cls, group: ChannelGroup) -> Selection:
        """All classes stay."""
        return cls(torch.arange(group.size), "kept whole", {}, 0.0)

    def factor(self, group: ChannelGroup) -> Tensor:
        """By what all that reads a class is multiplied, zero where it goes, float64 (N,)."""
        weights = torch.ones(len(self.kept), dtype=torch.float64) if self.weights is None else self.weights.cpu()
        return torch.zeros(group.size, dtype=torch.float64).index_copy_(0, self.kept, weights.double())

    def rewritten(self, group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """New values of whole tensors by name, whether by ``weights`` or by ``updates``."""
        return self.updates if self.weights is None else scale_consumers(group, self.factor(group), tensors)


def scale_consumers(group: ChannelGroup, factor: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The group's consumers with the columns of every class multiplied by its factor (N,)."""
    scaled: dict[str, Tensor] = {}
    for member in group.by_role("consumer"):
        tensor = scaled.setdefault(member.name, tensors[member.name].detach().clone())
        scale_dims_(tensor, {member.dim: column_factors(member, factor, tensor.shape[member.dim])})
    return scaled


def column_factors(member: Member, factor: Tensor, length: int) -> Tensor:
    """The factor of every class at its positions along the member's dimension, ones elsewhere, float64 (length,)."""
    if member.one_each and len(factor) == length:
        return factor
    # One number more at the end, where classes with fewer positions than others have their -1.
    column = torch.ones(length + 1, dtype=torch.float64)
    column[member.positions] = factor[:, None]
    return column[:-1]
