"""Views: which dimensions of a tensor become which, and what that does to labels that are not written out."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_coreset.structure.labels import ChannelLabels


def reshape_labels(labels: Tensor, old: torch.Size, new: torch.Size) -> Tensor:
    """Compressed labels in a new shape; only runs of dimensions in which they vary are written out."""
    written: list[int] = []
    shape: list[int] = []
    for before, after in dimension_runs(old, new):
        varies = any(labels.shape[dim] > 1 for dim in before)
        written += [old[dim] if varies else 1 for dim in before]
        shape += [new[dim] if varies else 1 for dim in after]
    return labels.expand(written).reshape(shape)


def dimension_runs(old: torch.Size, new: torch.Size) -> list[tuple[range, range]]:
    """The shortest runs of dimensions that a view turns into one another, as in (2, 12, 197, 64) -> (24, 197, 64)."""
    runs = []
    i = j = 0
    while i < len(old) and j < len(new):
        first, other = i, j
        before, after = old[i], new[j]
        i, j = i + 1, j + 1
        while before != after:
            if before < after:
                before, i = before * old[i], i + 1
            else:
                after, j = after * new[j], j + 1
        runs.append((range(first, i), range(other, j)))
    return [*runs, (range(i, len(old)), range(j, len(new)))]  # dimensions of size 1


def splits_heads(source: Tensor, before: ChannelLabels, result: Tensor, after: ChannelLabels) -> bool:
    """Whether a view split channels into (heads, positions), or wrote a 1 for the heads, and only positions can go."""
    if result.dim() <= source.dim() or len(before.dims) != 1 or len(after.dims) != 1 or after.dims[0] == 0:
        return False
    (old,), (new,) = before.dims, after.dims
    # A 1 in front of everything is a batch of one sample, not the number of heads.
    size = source.shape[old]
    alone = old > 0 and result.shape[new] == size and result.shape[new - 1] == 1 != source.shape[old - 1]
    # By the view itself: sizes may agree by chance, as where there are as many tokens as positions in a head.
    split = (range(old, old + 1), range(new - 1, new + 1)) in dimension_runs(source.shape, result.shape)
    # Heads that were only merged with the batch repeat their labels; channels of several heads have their own.
    return alone or (split and len(before.labels.unique()) > result.shape[new])
