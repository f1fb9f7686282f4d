"""Parts of tensors along several dimensions, in the memory format of the whole."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def index_dims(tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    """Copy the kept positions along each dimension, in the memory format of ``tensor``."""
    result = tensor.detach()
    kept = {dim: positions.to(tensor.device) for dim, positions in kept.items()}
    if not kept:
        result = result.clone()
    elif len(kept) == 2 and 0 in kept and not tensor.is_cuda:
        result = _index_rows_and_dim(result, *(kept[dim] for dim in sorted(kept)), dim=max(kept))
    else:
        for dim, positions in kept.items():
            result = result.index_select(dim, positions)
    return match_memory_format(result, tensor)


_CHUNK = 1 << 17
"""Elements of the intermediate result at a time: they stay in a core's cache, and their memory is reused."""


def _index_rows_and_dim(tensor: Tensor, rows: Tensor, positions: Tensor, *, dim: int) -> Tensor:
    """The kept rows, and of them the kept positions along another dimension, in chunks of rows.

    Without chunks the intermediate result is about twice as large as the final one, and allocating it dominates.
    """
    shape = list(tensor.shape)
    shape[0], shape[dim] = len(rows), len(positions)
    result = tensor.new_empty(shape)
    rows_at_a_time = max(_CHUNK // max(tensor[0].numel(), 1), 1)
    for chunk, into in zip(rows.split(rows_at_a_time), result.split(rows_at_a_time), strict=True):
        torch.index_select(tensor.index_select(0, chunk), dim, positions, out=into)
    return result


def scale_dims_(tensor: Tensor, factors: Mapping[int, Tensor]) -> Tensor:
    """Multiply a tensor in place: along each of these dimensions, every position by its factor."""
    for dim, along in factors.items():
        shape = [1] * tensor.dim()
        shape[dim] = -1
        tensor.mul_(along.reshape(shape).to(tensor.device, tensor.dtype))
    return tensor


def match_memory_format(new: Tensor, like: Tensor) -> Tensor:
    """The same values in the memory format of another tensor."""
    for memory_format, ndim in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if like.dim() == ndim and like.is_contiguous(memory_format=memory_format) and not like.is_contiguous():
            return new.contiguous(memory_format=memory_format)
    return new
