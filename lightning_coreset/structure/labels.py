"""Axes: the label tensors that ride along with an activation or a weight.

An axis says, for every element of a tensor, which atom it belongs to. It is stored compressed: size 1 along every
dimension in which it does not vary. A weight of a Linear has two axes, its rows and its columns; an activation usually
one, its channels. The axes of one tensor vary along different dimensions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from lightning_coreset.structure.records import Step
from lightning_coreset.structure.union_find import ChannelUnionFind


@dataclass(eq=False)
class ChannelLabels:
    """Labels of one kind on a tensor.

    Attributes:
        labels: int64, as many dimensions as the tensor, size 1 where the labels do not vary.
        sources: The ``(parameter name, dimension)`` pairs whose atoms these labels are.
        made: Whether a layer made what is labelled; a parameter or buffer by itself is not.
        lone: Whether a view put them beside a dimension of size 1, as the channels of a single attention head.
        settled: The version of the atoms by which the labels are known to vary along all dimensions that they are
            written out for; -1 if unknown.
    """

    labels: Tensor
    sources: frozenset[tuple[str, int]] = frozenset()
    from_layer: bool = False
    single_head: bool = False
    compressed_at: int = -1

    @cached_property
    def dims(self) -> tuple[int, ...]:
        """The dimensions along which the labels vary."""
        return tuple([dim for dim, size in enumerate(self.labels.shape) if size > 1])

    @cached_property
    def ends(self) -> tuple[int, int]:
        """The first and the last label."""
        labels = self.labels.reshape(-1)
        return int(labels[0]), int(labels[-1])

    @cached_property
    def flat(self) -> Tensor:
        """All labels in one dimension."""
        return self.labels.reshape(-1)

    def with_labels(self, labels: Tensor) -> ChannelLabels:
        """The axis with other labels, which it may have anyway."""
        return self if labels is self.labels else ChannelLabels(labels, self.sources, self.from_layer, self.single_head)

    def moved(self, labels: Tensor) -> ChannelLabels:
        """The axis with its labels in another order of dimensions."""
        return ChannelLabels(labels, self.sources, self.from_layer, self.single_head, self.compressed_at)


@dataclass(frozen=True, eq=False)
class TensorInfo:
    """What is known of a tensor.

    Attributes:
        axes: Its label tensors.
        constant: Whether it is made of parameters and buffers alone, as a weight is.
        direct: The parameter whose values it holds unchanged, however moved, if it does.
        trails: For every producer that reaches it, the steps since.
    """

    channel_labels: tuple[ChannelLabels, ...] = ()
    constant: bool = False
    direct: str | None = None
    producer_paths: dict[str, tuple[Step, ...]] = field(default_factory=dict)

    def with_channel_labels(self, axes: tuple[ChannelLabels, ...]) -> TensorInfo:
        """The same with other axes."""
        return TensorInfo(axes, self.constant, self.direct, self.producer_paths)

    def along(self, dim: int) -> ChannelLabels | None:
        """The axis that varies along ``dim``."""
        return next((axis for axis in self.channel_labels if axis.labels.shape[dim] > 1), None)


UNLABELLED = TensorInfo()


def compress(axis: ChannelLabels, atoms: ChannelUnionFind) -> ChannelLabels:
    """Drop the dimensions along which all labels are of one class."""
    if axis.compressed_at == atoms.version:
        return axis
    narrowed = axis if _surely_varies(axis, atoms) else axis.with_labels(_varying(axis.labels, atoms))
    narrowed.compressed_at = atoms.version
    return narrowed


def _surely_varies(axis: ChannelLabels, atoms: ChannelUnionFind) -> bool:
    """Whether one look tells that the labels vary along the one dimension that they are written out for."""
    if len(axis.dims) != 1 or axis.labels.stride(axis.dims[0]) == 0 or not axis.labels.numel():
        return False
    return atoms.distinct(axis.labels) or atoms.apart(*axis.ends)


def _varying(labels: Tensor, atoms: ChannelUnionFind) -> Tensor:
    narrow = _unexpanded(labels)
    narrow = _narrowed(narrow, atoms.roots(narrow))
    # A narrowed view would keep the labels of the whole activation alive.
    return narrow.clone() if narrow.untyped_storage().nbytes() > narrow.nbytes else narrow


def _unexpanded(labels: Tensor) -> Tensor:
    """Size 1 along every dimension in which labels were only expanded."""
    for dim, (size, stride) in enumerate(zip(labels.shape, labels.stride(), strict=True)):
        if size > 1 and stride == 0:
            labels = labels.narrow(dim, 0, 1)
    return labels


def _narrowed(labels: Tensor, keys: Tensor) -> Tensor:
    """Size 1 along every dimension in which ``keys`` do not vary."""
    for dim, size in enumerate(labels.shape):
        if size > 1:
            first = keys.narrow(dim, 0, 1)
            if bool((keys == first).all()):
                labels, keys = labels.narrow(dim, 0, 1), first
    return labels


def drop_uniform_dims(axes: Iterable[ChannelLabels], atoms: ChannelUnionFind) -> tuple[ChannelLabels, ...]:
    """Compress and drop the axes that do not vary any more."""
    return tuple([axis for axis in [compress(axis, atoms) for axis in axes] if axis.dims])


def unite_along(axis: ChannelLabels, dims: Iterable[int], atoms: ChannelUnionFind, reason: str) -> ChannelLabels:
    """Forbid that single indices along ``dims`` go: all labels along them become one class."""
    labels = axis.labels
    for dim in dims:
        if labels.shape[dim] > 1:
            first = labels.narrow(dim, 0, 1)
            atoms.unite(first.expand_as(labels), labels, reason)
            labels = first
    return axis.with_labels(labels)


def pin_dims(axis: ChannelLabels, dims: Collection[int], atoms: ChannelUnionFind, reason: str) -> ChannelLabels | None:
    """Forbid that single indices along ``dims`` go, and block the axis if nothing else is left that could.

    Returns what remains: the axis over its other dimensions, or ``None``.
    """
    if all(dim in dims for dim in axis.dims):
        atoms.block(axis.labels, reason)
        return None
    return unite_along(axis, [dim for dim in axis.dims if dim in dims], atoms, reason)


def pin_all(axes: Iterable[ChannelLabels], dims: Set[int], atoms: ChannelUnionFind, reason: str) -> list[ChannelLabels]:
    """What remains of all axes of a tensor."""
    left = [axis if dims.isdisjoint(axis.dims) else pin_dims(axis, dims, atoms, reason) for axis in axes]
    return [axis for axis in left if axis is not None]


def labels_along(axis: ChannelLabels | None, dim: int, size: int, atoms: ChannelUnionFind, reason: str) -> Tensor:
    """The labels along one dimension, shape ``(size,)``, zeros without an axis; its other dimensions are pinned."""
    if axis is None:
        return torch.zeros(size, dtype=torch.int64)
    if axis.dims == (dim,):
        return axis.flat
    others = [other for other in axis.dims if other != dim]
    return unite_along(axis, others, atoms, reason).flat.expand(size)


def merge(first: ChannelLabels, second: ChannelLabels, atoms: ChannelUnionFind, reason: str) -> ChannelLabels:
    """One axis for two that lie on the same elements; the labels are united element by element.

    A grid that meets a vector of parameters, as (heads, positions) meet rotary frequencies, could give up columns with
    the vector or whole rows; networks are written for the second, so the vector is blocked and the columns with it.
    """
    for grid, bare in ((first, second), (second, first)):
        if grid.from_layer and not bare.from_layer and set(bare.dims) < set(grid.dims):
            atoms.block(bare.labels, reason)
            return unite_along(grid, bare.dims, atoms, reason)
    if first.labels is second.labels and second.sources <= first.sources:
        return first
    one, other = torch.broadcast_tensors(first.labels, second.labels)
    atoms.unite(one, other, reason)
    none_fixed = first.dims == second.dims and atoms.whole(first.labels) is not None
    return ChannelLabels(
        first.labels if none_fixed else torch.where(one != 0, one, other),
        first.sources | second.sources,
        first.from_layer or second.from_layer,
        first.single_head or second.single_head,
    )


def join(
    operands: Sequence[tuple[set[int], Sequence[ChannelLabels]]],
    ndim: int,
    atoms: ChannelUnionFind,
    reason: str,
    *,
    apart: int | None = None,
) -> tuple[ChannelLabels, ...]:
    """The axes of tensors that are laid over each other, as in an element-wise operation.

    Args:
        operands: For each operand the dimensions of the result in which it has elements of its own, and its axes;
            shapes broadcast from the right, as in torch.
        ndim: Dimensions of the result.
        atoms: The union-find.
        reason: What to report if labels meet fixed elements.
        apart: A dimension along which the operands lie side by side instead; axes along it are left out.

    Axes that vary along a common dimension are united. An operand that varies along such a dimension without labels
    there (a constant of the channels' length) cannot be sliced, and pins it.
    """
    aligned = [[axis.with_labels(_align(axis.labels, ndim)) for axis in axes if axis.dims] for _, axes in operands]
    merged: list[ChannelLabels] = []
    for axis in (axis for axes in aligned for axis in axes if apart is None or axis.labels.shape[apart] == 1):
        merged = add(merged, axis, atoms, reason)
    for (varying, _), own in zip(operands, aligned, strict=True):
        unlabelled = varying.difference([apart], *(axis.dims for axis in own))
        if unlabelled:
            merged = pin_all(merged, unlabelled, atoms, reason)
    return drop_uniform_dims(merged, atoms)


def add(
    axes: Sequence[ChannelLabels], axis: ChannelLabels, atoms: ChannelUnionFind, reason: str
) -> list[ChannelLabels]:
    """One axis more, united with those that vary along a common dimension."""
    overlapping = [other for other in axes if set(other.dims) & set(axis.dims)]
    for other in overlapping:
        axis = merge(other, axis, atoms, reason)
    return [*(other for other in axes if other not in overlapping), axis]


def _align(labels: Tensor, ndim: int) -> Tensor:
    return labels if labels.dim() == ndim else labels.reshape((1,) * (ndim - labels.dim()) + tuple(labels.shape))


def varying(tensor: Tensor, ndim: int) -> set[int]:
    """The dimensions of a result of ``ndim`` dimensions in which an operand has elements of its own.

    An expanded dimension has none.
    """
    shift = ndim - tensor.dim()
    strides = tensor.stride()
    return {dim + shift for dim, size in enumerate(tensor.shape) if size > 1 and strides[dim] != 0}
