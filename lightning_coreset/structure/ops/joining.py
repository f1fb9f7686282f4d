"""Joining: concatenation, padding and new tensors of a given shape, where labels meet positions that have none."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lightning_coreset._compat import view_base
from lightning_coreset.structure.label_merging import add, join, varying
from lightning_coreset.structure.labels import ChannelLabels, TensorInfo
from lightning_coreset.structure.ops.elementwise import follow_elementwise
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule
from lightning_coreset.structure.references import lies_alone
from lightning_coreset.structure.steps import Step


def concatenate(propagation: Propagation, call: OpCall) -> None:
    """Labels side by side along ``dim``; along the other dimensions the parts must lose the same indices."""
    tensors = call.arguments["tensors"]
    tensors = [part for part in tensors if part.dim() > 1 or part.numel()]
    parts = [(part, list(propagation.info(part).channel_labels)) for part in tensors]
    out = call.results[0]
    dim = int(call.arguments["dim"]) % out.dim()
    if call.name == "stack":
        parts = [(part.unsqueeze(dim), [_unsqueezed(axis, dim) for axis in axes]) for part, axes in parts]
    reason = "is joined with a tensor of fixed size"
    if all(propagation.info(part).uniform for part in tensors):
        propagation.set_info(out, TensorInfo(uniform=True))
        return
    if call.name != "stack":
        parts = [(part, [*axes, *_of_its_size(propagation, part, dim)]) for part, axes in parts]
    axes = list(
        join(
            [
                (set() if propagation.info(tensor).uniform else varying(part, out.dim()), own)
                for tensor, (part, own) in zip(tensors, parts, strict=True)
            ],
            out.dim(),
            propagation.union_find,
            reason,
            apart=dim,
        )
    )
    for axis in _side_by_side(parts, dim):
        axes = add(axes, axis, propagation.union_find, reason)
    constant = all(propagation.info(tensor).constant for tensor in tensors)
    propagation.set_info(
        out, TensorInfo(tuple(axes), constant=constant, producer_paths=propagation.producer_paths(tensors))
    )


def _of_its_size(propagation: Propagation, part: Tensor, dim: int) -> list[ChannelLabels]:
    """Labels of the size of a part with equal elements, such as zeros for the first state of a recurrent cell."""
    if not propagation.info(part).uniform or part.shape[dim] < 2:
        return []
    shape = [1] * part.dim()
    shape[dim] = -1
    return [ChannelLabels(propagation.size_labels(part, dim, "").view(shape))]


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


def pad(propagation: Propagation, call: OpCall) -> None:
    """Padding with a constant: new positions along a labelled dimension are fixed, elsewhere labels go on."""
    source, widths = call.args[0], list(call.arguments["pad"])
    axes = []
    for axis in propagation.info(source).channel_labels:
        labels = axis.labels
        for number in range(len(widths) // 2):
            dim = source.dim() - 1 - number
            before, after = widths[2 * number : 2 * number + 2]
            if labels.shape[dim] > 1 and (before < 0 or after < 0):
                raise NotImplementedError("negative padding of channels")
            if labels.shape[dim] > 1:
                labels = torch.nn.functional.pad(labels, [0, 0] * number + [before, after])
        axes.append(axis.with_labels(labels))
    info = replace(propagation.info(source), channel_labels=tuple(axes), direct=None)
    value = call.arguments["value"]
    if value != 0:  # the channels of the positions on the border are constant, as no activation makes them
        info = replace(info, producer_paths=propagation.producer_paths([source], Step(call.name, (value,))))
    propagation.set_info(call.results[0], info)


def new(propagation: Propagation, call: OpCall) -> None:
    """``x.new_zeros(shape)``: a dimension of the same place and size follows ``x``, as the noise of Dropout2d does."""
    source, out = call.args[0], call.results[0]
    axes = [
        axis
        for axis in propagation.info(source).channel_labels
        if source.dim() == out.dim() and all(out.shape[dim] == source.shape[dim] for dim in axis.dims)
    ]
    propagation.set_info(out, TensorInfo(tuple(axes), uniform=call.name != "new_empty"))


def overwrite(propagation: Propagation, call: OpCall) -> None:
    """``x.fill_(1)``: labels stay, and no producer's values do. The result of the functional form has no labels."""
    target = call.args[0]
    for value in call.tensors[1:]:
        propagation.block(value, "is written into another tensor in place")
    if call.inplace:
        paths = propagation.producer_paths([target], Step(call.name))
        propagation.set_info(target, replace(propagation.info(target), direct=None, producer_paths=paths))


def write(propagation: Propagation, call: OpCall) -> None:
    """``buffer[:, 3:] = channels``: the buffer carries their labels from now on; any other write blocks.

    A parameter or buffer that is written as a whole by another one, as a copy of it is, keeps its own. Any other tensor
    that is written as a whole carries the labels of its new values, if no other one shows them.
    """
    target, source = call.args[0], call.args[1]
    whole = target.shape == source.shape and all(propagation.info(one).constant for one in (target, source))
    if whole or not call.inplace:
        follow_elementwise(propagation, call, None)
        return
    if not propagation.info(target).channel_labels and not propagation.info(source).channel_labels:
        if not propagation.info(source).uniform:
            propagation.note_values(target)
        return
    if _write_whole(propagation, target, source) or _write_into_buffer(propagation, target, source):
        return
    propagation.block(source, "is written into another tensor in place")
    propagation.block(target, "is overwritten in place")


def _write_whole(propagation: Propagation, target: Tensor, source: Tensor) -> bool:
    """Whether a tensor without labels, or with the same ones as from ``zeros_like``, is another one from now on."""
    before, axes = propagation.info(target).channel_labels, propagation.info(source).channel_labels
    roots = propagation.union_find.roots
    same = [axis.dims for axis in before] == [axis.dims for axis in axes] and all(
        torch.equal(roots(one.labels), roots(other.labels)) for one, other in zip(before, axes, strict=True)
    )
    if source.shape != target.shape or (before and not same) or not lies_alone(target):
        return False
    propagation.set_info(target, replace(propagation.info(source), direct=None))
    return True


def _write_into_buffer(propagation: Propagation, target: Tensor, source: Tensor) -> bool:
    """Whether channels went into positions without labels of a tensor that lies around them along one dimension."""
    buffer, axes = view_base(target), propagation.info(source).channel_labels
    if buffer is not None and _write_a_part(propagation, target, source, buffer):
        return True
    if buffer is None or len(axes) != 1 or len(axes[0].dims) != 1 or propagation.info(target).channel_labels:
        return False
    dim = axes[0].dims[0]
    around = (
        [d for d in range(buffer.dim()) if buffer.shape[d] != target.shape[d]] if buffer.dim() == target.dim() else None
    )
    if around not in ([], [dim]) or source.shape != target.shape or buffer.stride() != target.stride():
        return False
    if any(axis.dims != (dim,) for axis in propagation.info(buffer).channel_labels):
        return False
    labels = propagation.channel_labels(buffer, dim, "is written next to other channels").clone()
    first = int(target.storage_offset() - buffer.storage_offset()) // buffer.stride(dim)
    labels[first : first + target.shape[dim]] = axes[0].labels.reshape(-1)
    shape = [1] * buffer.dim()
    shape[dim] = -1
    propagation.set_info(
        buffer,
        TensorInfo(
            (ChannelLabels(labels.view(shape), from_layer=axes[0].from_layer),),
            producer_paths=propagation.producer_paths([buffer, source]),
        ),
    )
    propagation.set_info(target, propagation.info(source))
    return True


def _write_a_part(propagation: Propagation, target: Tensor, source: Tensor, buffer: Tensor) -> bool:
    """Whether channels went into a part of a buffer, such as one step of a sequence, and lie along whole dimensions.

    A buffer of equal elements has their labels then: what was not written to has no channels of its own. One that
    has labels must have them along the same dimensions.
    """
    places = _places(target, buffer)
    if places is None or source.shape != target.shape:
        return False
    known, axes = propagation.info(buffer), []
    for axis in propagation.info(source).channel_labels:
        if any(buffer.shape[places[dim]] != axis.labels.shape[dim] for dim in axis.dims):
            return False
        shape = [1] * buffer.dim()
        for dim in axis.dims:
            shape[places[dim]] = axis.labels.shape[dim]
        axes.append(axis.with_labels(axis.labels.reshape(shape)))
    if not known.uniform and {axis.dims for axis in axes} != {axis.dims for axis in known.channel_labels}:
        return False
    for axis in known.channel_labels:
        axes = add(axes, axis, propagation.union_find, "is written into a tensor beside other channels")
    paths = propagation.producer_paths([buffer, source])
    uniform = known.uniform and propagation.info(source).uniform
    propagation.set_info(buffer, TensorInfo(tuple(axes), producer_paths=paths, uniform=uniform))
    propagation.set_info(target, propagation.info(source))
    return True


def _places(target: Tensor, buffer: Tensor) -> list[int] | None:
    """Where the dimensions of a part lie in the whole, by their strides; ``None`` if that cannot be told."""
    places: list[int] = []
    for size, stride in zip(target.shape, target.stride(), strict=True):
        first = places[-1] + 1 if places else 0
        fitting = [d for d in range(first, buffer.dim()) if buffer.stride(d) == stride and buffer.shape[d] >= size]
        if not fitting:
            return None
        places.append(fitting[0])
    return places


RULES: dict[str, Rule] = {
    **dict.fromkeys(("cat", "concat", "stack"), concatenate),
    **dict.fromkeys(("new_empty", "new_zeros", "new_ones", "new_full"), new),
    "constant_pad_nd": pad,
    "copy": write,
    **dict.fromkeys(("fill", "zero"), overwrite),
}
