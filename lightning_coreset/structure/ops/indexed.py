"""Rows moved by index: nodes, points and pixels are gathered, scattered and added up, while channels stay in place."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from lightning_coreset.structure.label_merging import join, varying
from lightning_coreset.structure.labels import ChannelLabels, TensorInfo
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule
from lightning_coreset.structure.steps import Step, StepKind

_ADDING = Step(StepKind.POSITIONS, (None,))
"""How many rows are added up depends on the index."""

_BROADCASTING = frozenset({"masked_scatter"})


def gather(propagation: Propagation, call: OpCall) -> None:
    """``gather(x, dim, index)``: along all other dimensions each element stays in its place."""
    source = call.args[0]
    _follow(propagation, call, (source, call.arguments["index"]), {int(call.arguments["dim"]) % source.dim()}, None)


def scatter(propagation: Propagation, call: OpCall) -> None:
    """``scatter(x, dim, index, src)`` and those that add or take the largest; the index has the shape of ``src``."""
    target = call.args[0]
    operands = (target, call.arguments["index"], *_tensors(call, "src", "value"))
    _follow(propagation, call, operands, {int(call.arguments["dim"]) % max(target.dim(), 1)}, _scatter_step(call))


def replace_part(propagation: Propagation, call: OpCall) -> None:
    """``slice_scatter`` and ``select_scatter``: a part along ``dim`` has other values."""
    target, part = call.args[0], call.args[1]
    dim = int(call.arguments["dim"]) % target.dim()
    axes = propagation.info(part).channel_labels
    if call.name == "select_scatter":
        part, axes = part.unsqueeze(dim), tuple(axis.moved(axis.labels.unsqueeze(dim)) for axis in axes)
    parts = [(target, propagation.info(target).channel_labels), (part, axes)]
    _join(propagation, call, parts, {dim}, propagation.producer_paths(call.tensors))


def masked_scatter(propagation: Propagation, call: OpCall) -> None:
    """Rows of another tensor take the place of masked ones, if the mask is the same for all channels."""
    target, mask, source = call.args[:3]
    out = call.results[0]  # target and mask are broadcast
    last = out.dim() - 1
    if source.dim() == 0 or source.shape[-1] != out.shape[-1] or last in _own(mask, out.dim()):
        propagation.refuse(call, f"meets a mask that differs between channels ({call.title})")
        return
    axes = propagation.pin_dims(source, range(source.dim() - 1), f"is written in another order ({call.title})")
    rows = tuple(axis.moved(axis.labels.reshape((1,) * last + (-1,))) for axis in axes)
    parts = [(target, propagation.info(target).channel_labels), (source.reshape(-1, source.shape[-1])[:1], rows)]
    propagation.block(mask, "is a mask")
    _join(propagation, call, parts, set(range(last)), propagation.producer_paths((target, source)))


def unpool(propagation: Propagation, call: OpCall) -> None:
    """``max_unpool2d``: the positions are indices, of each channel its own, and channels stay in place."""
    source = call.args[0]
    count = 2 if "2" in call.name else 3
    dims = set(range(source.dim() - count, source.dim()))
    _follow(propagation, call, call.tensors[:2], dims, None, repeats=False)


def distances(propagation: Propagation, call: OpCall) -> None:
    """``cdist``: a distance for each pair of rows; it needs all channels."""
    first, second = call.args[:2]
    ndim = call.results[0].dim()
    parts = []
    for tensor, place in ((first, -2), (second, -1)):
        axes = propagation.pin_dims(tensor, [tensor.dim() - 1], f"is summed across channels ({call.title})")
        flipped = tensor if place == -2 else tensor.transpose(-1, -2)
        moved = tuple(axis if place == -2 else axis.moved(axis.labels.transpose(-1, -2)) for axis in axes)
        parts.append((varying(flipped, ndim) - {ndim - 3 - place}, moved))
    axes = join(parts, ndim, propagation.union_find, f"meets a tensor that cannot be cut ({call.title})")
    paths = propagation.producer_paths((first, second), Step(call.name))
    propagation.set_info(call.results[0], TensorInfo(axes, producer_paths=paths))


def transform(propagation: Propagation, call: OpCall) -> None:
    """Fourier transforms mix what lies along their dimensions."""
    source = call.args[0]
    axes = propagation.pin_dims(source, call.dims("dim", source.dim()), f"is mixed across channels ({call.title})")
    paths = propagation.producer_paths([source], Step(call.name))
    propagation.set_info(call.results[0], TensorInfo(axes, propagation.info(source).constant, producer_paths=paths))


def pack(propagation: Propagation, call: OpCall) -> None:
    """``pack_padded_sequence``: steps of all samples become rows, and channels stay in place."""
    source, rows = call.args[0], call.results[0]
    axes = propagation.pin_dims(source, [0, 1], f"is moved by an index ({call.title})")
    packed = tuple(axis.moved(axis.labels.squeeze(0)) for axis in axes)
    info = propagation.info(source)
    propagation.set_info(rows, TensorInfo(packed, info.constant, producer_paths=info.producer_paths))


def _scatter_step(call: OpCall) -> Step | None:
    how = call.arguments.get("reduce")
    if how in ("amax", "amin"):
        return Step(StepKind.MAX_POOL if how == "amax" else call.name)
    if how in ("prod", "multiply"):
        return Step(call.name, (how,))
    adds = how is not None or call.name.endswith("add")
    return _ADDING if adds else None


def _tensors(call: OpCall, *names: str) -> list[Tensor]:
    return [value for name in names if isinstance(value := call.arguments.get(name), Tensor) and value.dim() > 0]


def _follow(
    propagation: Propagation,
    call: OpCall,
    operands: Sequence[Tensor],
    dims: set[int],
    step: Step | None,
    *,
    repeats: bool = True,
) -> None:
    """Elements along ``dims`` are moved by index, those along all other dimensions meet in their places.

    With ``repeats``, an index that is equal for all channels counts as made for as many as there are.
    """
    parts = [(operand, propagation.info(operand).channel_labels) for operand in operands]
    _join(propagation, call, parts, dims, propagation.producer_paths(operands, step), repeats=repeats)


def _join(
    propagation: Propagation,
    call: OpCall,
    parts: Sequence[tuple[Tensor, Collection[ChannelLabels]]],
    dims: set[int],
    paths: dict[str, tuple[Step, ...]],
    *,
    repeats: bool = True,
) -> None:
    out = call.results[0]
    ndim = out.dim()
    # An index may be shorter than what it moves: it names the first positions then. Values that are put are broadcast.
    sizes = [(1,) * (ndim - part.dim()) + tuple(part.shape) for part, _ in parts]
    broadcast = {1} if call.name in _BROADCASTING else set()
    fixed = dims | {dim for dim in range(ndim) if len({size[dim] for size in sizes} - broadcast) > 1}
    pinned = []
    for part, axes in parts:
        shift = ndim - part.dim()
        left = propagation.pin_axes(axes, {dim - shift for dim in fixed}, f"is moved by an index ({call.title})")
        own = set() if propagation.info(part).uniform else _own(part, ndim) if repeats else varying(part, ndim)
        pinned.append((own - fixed, left))
    joined = join(pinned, ndim, propagation.union_find, f"meets a tensor that cannot be cut ({call.title})")
    propagation.hold_in_views(call, out, joined)
    constant = all(propagation.info(part).constant for part in call.tensors)
    propagation.set_info(out, TensorInfo(joined, constant, producer_paths=paths))


def _own(tensor: Tensor, ndim: int) -> set[int]:
    """The dimensions along which a tensor has elements of its own; an index that repeats itself has none there."""
    own = varying(tensor, ndim)
    if tensor.is_floating_point() or tensor.is_complex():
        return own
    shift = ndim - tensor.dim()
    return {dim for dim in own if not torch.equal(tensor.narrow(dim - shift, 0, 1).expand_as(tensor), tensor)}


RULES: dict[str, Rule] = {
    "gather": gather,
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce"), scatter),
    **dict.fromkeys(("slice_scatter", "select_scatter"), replace_part),
    "masked_scatter": masked_scatter,
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), unpool),
    "_cdist_forward": distances,
    "_pack_padded_sequence": pack,
    **dict.fromkeys(("_fft_r2c", "_fft_c2r", "_fft_c2c"), transform),
}
