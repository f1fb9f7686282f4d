"""How many rows of what layers read are sampled: some for each unknown of the least squares."""

from __future__ import annotations

from math import prod

from torch import Tensor

from lightning_coreset.layers import GroupView

_LEAST_ROWS, _MOST_ROWS = 2048, 16384
_ROWS_PER_UNKNOWN = 3
NORM_ROWS = 8192
"""Of what a BatchNorm makes."""


def rows_to_sample(view: GroupView) -> dict[str, tuple[int, int]]:
    """The weights that read a group, with the dimension and how many rows to sample."""
    members = view.group.by_role("consumer")
    return {member.name: rows_of_weight(view.tensors[member.name], member.dim) for member in members if member.dim < 2}


def rows_of_weight(weight: Tensor, dim: int) -> tuple[int, int]:
    """The dimension that is contracted, and how many rows to sample of what is contracted with it."""
    unknowns = weight.shape[dim] * prod(weight.shape[2:])
    return dim, min(max(_ROWS_PER_UNKNOWN * unknowns, _LEAST_ROWS), _MOST_ROWS)
