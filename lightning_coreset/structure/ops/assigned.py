"""Assignment by index, ``x[rows] = values``: what lies along the dimensions that no index names stays in its place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_coreset.structure.label_merging import varying
from lightning_coreset.structure.ops.indexed import ADDING, join_in_place, paths_of_written
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule


def index_put(propagation: Propagation, call: OpCall) -> None:
    """``x[rows] = values``, also with masks and several indices; ``accumulate`` adds.

    Values broadcast to the shape of ``x[rows]``. The dimensions that the indices have made lie where the first indexed
    one of ``x`` was, or in front of everything where the indices are not side by side.
    """
    target, indices, values = call.args[0], call.arguments["indices"], call.arguments["values"]
    for index in indices:
        if index is not None:
            propagation.block(index, f"says what is written ({call.title})")
    named, made = _indexed(indices), _made_dims(indices)
    first = named[0] if named[-1] - named[0] + 1 == len(named) else 0
    left = [dim for dim in range(target.dim()) if dim not in named]
    # The dimensions of the target that each one of ``x[rows]`` is, None where indices have made it.
    places: list[int | None] = [*left[:first], *[None] * made, *left[first:]]
    shift = len(places) - values.dim()
    axes = propagation.pin_dims(
        values,
        [dim for dim in range(values.dim()) if places[dim + shift] is None],
        f"is moved by an index ({call.title})",
    )
    moved = tuple(axis.moved(_placed(axis.labels, places[shift:], target.dim())) for axis in axes)
    own = set() if propagation.info(values).uniform else varying(values, values.dim())
    of_values = {place for dim in own if (place := places[dim + shift]) is not None}
    known = propagation.info(target).channel_labels
    kept = propagation.pin_axes(known, set(named), f"is moved by an index ({call.title})")
    step = ADDING if call.arguments["accumulate"] else None
    paths = paths_of_written(propagation, call, (target, values), step)
    of_target = propagation.varying(target, target.dim()) - set(named)
    join_in_place(propagation, call, [(of_target, kept), (of_values, moved)], paths)


def _indexed(indices: Sequence[Tensor | None]) -> list[int]:
    """The dimensions that are indexed; a mask names as many as it has."""
    named, dim = [], 0
    for index in indices:
        width = index.dim() if index is not None and index.dtype in (torch.bool, torch.uint8) else 1
        named += list(range(dim, dim + width)) if index is not None else []
        dim += width
    return named


def _made_dims(indices: Iterable[Tensor | None]) -> int:
    """How many dimensions the indices make together; a mask is a list of positions."""
    given = [index for index in indices if index is not None]
    return max(1 if index.dtype in (torch.bool, torch.uint8) else index.dim() for index in given)


def _placed(labels: Tensor, places: Sequence[int | None], ndim: int) -> Tensor:
    """Labels of values with their dimensions where the target has them; those that indices made do not vary."""
    shape = [1] * ndim
    for size, place in zip(labels.shape, places, strict=True):
        if place is not None:
            shape[place] = size
    return labels.reshape(shape)


RULES: dict[str, Rule] = dict.fromkeys(("index_put", "_unsafe_index_put", "_index_put_impl"), index_put)
