"""The kinds of inputs that the package can make up: how each is recognised, and the law that it follows."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from lightning_coreset.probes.dead_leaves import dead_leaves
from lightning_coreset.probes.ids import with_ids
from lightning_coreset.probes.leaf import Leaf
from lightning_coreset.probes.pink_noise import pink_noise

_COLOURS = (1, 3, 4)
"""Channels of pictures, by which a last dimension is recognised as theirs."""
_COORDINATES = (2, 3)


def is_kept(leaf: Leaf) -> bool:
    """What says how other inputs are read, and is taken from the example.

    Masks, also additive ones and those of floating zeros and ones; whole numbers that enter no embedding, such as
    lengths, edges and targets, or that are called positions; adjacencies; floating numbers without a batch dimension,
    or one for each sample, such as a time. Floating numbers that enter a layer are none of these, except adjacencies.
    """
    value = leaf.value
    if value.layout is not torch.strided:
        return True
    if value.is_complex():
        return False
    if not value.is_floating_point():
        return not is_bytes(leaf) and (leaf.ids is None or _are_positions(leaf))
    if leaf.is_used_as("operator"):
        return True
    no_layer = leaf.reader is None and leaf.ids is None
    return no_layer and (not leaf.has_batch or value.dim() < 2 or _is_mask(value))


def is_ids(leaf: Leaf) -> bool:
    """Whole numbers that enter an embedding."""
    value = leaf.value
    return leaf.ids is not None and not value.is_floating_point() and not value.is_complex()


def is_bytes(leaf: Leaf) -> bool:
    """Pictures of bytes, which the network scales itself."""
    return leaf.value.dtype == torch.uint8 and leaf.reader is not None and leaf.value.dim() in (4, 5)


def is_points(leaf: Leaf) -> bool:
    """Sets of points: two or three coordinates that a convolution with a kernel of size 1 reads."""
    reader = leaf.reader
    if not _is_real(leaf) or reader is None or reader.kernel != (1,) or leaf.value.dim() != 3:
        return False
    return reader.dims[1] is not None and leaf.value.shape[reader.dims[1]] in _COORDINATES


def is_images(leaf: Leaf) -> bool:
    """Images, spectrograms as images, volumes and videos."""
    return _is_real(leaf) and len(_space_of(leaf)) in (2, 3) and not _is_single_place(leaf)


def is_series(leaf: Leaf) -> bool:
    """Series, sound, and sequences of features."""
    return _is_real(leaf) and len(_space_of(leaf)) == 1 and not _is_single_place(leaf)


def is_vectors(leaf: Leaf) -> bool:
    """Features without an order, such as the codes that generators start from."""
    return _is_real(leaf) and (leaf.value.dim() in (1, 2) or _is_single_place(leaf))


def repeated(leaf: Leaf, samples: int, generator: Generator) -> Tensor:
    """Copies of the example's samples, over and over; of all of it where it has no batch dimension."""
    value = leaf.value.detach()
    if not leaf.has_batch or samples == len(value):
        return value.clone()
    return value[torch.arange(samples, device=value.device) % len(value)]


def ids(leaf: Leaf, samples: int, generator: Generator) -> Tensor:
    """Uniform ids. Elements beside them that enter no embedding are those of the example."""
    return with_ids(repeated(leaf, samples, generator), leaf, generator)


def vectors(leaf: Leaf, samples: int, generator: Generator) -> Tensor:
    """Independent standard normal numbers, the law under which moments have a closed form.

    Columns that the network rounds and looks up in an embedding are uniform ids.
    """
    return with_ids(torch.randn(samples, *leaf.value.shape[1:], generator=generator), leaf, generator)


def images(leaf: Leaf, samples: int, generator: Generator) -> Tensor:
    """Dead leaves over all dimensions but those of the batch and of channels."""
    shape, channel = leaf.value.shape, _channel_of(leaf)
    size = [length for dim, length in enumerate(shape) if dim not in (0, channel)]
    made = dead_leaves(samples, 1 if channel is None else shape[channel], size, generator)
    return made.squeeze(1) if channel is None else made.movedim(1, channel)


def byte_images(leaf: Leaf, samples: int, generator: Generator) -> Tensor:
    """Dead leaves in bytes, with mean 128 and deviation 64."""
    return (128 + 64 * images(leaf, samples, generator)).round_().clamp_(0, 255)


def series(leaf: Leaf, samples: int, generator: Generator) -> Tensor:
    """1/f processes over time; all other dimensions are features, or ids where they enter an embedding."""
    shape = leaf.value.shape
    (time,) = _space_of(leaf)
    others = [length for dim, length in enumerate(shape) if dim not in (0, time)]
    made = pink_noise(samples, math.prod(others), shape[time], generator)
    return with_ids(made.view(samples, *others, shape[time]).movedim(-1, time), leaf, generator)


def _are_positions(leaf: Leaf) -> bool:
    """Whether ids are called positions, as ``position_ids``: random ones would be no order."""
    return any("position" in key for key in leaf.path if isinstance(key, str))


def _is_real(leaf: Leaf) -> bool:
    return leaf.value.is_floating_point()


def _is_single_place(leaf: Leaf) -> bool:
    space = _space_of(leaf)
    return bool(space) and all(leaf.value.shape[dim] == 1 for dim in space)


def _is_mask(value: Tensor) -> bool:
    """Whether all are zeros and ones, or some are infinite, as in masks that are added to the logits of attention."""
    return bool(((value == 0) | (value == 1)).all() or value.isinf().any())


def _space_of(leaf: Leaf) -> list[int]:
    """The dimensions over which neighbours are alike: time, or those of space. Empty if there are none."""
    ndim, reader = leaf.value.dim(), leaf.reader
    if ndim in (4, 5):
        return [dim for dim in range(1, ndim) if dim != _channel_of(leaf)]
    if reader is not None and reader.kind == "convolution":
        return [dim for dim in reader.dims[2:] if dim is not None]
    return [1] if ndim == 3 else []


def _channel_of(leaf: Leaf) -> int | None:
    """The dimension of channels: as the first layer has it, else the first one, unless the last looks like colours."""
    shape, reader = leaf.value.shape, leaf.reader
    if reader is not None and reader.kind == "convolution":
        if reader.dims[1] is not None:
            return reader.dims[1]
        if len(shape) < 4:
            return None
    elif reader is not None and reader.dims[-1] == len(shape) - 1:
        return len(shape) - 1
    if len(shape) < 4:
        return None
    return len(shape) - 1 if shape[-1] in _COLOURS and shape[1] not in _COLOURS else 1
