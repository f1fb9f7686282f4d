"""Whether a record of pruning can be one of a model, and of the tensors that it comes with; checked before loading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from lightning_coreset.checkpoint.metadata import PruningMetadata
from lightning_coreset.module_specs import Size
from lightning_coreset.surgery import ModelShapes

Shapes = Mapping[str, tuple[int, ...]]


def is_part_of(shape: tuple[int, ...], original: tuple[int, ...]) -> bool:
    """Whether pruning can make this shape of the original one: no dimension grows, and none ends at 0."""
    return len(shape) == len(original) and all(
        size == most or 0 < size < most for size, most in zip(shape, original, strict=True)
    )


def wrong_record(original: ModelShapes, loaded: Shapes, metadata: PruningMetadata, strict: bool) -> Iterator[str]:
    """In words, where the metadata describes another original model, more than it, or other tensors.

    Args:
        original: The model before pruning.
        loaded: Shapes of the tensors that come with the metadata.
        metadata: How the saved model was pruned.
        strict: Whether all names must be the model's.
    """
    yield from _wrong_shapes(original, loaded, metadata, strict)
    yield from _wrong_constants(original, metadata, strict)


def half_recorded(metadata: PruningMetadata) -> Iterator[str]:
    """In words, what the metadata has of the model before pruning or after it alone."""
    before, after = metadata.original, metadata.pruned
    for one, other in ((before.shapes, after.shapes), (before.sizes, after.sizes), (before.constants, after.constants)):
        for name in sorted(one.keys() ^ other.keys()):
            yield f"{name!r} is recorded only before or only after pruning"


def _wrong_shapes(original: ModelShapes, loaded: Shapes, metadata: PruningMetadata, strict: bool) -> Iterator[str]:
    before, after = metadata.original.shapes, metadata.pruned.shapes
    for name in dict.fromkeys((*loaded, *before, *after)):
        if name not in original.shapes:
            if strict:
                yield f"{name!r} is recorded, but the model has no such tensor"
            continue
        whole, shape = before.get(name, loaded.get(name)), after.get(name)
        if whole is not None and whole != original.shapes[name]:
            yield f"{name!r} has shape {whole} before pruning where the model's is {original.shapes[name]}"
        elif shape is not None and not is_part_of(shape, original.shapes[name]):
            yield f"{name!r} is recorded with shape {shape}, which is no part of the original {original.shapes[name]}"
        elif shape is not None and loaded.get(name, shape) != shape:
            yield f"{name!r} has shape {loaded[name]} where {shape} is recorded"


def wrong_sizes(
    original: ModelShapes, metadata: PruningMetadata, inferred: Mapping[str, Size], strict: bool
) -> Iterator[str]:
    """In words, where the sizes of modules in the metadata are not the original model's, or no part of them.

    Args:
        original: The model before pruning.
        metadata: How the saved model was pruned.
        inferred: Sizes that follow from the shapes.
        strict: Whether all names must be the model's.
    """
    for name, size in metadata.original.sizes.items():
        found, now = original.sizes.get(name), metadata.pruned.sizes.get(name, size)
        if found != size and (strict or found is not None):
            yield f"{name!r} is {size} before pruning where the model's is {found}"
        elif now != inferred.get(name) and not is_smaller_size(now, size):
            yield f"{name!r} is recorded as {now}, which is no part of the original {size}"


def is_smaller_size(size: Size, original: Size) -> bool:
    """Whether pruning can make this size of the original one."""
    if isinstance(size, tuple) != isinstance(original, tuple):
        return False
    return is_part_of(*(each if isinstance(each, tuple) else (each,) for each in (size, original)))


def _wrong_constants(original: ModelShapes, metadata: PruningMetadata, strict: bool) -> Iterator[str]:
    """Of buffers that are in no state dict: their contents come from the record alone."""
    for name in original.constants:
        if name in metadata.pruned.shapes and name not in metadata.pruned.constants:
            yield f"{name!r} is in no state dict, and the record has no content of it"
    for record in (metadata.original, metadata.pruned):
        for name, value in record.constants.items():
            own = original.constants.get(name)
            if own is None:
                if strict:
                    yield f"{name!r} is recorded as a constant, which the model has not"
            elif tuple(value.shape) != record.shapes.get(name):
                yield f"{name!r} has content of shape {tuple(value.shape)} where {record.shapes.get(name)} is recorded"
            elif _kind(value) != _kind(own) or value.is_meta > own.is_meta or _has_nan(value) > _has_nan(own):
                yield f"{name!r} has content that the model's own cannot have: another type, none at all, or NaN"


def _kind(value: Tensor) -> tuple[bool, ...]:
    return value.is_floating_point(), value.is_complex(), value.dtype == torch.bool, value.layout is torch.strided


def _has_nan(value: Tensor) -> bool:
    return not value.is_meta and bool(value.isnan().any())
