"""Labels of several tensors on the same elements: which of them become one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_coreset.structure.labels import ChannelLabels, drop_uniform_dims, pin_all, unite_along
from lightning_coreset.structure.union_find import ChannelUnionFind


def merge(first: ChannelLabels, second: ChannelLabels, union_find: ChannelUnionFind, reason: str) -> ChannelLabels:
    """One axis for two that lie on the same elements; the labels are united element by element.

    A grid that meets a vector of parameters, as (heads, positions) meet rotary frequencies, could give up columns with
    the vector or whole rows. Where whole heads may go, the vector is blocked and the columns with it.
    """
    for grid, bare in ((first, second), (second, first)):
        if not union_find.within_heads and grid.from_layer and not bare.from_layer and set(bare.dims) < set(grid.dims):
            union_find.block(bare.labels, reason)
            return unite_along(grid, bare.dims, union_find, reason)
    if first.labels is second.labels and second.sources <= first.sources:
        return first
    one, other = torch.broadcast_tensors(first.labels, second.labels)
    union_find.unite(one, other, reason)
    none_fixed = first.dims == second.dims and union_find.whole(first.labels) is not None
    return ChannelLabels(
        first.labels if none_fixed else torch.where(one != 0, one, other),
        first.sources | second.sources,
        first.from_layer or second.from_layer,
        first.single_head or second.single_head,
    )


def join(
    operands: Sequence[tuple[set[int], Sequence[ChannelLabels]]],
    ndim: int,
    union_find: ChannelUnionFind,
    reason: str,
    *,
    apart: int | None = None,
) -> tuple[ChannelLabels, ...]:
    """The axes of tensors that are laid over each other, as in an element-wise operation.

    Args:
        operands: For each operand the dimensions of the result in which it has elements of its own, and its axes;
            shapes broadcast from the right, as in torch.
        ndim: Dimensions of the result.
        union_find: The union-find.
        reason: What to report if labels meet fixed elements.
        apart: A dimension along which the operands lie side by side instead; axes along it are left out.

    Axes that vary along a common dimension are united. An operand that varies along such a dimension without labels
    there (a constant of the channels' length) cannot be sliced, and pins it.
    """
    aligned = [[axis.with_labels(_align(axis.labels, ndim)) for axis in axes if axis.dims] for _, axes in operands]
    merged: list[ChannelLabels] = []
    for axis in (axis for axes in aligned for axis in axes if apart is None or axis.labels.shape[apart] == 1):
        merged = add(merged, axis, union_find, reason)
    for (varying, _), own in zip(operands, aligned, strict=True):
        unlabelled = varying.difference([apart], *(axis.dims for axis in own))
        if unlabelled:
            merged = pin_all(merged, unlabelled, union_find, reason)
    return drop_uniform_dims(merged, union_find)


def add(
    axes: Sequence[ChannelLabels], axis: ChannelLabels, union_find: ChannelUnionFind, reason: str
) -> list[ChannelLabels]:
    """One axis more, united with those that vary along a common dimension."""
    if union_find.within_heads:
        axes = [other for other in axes if not _block_heads(other, axis, union_find)]
        if any(_block_heads(axis, other, union_find) for other in axes):
            return list(axes)
        overlapping = [other for other in axes if set(other.dims) & set(axis.dims) and not _differ(other, axis)]
    else:
        overlapping = [other for other in axes if set(other.dims) & set(axis.dims)]
    for other in overlapping:
        axis = merge(other, axis, union_find, reason)
    return [*(other for other in axes if other not in overlapping), axis]


def _block_heads(heads: ChannelLabels, grid: ChannelLabels, union_find: ChannelUnionFind) -> bool:
    """Whether labels number heads whose dimensions may go: then the heads stay."""
    number = bool(heads.dims) and set(heads.dims) <= set(grid.dims[:-1])
    if number:
        union_find.block(heads.labels, "is an attention head, where dimensions within heads may go")
    return number


def _differ(first: ChannelLabels, second: ChannelLabels) -> bool:
    """Whether two axes are of the same heads, and lie along different dimensions within them."""
    return bool(first.dims[:-1]) and first.dims[:-1] == second.dims[:-1] and first.dims[-1] != second.dims[-1]


def _align(labels: Tensor, ndim: int) -> Tensor:
    return labels if labels.dim() == ndim else labels.reshape((1,) * (ndim - labels.dim()) + tuple(labels.shape))


def varying(tensor: Tensor, ndim: int) -> set[int]:
    """The dimensions of a result of ``ndim`` dimensions in which an operand has elements of its own.

    An expanded dimension has none.
    """
    shift = ndim - tensor.dim()
    strides = tensor.stride()
    return {dim + shift for dim, size in enumerate(tensor.shape) if size > 1 and strides[dim] != 0}
