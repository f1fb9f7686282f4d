"""Rows chosen by a mask that is the same for all channels: these stay in their places."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_coreset.structure.labels import TensorInfo
from lightning_coreset.structure.ops.indexed import join_moved, own_dims
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule


def masked_scatter(propagation: Propagation, call: OpCall) -> None:
    """Rows of another tensor take the place of masked ones, if the mask is the same for all channels."""
    target, mask, source = call.args[:3]
    out = call.results[0]  # target and mask are broadcast
    last = out.dim() - 1
    if source.dim() == 0 or source.shape[-1] != out.shape[-1] or last in _mask_dims(propagation, mask, out.dim()):
        propagation.refuse(call, f"meets a mask that differs between channels ({call.title})")
        return
    axes = propagation.pin_dims(source, range(source.dim() - 1), f"is written in another order ({call.title})")
    rows = tuple(axis.moved(axis.labels.reshape((1,) * last + (-1,))) for axis in axes)
    parts = [(target, propagation.info(target).channel_labels), (source.reshape(-1, source.shape[-1])[:1], rows)]
    propagation.block(mask, "is a mask")
    paths = propagation.producer_paths((target, source))
    join_moved(propagation, call, parts, set(range(last)), paths, broadcasts=True)


def select_masked(propagation: Propagation, call: OpCall) -> None:
    """``masked_select``: all elements under the mask in one row, of each channel as many if it is the same for all."""
    source, mask = call.args[:2]
    propagation.block(mask, "is a mask")
    reason = f"is moved by an index ({call.title})"
    if torch.broadcast_shapes(source.shape, mask.shape) != source.shape:
        propagation.refuse(call, reason)
        return
    axes = propagation.pin_dims(source, _mask_dims(propagation, mask, source.dim()), reason)
    moved = [axis.with_labels(axis.labels.expand(source.shape).masked_select(mask.cpu())) for axis in axes]
    info = propagation.info(source)
    propagation.set_info(call.results[0], TensorInfo(tuple(moved), info.constant, producer_paths=info.producer_paths))


def _mask_dims(propagation: Propagation, mask: Tensor, ndim: int) -> set[int]:
    """The dimensions of a result along which a mask varies, or would for other values of what it is made of."""
    shift = ndim - mask.dim()
    return own_dims(mask, ndim) | {dim + shift for axis in propagation.info(mask).channel_labels for dim in axis.dims}


RULES: dict[str, Rule] = {"masked_scatter": masked_scatter, "masked_select": select_masked}
