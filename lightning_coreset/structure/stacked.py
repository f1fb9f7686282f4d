"""States of several layers in one tensor, side by side along its first dimension.

Code that takes the state of one layer out of it says nothing about the others. So layers are only tied to each other
where something else is done with all of them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_coreset.structure.labels import ChannelLabels, TensorInfo, unite_along
from lightning_coreset.structure.op_call import OpCall

if TYPE_CHECKING:
    from lightning_coreset.structure.propagation import Propagation

_BESIDE = "lies beside the states of other layers"
_TAKING = frozenset({"select", "slice", "unbind", "split", "split_with_sizes", "unsafe_split", "chunk"})
_COPYING = frozenset({"detach", "alias", "clone", "contiguous"})
_VIEWS = frozenset({"view", "_unsafe_view", "reshape"})


def set_stacked(engine: Propagation, tensor: Tensor, parts: Sequence[Tensor]) -> None:
    """Say of a tensor that it holds ``parts``, one behind the other along a first dimension of its own."""
    axes: list[ChannelLabels] = []
    infos = [engine.info(part) for part in parts]
    for dims in dict.fromkeys(axis.dims for info in infos for axis in info.channel_labels):
        own = [next((axis for axis in info.channel_labels if axis.dims == dims), None) for info in infos]
        known = [axis for axis in own if axis is not None]
        none = torch.zeros_like(known[0].labels)
        labels = torch.stack([none if axis is None else axis.labels for axis in own])
        sources = frozenset(source for axis in known for source in axis.sources)
        axes.append(ChannelLabels(labels, sources, any(axis.from_layer for axis in known)))
    _set(engine, tensor, TensorInfo(tuple(axes), producer_paths=engine.producer_paths(parts)), 1)


def follow_stacked(engine: Propagation, call: OpCall) -> bool:
    """Follow a call that takes parts out of stacked states; ``False`` if it does something else.

    In that case the layers are tied to each other.
    """
    stacked = [tensor for tensor in call.tensors if tensor in engine.stacked]
    if not stacked:
        return False
    leading = engine.stacked.get(call.tensors[0])
    if leading is not None and len(call.tensors) == 1 and _takes_parts(engine, call, leading):
        return True
    for tensor in stacked:
        _tie(engine, tensor)
    return False


def _takes_parts(engine: Propagation, call: OpCall, leading: int) -> bool:
    source, results = call.tensors[0], call.results
    info = engine.info(source)
    beside = source.shape[leading:]
    if call.name in _VIEWS:
        new = results[0].dim() - len(beside)
        if new < 1 or results[0].shape[new:] != beside:
            return False
        moved = [
            [axis.labels.reshape(results[0].shape[:new] + axis.labels.shape[leading:])]
            for axis in _full(info, source, leading)
        ]
        left = new
    elif call.name in _COPYING:
        moved, left = [[axis.labels] for axis in info.channel_labels], leading
    elif call.name in _TAKING and int(call.arguments["dim"]) % source.dim() < leading:
        taken = [call.function(axis.labels, *call.args[1:], **call.kwargs) for axis in _full(info, source, leading)]
        moved = [list(one) if isinstance(one, (list, tuple)) else [one] for one in taken]
        left = leading - (call.name in ("select", "unbind"))
    else:
        return False
    for number, result in enumerate(results):
        axes = [axis.with_labels(own[number]) for axis, own in zip(info.channel_labels, moved, strict=True)]
        _set(engine, result, TensorInfo(tuple(axes), producer_paths=info.producer_paths), left)
    return True


def _full(info: TensorInfo, source: Tensor, leading: int) -> list[ChannelLabels]:
    """The axes with labels for every part."""
    return [
        axis.with_labels(axis.labels.expand(source.shape[:leading] + axis.labels.shape[leading:]))
        for axis in info.channel_labels
    ]


def _set(engine: Propagation, tensor: Tensor, info: TensorInfo, leading: int) -> None:
    beside = any(dim < leading for axis in info.channel_labels for dim in axis.dims)
    engine.set_info(tensor, info, stacked=leading if beside else 0)


def _tie(engine: Propagation, tensor: Tensor) -> None:
    info, leading = engine.info(tensor), engine.stacked.get(tensor) or 0
    axes = tuple(unite_along(axis, range(leading), engine.union_find, _BESIDE) for axis in info.channel_labels)
    engine.set_info(tensor, info.with_channel_labels(axes))
