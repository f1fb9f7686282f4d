"""Rows written where an index says: what experts made of the rows that a router sent them, put back in place.

Channels stay in place; along the indexed dimensions nothing may go. An expert that no row of the example reaches does
not run, and could still write its results here: the channels of such a write are noted, so that planning holds those
that a layer which never ran could make (``planning/never_run.py``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_coreset.structure.label_merging import join
from lightning_coreset.structure.labels import ChannelLabels, TensorInfo
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule
from lightning_coreset.structure.steps import Step, StepKind

_ADDING = Step(StepKind.POSITIONS, (None,))
"""How many rows are added up depends on the index."""


def write_along(propagation: Propagation, call: OpCall) -> None:
    """``index_add(x, dim, index, rows)`` and ``index_copy``: along ``dim`` rows are written by number."""
    target, rows = call.args[0], call.arguments["source"]
    if rows.dim() != target.dim() or target.dim() == 0:
        raise NotImplementedError("its rows have another number of dimensions")
    propagation.block(call.arguments["index"], "says where rows are written")
    dims = {int(call.arguments["dim"]) % target.dim()}
    _write(propagation, call, rows, propagation.info(rows).channel_labels, dims, call.name == "index_add")


def write_at(propagation: Propagation, call: OpCall) -> None:
    """``x[index] = rows``, with an index or a mask of the first dimensions of ``x``."""
    target, rows = call.args[0], call.arguments["values"]
    indexed = 0
    for index in call.arguments["indices"]:
        if index is None:
            raise NotImplementedError("its index is not of the first dimensions")
        propagation.block(index, "says where rows are written")
        indexed += index.dim() if index.dtype in (torch.bool, torch.uint8) else 1
    extra = range(max(rows.dim() - (target.dim() - indexed), 0))  # dimensions that the index has, and a row has not
    axes = [
        axis.moved(axis.labels.squeeze(tuple(extra)))
        for axis in propagation.pin_dims(rows, extra, f"is moved by an index ({call.title})")
    ]
    _write(propagation, call, rows, axes, set(range(indexed)), bool(call.arguments["accumulate"]))


def _write(
    propagation: Propagation, call: OpCall, rows: Tensor, axes: Sequence[ChannelLabels], dims: set[int], adds: bool
) -> None:
    """Write rows into a tensor somewhere along ``dims``; ``axes`` are their labels, which lie as its last ones do."""
    target, out = call.args[0], call.results[0]
    ndim = out.dim()
    own = propagation.varying(rows, ndim)
    unequal = {dim for dim in own - dims if rows.shape[dim - ndim] != out.shape[dim]}
    reason = f"is moved by an index ({call.title})"
    shift = ndim - max((axis.labels.dim() for axis in axes), default=ndim)
    operands = [
        (
            propagation.varying(target, ndim) - dims,
            propagation.pin_axes(propagation.info(target).channel_labels, dims | unequal, reason),
        ),
        (own - dims, propagation.pin_axes(axes, {dim - shift for dim in dims | unequal}, reason)),
    ]
    joined = join(operands, ndim, propagation.union_find, f"meets a tensor that cannot be cut ({call.title})")
    propagation.hold_in_views(call, out, joined)
    propagation.routed += [axis.labels for axis in joined]
    paths = propagation.producer_paths((target, rows), _ADDING if adds else None)
    constant = all(propagation.info(tensor).constant for tensor in (target, rows))
    propagation.set_info(out, TensorInfo(joined, constant, producer_paths=paths))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("index_add", "index_copy"), write_along),
    **dict.fromkeys(("index_put", "_index_put_impl", "_unsafe_index_put"), write_at),
}
