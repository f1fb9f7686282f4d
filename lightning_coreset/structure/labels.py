"""Channel labels: tensors of labels that ride along with an activation or a weight.

They say, for every element of a tensor, which index of which parameter it belongs to. They are stored compressed: size
1 along every dimension in which they do not vary. A weight of a Linear has two kinds, of its rows and of its columns;
an activation usually one, of its channels. Each kind is called an axis here; those of one tensor vary along different
dimensions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Set
from dataclasses import dataclass, field, replace
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
        sources: The ``(parameter name, dimension)`` pairs whose labels these are.
        from_layer: Whether a layer made what is labelled; a parameter or buffer by itself is not.
        single_head: Whether a view put them beside a dimension of size 1, as the channels of a single attention head.
        compressed_at: The version of the union-find by which the labels are known to vary along all dimensions for
            which they are written out; -1 if unknown.
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
class Statistic:
    """A value made of channels that holds them only if it is used: a mean or a norm over them, or one of them.

    Attributes:
        labels: The labels of the channels, in one dimension.
        reason: What to report if the channels may not go because of it.
        normalizes: Whether it may meet the channels again, as the mean of a normalisation does.
        sums: Whether it is a sum, which the network may divide by a number of channels that it keeps.
        penalty: Whether it is made of parameters alone, so that it may reach an output as a single number.
        zero_free: Whether it is a norm of parameters, to which those that are zero add nothing.
        of_weights: Whether it is a mean, a variance or a norm of parameters, by which they may be standardised.
        met: Whether they have been: what it is taken over has met it.
        joins_loss: Whether it is made of activations and has only met numbers since, so that it may be added to a loss.
    """

    labels: Tensor
    reason: str
    normalizes: bool = True
    sums: bool = False
    penalty: bool = False
    joins_loss: bool = False
    zero_free: bool = False
    of_weights: bool = False
    met: bool = False


@dataclass(frozen=True, eq=False)
class TensorInfo:
    """What is known of a tensor.

    Attributes:
        channel_labels: Its label tensors.
        constant: Whether it is made of parameters and buffers alone, as a weight is.
        direct: The parameter whose values it holds unchanged, however moved, if it does.
        producer_paths: For every producer that reaches it, the steps since.
        statistics: The statistics over channels that its values are made of.
        update: Whether it is made of derivatives with respect to parameters: a parameter that it is added to still
            counts as this parameter, as in the inner loop of meta-learning.
        uniform: Whether all of its elements are equal, as those of ``torch.zeros(batch, width)``: it has no channels of
            its own, and takes those of what it meets.
        equal_along: The dimensions along which it is equal because such a tensor was, that met others along others.
        met: The labels that it has met where its elements are equal, by their dimensions counted from the last one. All
            that element-wise operations make of a uniform tensor share them: they have its size, and what two of them
            meet must keep one size.
        vanishes: Whether it is made of parameters, and zero wherever they are.
        factor: What is known of the parameter that it is a product with, element by element: summed over channels, the
            product reads them as a layer does. Its labels have the tensor's dimensions.
    """

    channel_labels: tuple[ChannelLabels, ...] = ()
    constant: bool = False
    direct: str | None = None
    producer_paths: dict[str, tuple[Step, ...]] = field(default_factory=dict)
    statistics: tuple[Statistic, ...] = ()
    update: bool = False
    uniform: bool = False
    equal_along: frozenset[int] = frozenset()
    met: dict[tuple[int, ...], ChannelLabels] = field(default_factory=dict)
    vanishes: bool = False
    factor: TensorInfo | None = None

    def with_channel_labels(self, axes: tuple[ChannelLabels, ...]) -> TensorInfo:
        """The same with other labels."""
        return replace(self, channel_labels=axes)

    def along(self, dim: int) -> ChannelLabels | None:
        """The axis that varies along ``dim``."""
        return next((axis for axis in self.channel_labels if axis.labels.shape[dim] > 1), None)


UNLABELLED = TensorInfo()


def compress(axis: ChannelLabels, union_find: ChannelUnionFind) -> ChannelLabels:
    """Drop the dimensions along which all labels are of one class."""
    if axis.compressed_at == union_find.version:
        return axis
    narrowed = axis if _surely_varies(axis, union_find) else axis.with_labels(_varying(axis.labels, union_find))
    narrowed.compressed_at = union_find.version
    return narrowed


def _surely_varies(axis: ChannelLabels, union_find: ChannelUnionFind) -> bool:
    """Whether the labels vary along the one dimension that they are written out for; without a search of them all."""
    if len(axis.dims) != 1 or axis.labels.stride(axis.dims[0]) == 0 or not axis.labels.numel():
        return False
    return union_find.distinct(axis.labels) or union_find.apart(*axis.ends)


def _varying(labels: Tensor, union_find: ChannelUnionFind) -> Tensor:
    narrow = _unexpanded(labels)
    narrow = _narrowed(narrow, union_find.roots(narrow))
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


def drop_uniform_dims(axes: Iterable[ChannelLabels], union_find: ChannelUnionFind) -> tuple[ChannelLabels, ...]:
    """Compress and drop the axes that do not vary any more."""
    return tuple([axis for axis in [compress(axis, union_find) for axis in axes] if axis.dims])


def unite_along(axis: ChannelLabels, dims: Iterable[int], union_find: ChannelUnionFind, reason: str) -> ChannelLabels:
    """Forbid that single indices along ``dims`` go: all labels along them become one class."""
    labels = axis.labels
    for dim in dims:
        if labels.shape[dim] > 1:
            first = labels.narrow(dim, 0, 1)
            union_find.unite(first.expand_as(labels), labels, reason)
            labels = first
    return axis.with_labels(labels)


def pin_dims(
    axis: ChannelLabels, dims: Collection[int], union_find: ChannelUnionFind, reason: str
) -> ChannelLabels | None:
    """Forbid that single indices along ``dims`` go, and block the axis if nothing else is left that could.

    Returns what remains: the axis over its other dimensions, or ``None``.
    """
    if all(dim in dims for dim in axis.dims):
        union_find.block(axis.labels, reason)
        return None
    return unite_along(axis, [dim for dim in axis.dims if dim in dims], union_find, reason)


def pin_all(
    axes: Iterable[ChannelLabels], dims: Set[int], union_find: ChannelUnionFind, reason: str
) -> list[ChannelLabels]:
    """What remains of all axes of a tensor."""
    left = [axis if dims.isdisjoint(axis.dims) else pin_dims(axis, dims, union_find, reason) for axis in axes]
    return [axis for axis in left if axis is not None]


def labels_along(axis: ChannelLabels | None, dim: int, size: int, union_find: ChannelUnionFind, reason: str) -> Tensor:
    """The labels along one dimension, shape ``(size,)``, zeros without an axis; its other dimensions are pinned."""
    if axis is None:
        return torch.zeros(size, dtype=torch.int64)
    if axis.dims == (dim,):
        return axis.flat
    others = [other for other in axis.dims if other != dim]
    return unite_along(axis, others, union_find, reason).flat.expand(size)
