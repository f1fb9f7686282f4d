"""The weights of a selection, multiplied into the tensors that read the group."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_coreset.methods.selection import Selection
from lightning_coreset.structure import ChannelGroup
from lightning_coreset.surgery import scale_dims_


def reweighted_consumers(
    group: ChannelGroup, selection: Selection, tensors: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """New contents of whole tensors by name, whether the selection has them as ``updates`` or as ``weights``."""
    if selection.weights is None:
        return selection.updates
    factors = selection.factors(group.size)
    scaled: dict[str, Tensor] = {}
    for member in group.by_role("consumer"):
        tensor = scaled.setdefault(member.name, tensors[member.name].detach().clone())
        scale_dims_(tensor, {member.dim: member.at_positions(factors, tensor.shape[member.dim])})
    return scaled
