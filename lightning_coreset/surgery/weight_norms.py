"""Weights that ``weight_norm`` makes: the weight itself, and its two parts when it is cut or written anew.

The weight is ``g * v / |v|``, where the norm runs over all dimensions but the one along which the magnitude g lies.
Cutting the direction v changes its norm, so that g is multiplied by the quotient of the norms after and before: then
what is left of the weight is exactly what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from lightning_coreset.followers import follow
from lightning_coreset.indexing import index_dims
from lightning_coreset.plan import ParameterChange
from lightning_coreset.surgery.slicing import new_value

if TYPE_CHECKING:
    from lightning_coreset.structure import WeightNorm


def made_weights(tensors: Mapping[str, Tensor], norms: Iterable[WeightNorm]) -> dict[str, Tensor]:
    """Tensors by name, in which weights stand under the names of their directions."""
    weights = {
        norm.direction: _scale(tensors[norm.magnitude], tensors[norm.direction], norm.dim) * tensors[norm.direction]
        for norm in norms
    }
    return {**tensors, **{name: weight.detach().to(tensors[name].dtype) for name, weight in weights.items()}}


Cut: TypeAlias = Callable[[ParameterChange, Tensor], Tensor]
"""Makes of a tensor what a change leaves of it, in new memory."""


def new_values(changes: Sequence[ParameterChange], tensors: Mapping[str, Tensor], cut: Cut = new_value) -> list[Tensor]:
    """The tensors after changes, in new memory.

    Magnitudes follow the norms of their directions, and tensors of copies follow what they are copies of.

    Args:
        changes: The changes.
        tensors: The tensors as they are, by name.
        cut: Makes each of the tensors.
    """
    by_name = {change.name: change for change in changes}
    values = {change.name: cut(change, tensors[change.name]) for change in changes if change.follows not in by_name}
    for change in changes:
        direction = change.norm_of
        if direction in by_name:
            new, kept_of = values[direction], by_name[direction].kept
            along = {dim: kept for dim, kept in kept_of.items() if dim == change.norm_dim}
            before = index_dims(norm_except(tensors[direction], change.norm_dim), along)
            after = norm_except(new, change.norm_dim)
            ratio = (after / before).nan_to_num(nan=1.0, posinf=1.0).reshape(values[change.name].shape)
            values[change.name].copy_(values[change.name] * ratio)
            # A direction of nothing but zeros has no norm to be divided by; its magnitude is zero now.
            new.masked_fill_(after == 0, 1.0)
    for change in changes:
        if change.follows in by_name:
            original = by_name[change.follows]
            values[change.name] = follow(tensors[change.name], original, tensors[original.name], values[original.name])
    return [values[change.name] for change in changes]


def as_direction(weight: Tensor, kept: Mapping[int, Tensor], norm: WeightNorm, tensors: Mapping[str, Tensor]) -> Tensor:
    """The direction that gives a new weight, scaled as the present one is; the magnitude follows its norm.

    Args:
        weight: The wanted weight, cut already.
        kept: The positions at which it was cut.
        norm: How the weight is made.
        tensors: Magnitude and direction as they are.
    """
    direction = tensors[norm.direction]
    scale = _scale(tensors[norm.magnitude], direction, norm.dim).to(weight)
    scale = index_dims(scale, {dim: own for dim, own in kept.items() if dim == norm.dim})
    # Where the magnitude is zero, so is the weight, whatever its direction.
    return torch.where(scale == 0, index_dims(direction, kept).to(weight), weight / scale)


def norm_except(direction: Tensor, dim: int | None) -> Tensor:
    """The norms over all dimensions but one, which are left with size 1; in single precision at least."""
    dims = [other for other in range(direction.dim()) if other != dim]
    dtype = torch.promote_types(direction.dtype, torch.float32)
    return torch.linalg.vector_norm(direction.detach(), dim=dims, keepdim=True, dtype=dtype)


def _scale(magnitude: Tensor, direction: Tensor, dim: int | None) -> Tensor:
    """What the direction is multiplied by, in a shape that broadcasts to its own."""
    norms = norm_except(direction, dim)
    return magnitude.detach().reshape(norms.shape) / norms
