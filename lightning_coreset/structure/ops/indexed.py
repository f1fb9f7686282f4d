"""Rows moved by index: nodes, points and pixels are gathered, scattered and added up, while channels stay in place."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from lightning_coreset.structure.label_merging import join, varying
from lightning_coreset.structure.labels import ChannelLabels, TensorInfo
from lightning_coreset.structure.layer_records import Paths
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule
from lightning_coreset.structure.steps import Step, StepKind

ADDING = Step(StepKind.POSITIONS, (None,))
"""How many rows are added up depends on the index."""


def gather(propagation: Propagation, call: OpCall) -> None:
    """``gather(x, dim, index)``: along all other dimensions each element stays in its place."""
    source = call.args[0]
    _follow(propagation, call, (source, call.arguments["index"]), {int(call.arguments["dim"]) % source.dim()}, None)


def scatter(propagation: Propagation, call: OpCall) -> None:
    """``scatter(x, dim, index, src)`` and those that add or take the largest; the index has the shape of ``src``."""
    target = call.args[0]
    operands = (target, call.arguments["index"], *_tensors(call, "src", "value"))
    _follow(propagation, call, operands, {int(call.arguments["dim"]) % max(target.dim(), 1)}, _scatter_step(call))


def indexed(propagation: Propagation, call: OpCall) -> None:
    """``index_add(x, dim, index, source)`` and its like: the index has one dimension and names whole rows."""
    target = call.args[0]
    propagation.block(call.arguments["index"], f"says what is written ({call.title})")
    operands = (target, *_tensors(call, "source", "value"))
    _follow(propagation, call, operands, {int(call.arguments["dim"]) % max(target.dim(), 1)}, _scatter_step(call))


def reduce_segments(propagation: Propagation, call: OpCall) -> None:
    """``segment_reduce``: one row for each segment of rows."""
    source = call.args[0]
    for name in ("lengths", "indices", "offsets"):
        if call.arguments[name] is not None:
            propagation.block(call.arguments[name], f"says what is reduced ({call.title})")
    axis = int(call.arguments["axis"]) % source.dim()
    dims = set(range(axis + 1))  # lengths may differ between what lies in front of the axis
    _follow(propagation, call, (source,), dims, _scatter_step(call))


def replace_part(propagation: Propagation, call: OpCall) -> None:
    """``slice_scatter`` and ``select_scatter``: a part along ``dim`` has other values."""
    target, part = call.args[0], call.args[1]
    dim = int(call.arguments["dim"]) % target.dim()
    axes = propagation.info(part).channel_labels
    if call.name == "select_scatter":
        part, axes = part.unsqueeze(dim), tuple(axis.moved(axis.labels.unsqueeze(dim)) for axis in axes)
    parts = [(target, propagation.info(target).channel_labels), (part, axes)]
    join_moved(propagation, call, parts, {dim}, propagation.producer_paths(call.tensors))


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
    if how in ("amax", "max"):
        return Step(StepKind.MAX_POOL)
    if how in ("amin", "min", "prod", "multiply"):
        return Step(call.name, (how,))
    adds = how is not None or call.name.endswith("add")
    return ADDING if adds else None


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
    join_moved(propagation, call, parts, dims, paths_of_written(propagation, call, operands, step), repeats=repeats)


def paths_of_written(propagation: Propagation, call: OpCall, operands: Sequence[Tensor], step: Step | None) -> Paths:
    """The paths of a tensor in which others were written; with a step for values that no producer made."""
    foreign = any(one.is_floating_point() and not propagation.info(one).producer_paths for one in operands)
    if step is None and (foreign or "value" in call.arguments):
        step = Step(call.name)
    return propagation.producer_paths(operands, step)


def join_moved(
    propagation: Propagation,
    call: OpCall,
    parts: Sequence[tuple[Tensor, Collection[ChannelLabels]]],
    dims: set[int],
    paths: Paths,
    *,
    repeats: bool = True,
    broadcasts: bool = False,
) -> None:
    """Join the labels of tensors that lie over each other in the result, but for ``dims``, where an index moves them.

    With ``broadcasts``, tensors of size 1 are repeated; else an index of size 1 names the first position only.
    """
    ndim = call.results[0].dim()
    # An index may be shorter than what it moves: it names the first positions then.
    sizes = [(1,) * (ndim - part.dim()) + tuple(part.shape) for part, _ in parts]
    broadcast = {1} if broadcasts else set()
    fixed = dims | {dim for dim in range(ndim) if len({size[dim] for size in sizes} - broadcast) > 1}
    pinned = []
    for part, axes in parts:
        shift = ndim - part.dim()
        left = propagation.pin_axes(axes, {dim - shift for dim in fixed}, f"is moved by an index ({call.title})")
        own = set() if propagation.info(part).uniform else own_dims(part, ndim) if repeats else varying(part, ndim)
        pinned.append((own - fixed, left))
    join_in_place(propagation, call, pinned, paths)


def join_in_place(
    propagation: Propagation,
    call: OpCall,
    operands: Sequence[tuple[set[int], Sequence[ChannelLabels]]],
    paths: Paths,
) -> None:
    """Set what is known of a result of which ``join`` says the labels, and which may be written in place."""
    out = call.results[0]
    joined = join(operands, out.dim(), propagation.union_find, f"meets a tensor that cannot be cut ({call.title})")
    propagation.routed += [axis.labels for axis in joined]
    shown = propagation.same_views(out) if call.inplace else []
    if shown is None:
        propagation.hold_in_views(call, out, joined)
    constant = all(propagation.info(part).constant for part in call.tensors)
    for result in (out, *(shown or ())):
        propagation.set_info(result, TensorInfo(joined, constant, producer_paths=paths))


def own_dims(tensor: Tensor, ndim: int) -> set[int]:
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
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), unpool),
    **dict.fromkeys(("index_add", "index_copy", "index_fill", "index_reduce"), indexed),
    "segment_reduce": reduce_segments,
    **dict.fromkeys(("_cdist_forward", "_euclidean_dist"), distances),
    "_pack_padded_sequence": pack,
    **dict.fromkeys(("_fft_r2c", "_fft_c2r", "_fft_c2c"), transform),
}
