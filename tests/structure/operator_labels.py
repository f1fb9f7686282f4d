"""Ways to label the inputs of an operator, as the layers of a network would have labelled them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_coreset.structure.labels import ChannelLabels, TensorInfo
from lightning_coreset.structure.propagation import Propagation
from lightning_coreset.structure.union_find import FIXED, ChannelUnionFind


@dataclass(frozen=True, eq=False)
class Axis:
    """Labels of one kind on a tensor.

    Attributes:
        name: Whose channels these are: a made-up parameter, and the dimension of it that makes them.
        dims: The dimensions along which they lie; several are a grid, as of heads and what is within them.
        channels: The channel of each position, of the shape of ``dims``; -1 where there is none.
        count: How many channels there are.
    """

    name: tuple[str, int]
    dims: tuple[int, ...]
    channels: Tensor
    count: int

    def labels(self, ndim: int, union_find: ChannelUnionFind) -> Tensor:
        """As the engine writes them, of ``ndim`` dimensions."""
        first = union_find.ranges[self.name].start if self.name in union_find.ranges else None
        whole = (
            torch.arange(first, first + self.count)
            if first is not None
            else union_find.allocate(*self.name, self.count)
        )
        plain = torch.equal(self.channels, torch.arange(self.count))
        labels = whole if plain else torch.cat([whole, torch.full((1,), FIXED)])[self.channels]  # -1 is the last
        shape = [1] * ndim
        for dim, size in zip(self.dims, self.channels.shape, strict=True):
            shape[dim] = size
        return labels.reshape(shape)

    def gone(self, removed: Tensor, shape: torch.Size) -> Tensor:
        """Which elements of a tensor go with removed channels (a mask of all), bool of ``shape``."""
        own = torch.cat([removed, removed.new_zeros(1)])[self.channels]  # -1 is the last one
        sizes = [1] * len(shape)
        for dim, size in zip(self.dims, own.shape, strict=True):
            sizes[dim] = size
        return own.reshape(sizes).expand(shape)


@dataclass(frozen=True, eq=False)
class Labelling:
    """How the tensors among the inputs are labelled, by their numbers.

    Attributes:
        kind: What sort of labelling it is.
        axes: The labels of each tensor.
        constant: Whether the tensors are weights, rather than made by layers.
    """

    kind: str
    axes: dict[int, list[Axis]]
    constant: bool

    def apply(self, engine: Propagation, tensors: Sequence[Tensor]) -> None:
        """Tell an engine."""
        engine.union_find.reserve(sum(axis.count for axes in self.axes.values() for axis in axes))
        for number, axes in self.axes.items():
            tensor = tensors[number]
            labels = [
                ChannelLabels(
                    one.labels(tensor.dim(), engine.union_find), frozenset({one.name}), from_layer=not self.constant
                )
                for one in axes
            ]
            direct = axes[0].name[0] if self.constant and axes else None
            engine._known[tensor] = TensorInfo(tuple(labels), constant=self.constant, direct=direct)
            engine.grids += [one for one in labels if len(one.dims) > 1]

    def __str__(self) -> str:
        return f"{self.kind}{' weights' if self.constant else ''} " + ", ".join(
            f"{number}: {[axis.dims for axis in axes]}" for number, axes in self.axes.items()
        )


def labellings(tensors: Sequence[Tensor]) -> Iterator[Labelling]:
    """All ways to label some tensors that may show something of their own."""
    dims = {
        number: own
        for number, tensor in enumerate(tensors)
        if tensor.numel() and (own := [dim for dim, size in enumerate(tensor.shape) if size > 1])
    }
    single = [(number, dim) for number, own in dims.items() for dim in own]
    for number, dim in single:
        yield Labelling("one", {number: [_each(number, dim, tensors[number])]}, False)
    for number, dim in single:
        if tensors[number].shape[dim] > 2:
            yield Labelling("pairs", {number: [_shared(number, dim, tensors[number])]}, False)
            yield Labelling("partly", {number: [_partly(number, dim, tensors[number])]}, False)
    for number, own in dims.items():
        for first in own:
            for second in own:
                if first < second:
                    yield Labelling("grid", {number: [_grid(number, (first, second), tensors[number])]}, False)
    whole = {number: [_each(number, dim, tensors[number]) for dim in own] for number, own in dims.items()}
    if len(single) > 1:
        yield Labelling("all", whole, False)
    if single:
        yield Labelling("all", whole, True)
    yield from _alike(tensors, dims)


def _alike(tensors: Sequence[Tensor], dims: dict[int, list[int]]) -> Iterator[Labelling]:
    """Several inputs with the same channels: those of one size, in one place or in any."""
    seen: set[tuple[tuple[int, int], ...]] = set()
    single = [(number, dim) for number, own in dims.items() for dim in own]
    for number, dim in single:
        size = tensors[number].shape[dim]
        same = [(other, d) for other, d in single if tensors[other].shape[d] == size]
        places = {
            "alike from the right": [
                one for one in same if one[1] - tensors[one[0]].dim() == dim - tensors[number].dim()
            ],
            "alike from the left": [one for one in same if one[1] == dim],
            "alike by size": same,
        }
        for kind, group in places.items():
            if len({number for number, _ in group}) < 2 or tuple(group) in seen:
                continue
            seen.add(tuple(group))
            axes: dict[int, list[Axis]] = {}
            for other, d in group:
                axes.setdefault(other, []).append(Axis(("shared.weight", 0), (d,), torch.arange(size), size))
            if all(len(own) == 1 for own in axes.values()):
                yield Labelling(kind, axes, False)


def _each(number: int, dim: int, tensor: Tensor) -> Axis:
    size = tensor.shape[dim]
    return Axis((f"input{number}.weight", dim), (dim,), torch.arange(size), size)


def _shared(number: int, dim: int, tensor: Tensor) -> Axis:
    """Positions that belong to one channel: the first and the last of them, as after a repetition."""
    size = tensor.shape[dim]
    count = (size + 1) // 2
    return Axis((f"input{number}.weight", dim), (dim,), torch.arange(size) % count, count)


def _partly(number: int, dim: int, tensor: Tensor) -> Axis:
    """The first position belongs to none, as after a concatenation with an input."""
    size = tensor.shape[dim]
    return Axis((f"input{number}.weight", dim), (dim,), torch.arange(size) - 1, size - 1)


def _grid(number: int, dims: tuple[int, int], tensor: Tensor) -> Axis:
    sizes = [tensor.shape[dim] for dim in dims]
    count = sizes[0] * sizes[1]
    return Axis((f"input{number}.weight", dims[0]), dims, torch.arange(count).reshape(sizes), count)
