"""Tensors that hold earlier or averaged values of a model's tensors, and have to change as these do.

Averaged copies, shadow weights, and the slow weights of some optimizers are of this kind. Momenta and other statistics
have the same shapes, but are no weights: they are only sliced (:func:`lightning_coreset.indexing.index_dims`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_coreset.indexing import index_dims, match_memory_format, scale_dims_

if TYPE_CHECKING:
    from lightning_coreset.plan import ParameterChange

_SAME_WEIGHTS = 0.5
"""The squared distance, relative to the sum of both squared norms, below which numbers are taken for the weights.

Unrelated numbers have 1 at every scale, equal ones 0. 0.5 is an angle of 60 degrees between vectors of equal length;
and a momentum, which is shorter than the weights by far, has nearly 1 even where weight decay turns it towards them.
"""


def hold_weights(pairs: Iterable[tuple[Tensor, Tensor]]) -> bool:
    """Whether tensors of one kind look like the weights, by all of them together.

    Args:
        pairs: Each tensor with the weights that it may hold, of the same shape. Tensors of integers do not count.

    Example:
        >>> weight = torch.randn(8, 5)
        >>> hold_weights([(weight + 0.1 * torch.randn(8, 5), weight)])
        True
        >>> hold_weights([(torch.rand(8, 5), weight)])
        False
    """
    return weight_distance(pairs) < _SAME_WEIGHTS  # False for NaN


def weight_distance(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The squared distance of tensors from the weights that they may hold, relative to the sum of both squared norms.

    0 for equal ones, 1 for unrelated ones, up to 2; NaN for nothing but zeros.

    Args:
        pairs: As for :func:`hold_weights`.
    """
    distance = size = 0.0
    for tensor, weights in pairs:
        if tensor.is_floating_point():
            ours = weights.detach().to(tensor.device)
            theirs = tensor.detach().to(torch.promote_types(tensor.dtype, ours.dtype))
            distance += _squared_norm(theirs - ours)
            size += _squared_norm(theirs) + _squared_norm(ours)
    return distance / size if size > 0 else math.nan


def follow(follower: Tensor, change: ParameterChange, old: Tensor, new: Tensor) -> Tensor:
    """The new value of a tensor that holds weights, when these change.

    It is multiplied by the same factors. Where the weights get new values, the difference to their slice is added to
    the follower's slice; a running variance is multiplied by the quotient instead, since it has to stay positive. A
    follower that equals the weights equals them afterwards.

    Args:
        follower: The tensor, of the weights' old shape, on any device and of any dtype. It is not changed.
        change: The change of the weights.
        old: The weights before.
        new: The weights afterwards.

    Returns:
        The new value, in new memory.

    Example:
        >>> from lightning_coreset.plan import ParameterChange
        >>> old, new, kept = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.5, 3.0]), {0: torch.tensor([0, 2])}
        >>> change = ParameterChange("weight", old_shape=(3,), new_shape=(2,), kept=kept, value=new)
        >>> follow(torch.tensor([1.0, 1.0, 2.0]), change, old, new)
        tensor([1.5000, 2.0000])
    """
    sliced = index_dims(follower, change.kept)
    if not follower.is_floating_point():
        return sliced
    if change.value is None and change.norm_of is None:
        return scale_dims_(sliced, change.factors)
    before, after = index_dims(old, change.kept).to(sliced), new.detach().to(sliced)
    # In this order a follower that equals the weights gets the same values: a - a is 0 and a / a is 1 without rounding.
    if change.name.endswith("running_var"):
        moved = after * (sliced / before).nan_to_num(nan=1.0, posinf=1.0)
    else:
        moved = after + (sliced - before)
    return match_memory_format(moved, follower)


def _squared_norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2
