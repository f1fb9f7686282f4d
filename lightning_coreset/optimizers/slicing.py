"""Slice one tensor that an optimizer keeps of a parameter, as the parameter was sliced."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_coreset.plan import ParameterChange


def is_elementwise(shape: Sequence[int], parameter: Sequence[int]) -> bool:
    """Whether a tensor can have a number for each element of a parameter, or for each along some of its dimensions.

    Args:
        shape: The tensor's: for every dimension the parameter's size, or 1 where one number stands for all; or one
            dimension with all elements of the parameter.
        parameter: The parameter's.
    """
    if math.prod(shape) == 1 or is_flattened(shape, parameter):
        return True
    return len(shape) == len(parameter) and all(
        size in (whole, 1) for size, whole in zip(shape, parameter, strict=True)
    )


def is_flattened(shape: Sequence[int], parameter: Sequence[int]) -> bool:
    """Whether a tensor of this shape has all elements of a parameter in one dimension."""
    return len(parameter) > 1 and len(shape) == 1 and shape[0] == math.prod(parameter)


def slice_tensor(value: Tensor, parameter: Tensor, change: ParameterChange) -> Tensor | None:
    """Slice a tensor; ``None`` if it cannot be done, or not be verified.

    Args:
        value: The tensor. It is not changed.
        parameter: The parameter, which has its new shape already.
        change: The change of the parameter.
    """
    if is_elementwise(value.shape, change.new_shape) and not is_elementwise(value.shape, change.old_shape):
        return value  # has been sliced, by the user in `on_prune`
    if not is_elementwise(value.shape, change.old_shape):
        return None
    if value.numel() == 1 or not change.kept:
        return value
    with torch.no_grad():
        if type(value) is not Tensor:
            return _slice_subclass(value, change)
        if is_flattened(value.shape, change.old_shape):
            return _index(value.reshape(change.old_shape), change.kept).flatten()
        sliced = _index(value, change.kept)
        if sliced is value or sliced.shape != parameter.shape:
            return sliced
        # In the parameter's memory format, as the optimizer would have made it: fused kernels read both by one index.
        return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(sliced)


def _index(value: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    sliced = value
    for dim, positions in kept.items():
        if value.shape[dim] > 1:  # else one number stands for all
            sliced = sliced.index_select(dim, positions.to(value.device))
    return sliced


def _slice_subclass(value: Tensor, change: ParameterChange) -> Tensor | None:
    """Slice a tensor of another class, such as quantized state, if that gives the same numbers in the same class."""
    try:
        sliced = _index(value, change.kept)
        if type(sliced) is not type(value):
            return None
        expected = _index(_plain(value), change.kept)
        return sliced if torch.equal(_plain(sliced), expected) else None
    except Exception:  # whatever such a class raises for operations that it does not have
        return None


def _plain(value: Tensor) -> Tensor:
    """The numbers of a tensor of another class."""
    return torch.empty(value.shape, dtype=torch.float64, device=value.device).copy_(value)
