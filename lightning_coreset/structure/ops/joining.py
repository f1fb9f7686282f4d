"""Joining: concatenation, padding and new tensors of a given shape, where labels meet positions that have none."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_coreset._compat import view_base
from lightning_coreset.structure.labels import ChannelLabels, TensorInfo, add, join, varying
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule


def concatenate(engine: Propagation, op: OpCall) -> None:
    """Labels side by side along ``dim``; along the other dimensions the parts must lose the same indices."""
    tensors = op.arguments["tensors"]
    parts = [(part, list(engine.info(part).channel_labels)) for part in tensors if part.dim() > 1 or part.numel()]
    out = op.results[0]
    dim = int(op.arguments["dim"]) % out.dim()
    if op.name == "stack":
        parts = [(part.unsqueeze(dim), [_unsqueezed(axis, dim) for axis in axes]) for part, axes in parts]
    reason = "is joined with a tensor of fixed size"
    axes = list(
        join([(varying(part, out.dim()), own) for part, own in parts], out.dim(), engine.union_find, reason, apart=dim)
    )
    for axis in _side_by_side(parts, dim):
        axes = add(axes, axis, engine.union_find, reason)
    constant = all(engine.info(tensor).constant for tensor in tensors)
    engine.set_info(out, TensorInfo(tuple(axes), constant=constant, producer_paths=engine.producer_paths(tensors)))


def _unsqueezed(axis: ChannelLabels, dim: int) -> ChannelLabels:
    return axis.with_labels(axis.labels.unsqueeze(dim))


def _side_by_side(parts: list[tuple[Tensor, list[ChannelLabels]]], dim: int) -> list[ChannelLabels]:
    """The axis that varies along ``dim``, if a part has one; zeros where a part has none."""
    own = [next((axis for axis in axes if axis.labels.shape[dim] > 1), None) for _, axes in parts]
    others = {d for axis in own if axis is not None for d in axis.dims if d != dim}
    shape = [max(part.shape[d] for part, _ in parts) if d in others else 1 for d in range(parts[0][0].dim())]
    labels = []
    for (part, mine), axis in zip(parts, own, strict=True):
        axis = axis or next((other for other in mine if others & set(other.dims)), None)
        wanted = [part.shape[d] if d == dim else size for d, size in enumerate(shape)]
        one = torch.zeros((), dtype=torch.int64) if axis is None else axis.labels
        labels.append(one.expand(wanted))
    present = [axis for axis in own if axis is not None]
    if not present:
        return []
    sources = frozenset(source for axis in present for source in axis.sources)
    return [ChannelLabels(torch.cat(labels, dim), sources, any(axis.from_layer for axis in present))]


def pad(engine: Propagation, op: OpCall) -> None:
    """Padding with a constant: new positions along a labelled dimension are fixed, elsewhere labels go on."""
    source, widths = op.args[0], list(op.arguments["pad"])
    axes = []
    for axis in engine.info(source).channel_labels:
        labels = axis.labels
        for number in range(len(widths) // 2):
            dim = source.dim() - 1 - number
            before, after = widths[2 * number : 2 * number + 2]
            if labels.shape[dim] > 1 and (before < 0 or after < 0):
                raise NotImplementedError("negative padding of channels")
            if labels.shape[dim] > 1:
                labels = torch.nn.functional.pad(labels, [0, 0] * number + [before, after])
        axes.append(axis.with_labels(labels))
    engine.set_info(op.results[0], replace(engine.info(source), channel_labels=tuple(axes), direct=None))


def new(engine: Propagation, op: OpCall) -> None:
    """``x.new_zeros(shape)``: a dimension of the same place and size follows ``x``, as the noise of Dropout2d does."""
    source, out = op.args[0], op.results[0]
    if source.dim() != out.dim():
        return
    axes = [
        axis
        for axis in engine.info(source).channel_labels
        if all(out.shape[dim] == source.shape[dim] for dim in axis.dims)
    ]
    engine.set_info(out, TensorInfo(tuple(axes)))


def write(engine: Propagation, op: OpCall) -> None:
    """``room[:, 3:] = channels``: the room carries their labels from now on; any other write blocks."""
    target, source = op.args[0], op.args[1]
    if not engine.info(target).channel_labels and not engine.info(source).channel_labels:
        return
    if _write_into_room(engine, target, source):
        return
    engine.block(source, "is written into another tensor in place")
    engine.block(target, "is overwritten in place")


def _write_into_room(engine: Propagation, target: Tensor, source: Tensor) -> bool:
    """Whether channels went into positions without labels of a tensor that lies around them along one dimension."""
    room, axes = view_base(target), engine.info(source).channel_labels
    if room is None or len(axes) != 1 or len(axes[0].dims) != 1 or engine.info(target).channel_labels:
        return False
    dim = axes[0].dims[0]
    around = [d for d in range(room.dim()) if room.shape[d] != target.shape[d]] if room.dim() == target.dim() else None
    if around not in ([], [dim]) or source.shape != target.shape or room.stride() != target.stride():
        return False
    if any(axis.dims != (dim,) for axis in engine.info(room).channel_labels):
        return False
    labels = engine.channel_labels(room, dim, "is written next to other channels").clone()
    first = int(target.storage_offset() - room.storage_offset()) // room.stride(dim)
    labels[first : first + target.shape[dim]] = axes[0].labels.reshape(-1)
    shape = [1] * room.dim()
    shape[dim] = -1
    engine.set_info(
        room,
        TensorInfo(
            (ChannelLabels(labels.view(shape), from_layer=axes[0].from_layer),),
            producer_paths=engine.producer_paths([room, source]),
        ),
    )
    engine.set_info(target, engine.info(source))
    return True


RULES: dict[str, Rule] = {
    **dict.fromkeys(("cat", "concat", "stack"), concatenate),
    **dict.fromkeys(("new_empty", "new_zeros", "new_ones", "new_full"), new),
    "constant_pad_nd": pad,
    "copy": write,
}
