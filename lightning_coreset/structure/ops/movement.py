"""Movement: the same operation, applied to the labels, gives the labels of the result.

That is exact for any index map. What has to be watched is whether the user's code would move the *remaining* channels
the same way: it would after a permute or a concatenation; after a slice at a fixed position only if the same share of
every piece goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_coreset.structure.labels import ChannelLabels, TensorInfo, compress, unite_along
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule

# A weight moved by these still holds the values of its parameter, dimension by dimension.
_FAITHFUL = frozenset({"t", "numpy_T", "transpose", "permute", "detach", "alias", "_to_copy", "clone", "contiguous"})
_RESHAPING = frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze", "slice"})

_REORDERING = frozenset({"t", "transpose", "permute", "unsqueeze"})
_COPYING = frozenset({"_to_copy", "clone", "contiguous", "lift_fresh", "lift", "alias", "detach", "positive"})


def _on_host(value: object) -> object:
    return value.cpu() if isinstance(value, Tensor) else value


def _moved(op: OpCall, axis: ChannelLabels, source: Tensor) -> list[ChannelLabels]:
    """Apply the operation to the labels of its first argument; one axis per result."""
    if op.name in _RESHAPING and op.name not in ("slice", "unsqueeze", "squeeze"):
        return [axis.with_labels(_reshaped(axis.labels, source.shape, op.results[0].shape))]
    if op.name in _REORDERING:  # the same for labels that are not written out
        return [axis.moved(op.function(axis.labels, *op.args[1:], **op.kwargs))]
    if op.name in _COPYING:
        return [axis]
    if op.name == "expand":
        new = (1,) * (op.results[0].dim() - source.dim())
        return [axis.moved(axis.labels.reshape(new + axis.labels.shape)) if new else axis]
    rest, named = tree_map(_on_host, (op.args[1:], dict(op.kwargs)))
    moved = op.function(axis.labels.expand(source.shape), *rest, **named)
    results = moved if isinstance(moved, (list, tuple)) else [moved]
    return [axis.with_labels(labels) for labels in results]


def _reshaped(labels: Tensor, old: torch.Size, new: torch.Size) -> Tensor:
    """Compressed labels in a new shape; only runs of dimensions in which they vary are written out."""
    written: list[int] = []
    shape: list[int] = []
    for before, after in _runs(old, new):
        varies = any(labels.shape[dim] > 1 for dim in before)
        written += [old[dim] if varies else 1 for dim in before]
        shape += [new[dim] if varies else 1 for dim in after]
    return labels.expand(written).reshape(shape)


def _runs(old: torch.Size, new: torch.Size) -> list[tuple[range, range]]:
    """The shortest runs of dimensions that a view turns into one another, as in (2, 12, 197, 64) -> (24, 197, 64)."""
    runs = []
    i = j = 0
    while i < len(old) and j < len(new):
        first, other = i, j
        before, after = old[i], new[j]
        i, j = i + 1, j + 1
        while before != after:
            if before < after:
                before, i = before * old[i], i + 1
            else:
                after, j = after * new[j], j + 1
        runs.append((range(first, i), range(other, j)))
    return [*runs, (range(i, len(old)), range(j, len(new)))]  # dimensions of size 1


def _within_heads(source: Tensor, before: ChannelLabels, result: Tensor, after: ChannelLabels) -> bool:
    """Whether a view split channels into (heads, positions), or wrote a 1 for the heads, and only positions can go."""
    if result.dim() <= source.dim() or len(before.dims) != 1 or len(after.dims) != 1 or after.dims[0] == 0:
        return False
    (old,), (new,) = before.dims, after.dims
    # A 1 in front of everything is a batch of one sample, not the number of heads.
    size = source.shape[old]
    alone = old > 0 and result.shape[new] == size and result.shape[new - 1] == 1 != source.shape[old - 1]
    # By the view itself: sizes may agree by chance, as where there are as many tokens as positions in a head.
    split = (range(old, old + 1), range(new - 1, new + 1)) in _runs(source.shape, result.shape)
    # Heads that were only merged with the batch repeat their labels; channels of several heads have labels of their own.
    return alone or (split and len(before.labels.unique()) > result.shape[new])


def _lone_where(axis: ChannelLabels, lone: bool) -> ChannelLabels:
    return replace(axis, single_head=True) if lone else axis


def _put_moved(engine: Propagation, op: OpCall, axes: Sequence[ChannelLabels]) -> None:
    source = op.args[0]
    carried = engine.info(source)
    moved = [[compress(one, engine.union_find) for one in _moved(op, axis, source)] for axis in axes]
    if op.name in _RESHAPING and len(op.results) == 1:
        moved = [
            [
                one if one.single_head else _lone_where(one, _within_heads(source, axis, op.results[0], one))
                for one in ones
            ]
            for axis, ones in zip(axes, moved, strict=True)
        ]
    for number, result in enumerate(op.results):
        own = tuple(results[number] for results in moved)
        faithful = op.name in _FAITHFUL or (op.name in _RESHAPING and _squeezed(source, result))
        engine.set_info(
            result, TensorInfo(own, carried.constant, carried.direct if faithful else None, carried.producer_paths)
        )


def _squeezed(source: Tensor, result: Tensor) -> bool:
    """Whether at most dimensions of size 1 came or went, as in ``weight[None]``."""
    return [size for size in source.shape if size > 1] == [size for size in result.shape if size > 1]


def rearrange(engine: Propagation, op: OpCall) -> None:
    """Permutes, views, copies, expansion, flip, repetition: any subset of indices may go before or after."""
    _put_moved(engine, op, engine.info(op.args[0]).channel_labels)


def pin_dim(engine: Propagation, op: OpCall) -> None:
    """Operations that name positions along ``dim``: no single index along it may go."""
    source = op.args[0]
    names = [name for name in ("dim", "dim0", "dim1", "dim2", "dimension", "dims") if name in op.arguments]
    dims = [dim for name in names for dim in op.dims(name, source.dim())]
    _put_moved(engine, op, engine.pin_dims(source, dims, f"is taken apart at fixed positions by aten.{op.name}"))


def pin_all_dims(engine: Propagation, op: OpCall) -> None:
    """Operations that name positions in the last two dimensions (``tril``), or along no stated one."""
    source = op.args[0]
    dims = range(source.dim() - 2, source.dim()) if op.name in ("tril", "triu") else range(source.dim())
    _put_moved(engine, op, engine.pin_dims(source, dims, f"is rearranged at fixed positions by aten.{op.name}"))


def index(engine: Propagation, op: OpCall) -> None:
    """``x[:, positions]``: the indexed dimensions are pinned."""
    source, indices = op.args[0], op.arguments["indices"]
    dims, dim = [], 0
    for position in indices:
        width = position.dim() if position is not None and position.dtype in (torch.bool, torch.uint8) else 1
        dims += list(range(dim, dim + width)) if position is not None else []
        dim += width
    reason = "is indexed at fixed positions"
    for position in (position for position in indices if position is not None):
        engine.block(position, reason)
    _put_moved(engine, op, engine.pin_dims(source, dims, reason))


def equal_chunks(engine: Propagation, op: OpCall) -> None:
    """Chunks and slices: equal pieces lose the same positions; unequal ones cannot lose any."""
    source = op.args[0]
    dim = int(op.arguments["dim"]) % source.dim()
    size, start = _piece(op, source, dim)
    whole = source.shape[dim]
    reason = f"is cut into unequal pieces by aten.{op.name}"
    if size == whole:
        axes = engine.info(source).channel_labels
    elif size and whole % size == 0 and start % size == 0:
        axes = tuple(_united_pieces(engine, axis, dim, size, reason) for axis in engine.info(source).channel_labels)
    else:
        axes = engine.pin_dims(source, [dim], reason)
    _put_moved(engine, op, axes)


def _piece(op: OpCall, source: Tensor, dim: int) -> tuple[int, int]:
    """Size of the pieces (0 if they differ) and where the first begins."""
    if op.name == "slice":
        step, start = int(op.arguments["step"]), op.arguments["start"] or 0
        start = start + source.shape[dim] if start < 0 else start
        return (op.results[0].shape[dim] if step == 1 else 0), start
    sizes = {result.shape[dim] for result in op.results}
    return (sizes.pop() if len(sizes) == 1 else 0), 0


def _united_pieces(engine: Propagation, axis: ChannelLabels, dim: int, size: int, reason: str) -> ChannelLabels:
    if axis.labels.shape[dim] == 1:
        return axis
    folded = axis.labels.unflatten(dim, (-1, size))
    unite_along(ChannelLabels(folded), [dim], engine.union_find, reason)
    return axis


def channel_shuffle(engine: Propagation, op: OpCall) -> None:
    """Every shuffled group loses the same positions."""
    source = op.args[0]
    size = source.shape[1] // int(op.args[1])
    reason = "is shuffled in groups"
    _put_moved(
        engine, op, [_united_pieces(engine, axis, 1, size, reason) for axis in engine.info(source).channel_labels]
    )


def pixel_shuffle(engine: Propagation, op: OpCall) -> None:
    """The channels that become one pixel block stay together."""
    source, factor = op.args[0], int(op.args[1])
    dim = source.dim() - 3
    axes = []
    for axis in engine.pin_dims(source, (source.dim() - 2, source.dim() - 1), "is moved between channels and pixels"):
        if op.name == "pixel_shuffle" and axis.labels.shape[dim] > 1:
            folded = axis.labels.unflatten(dim, (-1, factor * factor))
            unite_along(ChannelLabels(folded), [dim + 1], engine.union_find, "becomes pixels of one channel")
        axes.append(axis)
    _put_moved(engine, op, axes)


def unfold_patches(engine: Propagation, op: OpCall) -> None:
    """``im2col`` lays the kernel positions of a channel side by side, ``col2im`` adds them up again."""
    source, out = op.args[0], op.results[0]
    size = op.arguments["kernel_size"]
    window = size[0] * size[1]
    channel = source.dim() - (3 if op.name == "im2col" else 2)
    axes = []
    for axis in engine.pin_dims(source, range(channel + 1, source.dim()), "is moved over by a window"):
        labels = axis.labels
        if op.name == "im2col":
            labels = labels.repeat_interleave(window, channel) if labels.shape[channel] > 1 else labels
            labels = labels.squeeze(-1)
        else:
            folded = labels.unflatten(channel, (-1, window)) if labels.shape[channel] > 1 else labels.unsqueeze(-1)
            labels = unite_along(
                ChannelLabels(folded), [channel + 1], engine.union_find, "is added up to one channel"
            ).labels
        axes.append(axis.with_labels(labels))
    engine.set_info(out, replace(engine.info(source), channel_labels=tuple(axes), direct=None))


def restrided(engine: Propagation, op: OpCall) -> None:
    """Other strides for elements that stay in their order, as average pooling to one pixel gives to channels last."""
    source, out = op.args[0], op.results[0]
    whole = out.storage_offset() == 0 and out.numel() * out.element_size() == out.untyped_storage().nbytes()
    axes = engine.info(source).channel_labels
    alike = all(
        axis.labels.dim() == out.dim() and all(out.shape[dim] == axis.labels.shape[dim] for dim in axis.dims)
        for axis in axes
    )
    if not (whole and alike and out.squeeze().is_contiguous() and max(out.shape[2:], default=1) == 1):
        engine.refuse(op, "is viewed with other strides by aten.as_strided")
        return
    engine.set_info(out, engine.info(source))


def ignore(engine: Propagation, op: OpCall) -> None:
    """Operations whose result carries no labels and that constrain none (fills, reads of a single value)."""


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *("view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "numpy_T", "expand"),
            *("unsqueeze", "squeeze", "clone", "contiguous", "alias", "detach", "_to_copy", "lift_fresh", "lift"),
            *("flip", "repeat", "positive"),
        ),
        rearrange,
    ),
    **dict.fromkeys(("select", "unbind", "roll", "index_select", "diagonal", "unfold", "rot90"), pin_dim),
    **dict.fromkeys(("tril", "triu"), pin_all_dims),
    **dict.fromkeys(
        ("slice", "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk"), equal_chunks
    ),
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), channel_shuffle),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), pixel_shuffle),
    **dict.fromkeys(
        ("fill", "zero", "_local_scalar_dense", "is_nonzero", "equal", "sym_size", "_assert_async"), ignore
    ),
    **dict.fromkeys(("im2col", "col2im"), unfold_patches),
    "as_strided": restrided,
    "index": index,
}
