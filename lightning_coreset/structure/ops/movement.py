"""Movement: the same operation, applied to the labels, gives the labels of the result.

That is exact for any index map. What has to be watched is whether the user's code would move the *remaining* channels
the same way: it would after a permute or a concatenation; after a slice at a fixed position only if the same share of
every piece goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_coreset._compat import tree_map, view_base
from lightning_coreset.structure.labels import ChannelLabels, Statistic, TensorInfo, compress, pin_all
from lightning_coreset.structure.ops.views import dimension_runs, reshape_labels, splits_heads
from lightning_coreset.structure.penalties import take_penalty
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule
from lightning_coreset.structure.statistics import passes_statistics
from lightning_coreset.structure.steps import Step

# A weight moved by these still holds the values of its parameter, dimension by dimension.
_FAITHFUL = frozenset({"t", "numpy_T", "transpose", "permute", "detach", "alias", "_to_copy", "clone", "contiguous"})
_VIEWS = frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias"})
_RESHAPING = _VIEWS | {"unsqueeze", "squeeze", "slice"}
# The same for labels that are not written out. Not by ``call.function``, which may write into the labels.
_REORDERING = {
    "t": Tensor.t,
    "transpose": Tensor.transpose,
    "permute": Tensor.permute,
    "unsqueeze": Tensor.unsqueeze,
    "view_as_real": lambda labels: labels.unsqueeze(-1),
    "view_as_complex": lambda labels: labels.squeeze(-1),
}
_COPYING = frozenset(
    """
_to_copy clone contiguous lift_fresh lift alias detach positive _conj resolve_conj _neg_view resolve_neg
""".split()
)


def _moved(call: OpCall, axis: ChannelLabels, source: Tensor) -> list[ChannelLabels]:
    """Apply the operation to the labels of its first argument; one axis per result."""
    if call.inplace:
        return [axis.moved(_moved_in_place(call, axis.labels))]
    if call.name in _VIEWS:
        return [axis.with_labels(reshape_labels(axis.labels, source.shape, call.results[0].shape))]
    if call.name in _REORDERING:
        return [axis.moved(_REORDERING[call.name](axis.labels, *call.args[1:], **call.kwargs))]
    if call.name in _COPYING:
        return [axis]
    if call.name == "expand":
        new = (1,) * (call.results[0].dim() - source.dim())
        return [axis.moved(axis.labels.reshape(new + axis.labels.shape)) if new else axis]
    moved = move_labels(call.function, axis.labels.expand(source.shape), call)
    if source.numel() and not all(labels.numel() for labels in moved):
        moved = _as_of_one_row(call, axis.labels.expand(source.shape)) or moved
    return [axis.with_labels(labels) for labels in moved]


def _as_of_one_row(call: OpCall, labels: Tensor) -> list[Tensor] | None:
    """The labels of a result without elements, such as the rows of an expert that gets none: as if it had one row."""
    if call.name == "slice":
        return [labels.narrow(int(call.arguments["dim"]), 0, 1)]
    if call.name not in ("index", "index_select"):
        return None

    def first(index: object) -> object:
        if not isinstance(index, Tensor):
            return index
        one = torch.zeros([max(size, 1) for size in index.shape], dtype=index.dtype)
        if index.dtype in (torch.bool, torch.uint8):
            one.view(-1)[0] = 1  # a mask
        return one

    rest, named = tree_map(first, (call.args[1:], dict(call.kwargs)))
    return [call.function(labels, *rest, **named)]


def _moved_in_place(call: OpCall, labels: Tensor) -> Tensor:
    """The labels of a tensor that has its new shape already."""
    if call.name == "squeeze":
        dims = call.dims("dim", labels.dim())
        gone = labels.dim() - call.results[0].dim()
        if gone in (0, len(dims)):  # else only those of size 1 went, which labels do not show
            return labels.squeeze(dims) if gone else labels
    if call.name in _REORDERING:
        return _REORDERING[call.name](labels, *call.args[1:], **call.kwargs)
    raise NotImplementedError("in place")


def move_labels(function: Callable[..., Any], labels: Tensor, call: OpCall) -> list[Tensor]:
    """Call ``function`` as ``call`` was, with labels in place of its first argument; the labels of each result."""
    rest, named = tree_map(_to_cpu, (call.args[1:], dict(call.kwargs)))  # labels are on the CPU
    moved = function(labels, *rest, **named)
    return list(moved) if isinstance(moved, (list, tuple)) else [moved]


def _to_cpu(value: object) -> object:
    return value.cpu() if isinstance(value, Tensor) else value


def set_moved(propagation: Propagation, call: OpCall, axes: Sequence[ChannelLabels]) -> None:
    """Give the results of a movement the labels ``axes`` of its first argument, moved along."""
    source, info = call.args[0], propagation.info(call.args[0])
    is_weight = info.constant and not info.producer_paths
    if call.name in _VIEWS and is_weight and len(axes) > 1:
        axes = _innermost(propagation, axes, source.shape, call.results[0].shape)
    moved = [[compress(one, propagation.union_find) for one in _moved(call, axis, source)] for axis in axes]
    if call.name in _RESHAPING and len(call.results) == 1 and not is_weight:
        moved = [
            [_mark_single_head(source, axis, call.results[0], one) for one in ones]
            for axis, ones in zip(axes, moved, strict=True)
        ]
    for number, result in enumerate(call.results):
        own = tuple(results[number] for results in moved)
        faithful = call.name in _FAITHFUL or (call.name in _RESHAPING and _squeezed(source, result))
        direct, paths = info.direct if faithful else None, info.producer_paths
        if not _keeps_values(call, source, result):
            direct, paths = None, propagation.producer_paths([source], Step(call.name))
        propagation.set_info(
            result, TensorInfo(own, info.constant, direct, paths, uniform=info.uniform, vanishes=info.vanishes)
        )


def _innermost(
    propagation: Propagation, axes: Sequence[ChannelLabels], old: torch.Size, new: torch.Size
) -> list[ChannelLabels]:
    """The axes of a weight without those that a view puts into one dimension with others that lie further in.

    So ``einsum`` makes one matrix of the matrices of several experts, or heads: what lies within each of them may go.
    """
    left = []
    for axis in axes:
        run = next((before for before, _ in dimension_runs(old, new) if axis.dims and axis.dims[0] in before), range(0))
        stacks = 0 in run and len(run) < len(old)  # neither columns and positions of a kernel, nor all of a weight
        further_in = (other for other in axes if other is not axis and other.dims > axis.dims)
        if stacks and any(other.dims[0] in run for other in further_in):
            propagation.union_find.block(axis.labels, "shares a dimension with other channels")
        else:
            left.append(axis)
    return left


def _mark_single_head(source: Tensor, axis: ChannelLabels, result: Tensor, moved: ChannelLabels) -> ChannelLabels:
    if moved.single_head or not splits_heads(source, axis, result, moved):
        return moved
    return replace(moved, single_head=True)


def _keeps_values(call: OpCall, source: Tensor, result: Tensor) -> bool:
    """Not where numbers are rounded to whole ones, or their bits are read as another type."""
    if result.dtype == source.dtype:
        return call.name not in ("_conj", "_neg_view")
    return call.name == "_to_copy" and result.is_floating_point() and source.is_floating_point()


def _squeezed(source: Tensor, result: Tensor) -> bool:
    """Whether at most dimensions of size 1 came or went, as in ``weight[None]``."""
    return [size for size in source.shape if size > 1] == [size for size in result.shape if size > 1]


@passes_statistics
def rearrange(propagation: Propagation, call: OpCall) -> None:
    """Permutes, views, copies, expansion, flip, repetition: any subset of indices may go before or after."""
    set_moved(propagation, call, propagation.info(call.args[0]).channel_labels)


def pin_dim(propagation: Propagation, call: OpCall) -> None:
    """Operations that name positions along ``dim``: no single index along it may go."""
    source = call.args[0]
    for index in call.tensors[1:]:
        propagation.block(index, f"says what is taken ({call.title})")
    names = [name for name in ("dim", "dim0", "dim1", "dim2", "dimension", "dims") if name in call.arguments]
    dims = [dim for name in names for dim in call.dims(name, source.dim())]
    set_moved(
        propagation, call, propagation.pin_dims(source, dims, f"is taken apart at fixed positions ({call.title})")
    )


def select(propagation: Propagation, call: OpCall) -> None:
    """One position along ``dim``: no single index may go, unless nothing uses what is there.

    The first and the last one, at least, are there whatever goes.
    """
    source = call.args[0]
    dim, info = int(call.arguments["dim"]) % source.dim(), propagation.info(source)
    reason = f"is taken apart at fixed positions ({call.title})"
    stays = call.arguments["index"] in (0, -1)
    named = [axis for axis in info.channel_labels if stays and axis.dims == (dim,) and not info.constant]
    others = [axis for axis in info.channel_labels if all(axis is not one for one in named)]
    set_moved(propagation, call, pin_all(others, {dim}, propagation.union_find, reason))
    unused = tuple(Statistic(axis.flat, reason, normalizes=False) for axis in named)
    propagation.set_info(call.results[0], replace(propagation.info(call.results[0]), statistics=unused))


def pin_parts(propagation: Propagation, call: OpCall) -> None:
    """``view_as_complex``: the last dimension holds real and imaginary parts."""
    source = call.args[0]
    reason = f"is a part of a complex number ({call.title})"
    base = view_base(source)
    if base is not None and base.dim():  # whose rows must be of an even length, as a complex number has two places
        propagation.multiples.append((propagation.channel_labels(base, base.dim() - 1, reason), 2))
    set_moved(propagation, call, propagation.pin_dims(source, [source.dim() - 1], reason))


def pin_triangle(propagation: Propagation, call: OpCall) -> None:
    """Operations that name positions in the last two dimensions (``tril``): what lies along others stays in place."""
    source, info = call.args[0], propagation.info(call.args[0])
    dims = range(source.dim() - 2, source.dim())
    reason = f"is rearranged at fixed positions ({call.title})"
    penalties: tuple[Statistic, ...] = ()
    if info.constant:
        axes, penalties = take_penalty(propagation, source, dims, reason)
    else:
        axes = propagation.pin_dims(source, dims, reason)
    result = TensorInfo(axes, info.constant, producer_paths=info.producer_paths, statistics=penalties)
    propagation.set_info(call.results[0], result)


def index(propagation: Propagation, call: OpCall) -> None:
    """``x[:, positions]``: the indexed dimensions are pinned."""
    source, indices = call.args[0], call.arguments["indices"]
    dims, dim = [], 0
    for position in indices:
        width = position.dim() if position is not None and position.dtype in (torch.bool, torch.uint8) else 1
        dims += list(range(dim, dim + width)) if position is not None else []
        dim += width
    reason = "is indexed at fixed positions"
    for position in (position for position in indices if position is not None):
        propagation.block(position, reason)
    set_moved(propagation, call, propagation.pin_dims(source, dims, reason))


def ignore(propagation: Propagation, call: OpCall) -> None:
    """Operations whose result carries no labels and that constrain none (reads of a single value)."""


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *("view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "numpy_T", "expand"),
            *("unsqueeze", "squeeze", "clone", "contiguous", "alias", "detach", "_to_copy", "lift_fresh", "lift"),
            *("flip", "repeat", "positive", "view_as_real", "_conj", "resolve_conj", "_neg_view", "resolve_neg"),
        ),
        rearrange,
    ),
    "select": select,
    **dict.fromkeys(("unbind", "roll", "index_select", "diagonal", "unfold", "rot90"), pin_dim),
    **dict.fromkeys(("tril", "triu"), pin_triangle),
    "view_as_complex": pin_parts,
    **dict.fromkeys(("_local_scalar_dense", "is_nonzero", "equal", "sym_size", "_assert_async"), ignore),
    **dict.fromkeys(("index", "_unsafe_index"), index),
}
