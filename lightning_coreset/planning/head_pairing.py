"""Which dimensions of different attention heads go together: the best of each, the second best, and so on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_coreset.layers import GroupView, PlanState
from lightning_coreset.methods import Method
from lightning_coreset.structure import ChannelGroup, paired, single_dimensions


def paired_by_rank(group: ChannelGroup, method: Method, tensors: Mapping[str, Tensor], seed: int) -> ChannelGroup:
    """A group of dimensions within heads, in which every class has dimensions of the same rank in their heads.

    So each head keeps the dimensions that matter most in it, and all keep as many. Ranks are those of the method, or of
    the norms of the weights if it has none.
    """
    within = group.pairing
    if within is None or within.blocks == 1:
        return group
    view = GroupView(single_dimensions(group), tensors, PlanState(torch.Generator().manual_seed(seed)))
    scores = method.scores(view) if method.ranks_channels else view.producer_norms() * view.consumer_norms()
    order = scores.reshape(group.size, within.blocks).argsort(dim=0, descending=True, stable=True)
    return paired(group, order.T)
