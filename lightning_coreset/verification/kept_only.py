"""Reductions, norms and products that leave channels out: what a network computes once they are gone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lightning_coreset.structure import OpCall
from lightning_coreset.structure.loss_terms import REDUCTIONS
from lightning_coreset.structure.op_call import name_of

_NORMS = frozenset({"native_layer_norm", "_fused_rms_norm", "native_group_norm"})
_OF_ROWS = "native_batch_norm"
"""By which the rows of a weight may be standardised; of activations it takes no statistics over channels."""
_PRODUCTS = {"bmm": 0, "mm": 0, "baddbmm": 1, "addmm": 1}
"""Products of matrices, each with the place of its first operand."""
_DENSITY = 0.55
"""How much of the removed channels must differ on average, where they do not lie as in any member of a group.

Nearly all of them does, behind a ReLU about three quarters. Of tokens at most half does, since half of the channels
stay.
"""


@cache
def may_leave_out(function: Any) -> bool:
    """Whether calls of an operator may reduce, normalise or multiply over channels that are left out."""
    name = name_of(function)
    return name in REDUCTIONS or name in _NORMS or name in _PRODUCTS


def channels_left_out(call: OpCall, twin: Tensor, layouts: Iterable[Tensor] = ()) -> Mapping[int, Tensor]:
    """Along which reduced dimensions of a call's input there are removed channels.

    Where they lie as in a member of a group, that tells which they are, too: behind a ReLU, channels are zero in both
    versions for a part of the inputs, and for all of them if these are few.

    Args:
        call: Any call.
        twin: Its first argument, with other values in removed channels.
        layouts: The removed positions along the members of groups, as masks.

    Returns:
        The positions that stay, by dimension; empty if the call is no reduction, or reduces over no such channels.
    """
    dims = _reduced_dims(call)
    if not dims or call.args[0].shape != twin.shape:
        return {}
    differs = call.args[0] != twin
    kept = {}
    for dim in dims:
        along = differs.movedim(dim, 0).reshape(differs.shape[dim], -1)
        removed = along.any(1)
        if not removed.any() or removed.all():
            continue
        alike = [mask for mask in layouts if len(mask) == len(removed) and not (removed.cpu() & ~mask).any()]
        if alike:
            removed = min(alike, key=lambda mask: int(mask.sum())).to(removed.device)
        elif along[removed].float().mean() <= _DENSITY:
            continue
        kept[dim] = (~removed).nonzero().squeeze(1)
    return kept


def reduced_over(call: OpCall, kept: Mapping[int, Tensor]) -> Any:
    """The result of a reduction or normalisation whose statistics are those of the positions ``kept``."""
    source = call.args[0]
    part = source
    for dim, positions in kept.items():
        part = part.index_select(dim, positions)
    if call.name == "native_layer_norm":
        _, mean, rstd = call.function(part, [part.shape[-1]], None, None, call.arguments["eps"])
        return _scaled((source - mean) * rstd, call, -1), mean, rstd
    if call.name == "_fused_rms_norm":
        _, rstd = call.function(part, [part.shape[-1]], None, call.arguments["eps"])
        return _scaled(source * rstd, call, -1), rstd
    if call.name == _OF_ROWS:
        dims = [dim for dim in range(source.dim()) if dim != 1]
        variance, mean = torch.var_mean(part, dims, correction=0, keepdim=True)
        rstd = (variance + call.arguments["eps"]).rsqrt()
        return _scaled((source - mean) * rstd, call, 1), mean.flatten(), rstd.flatten()
    if call.name == "native_group_norm":
        variance, mean = torch.var_mean(part.flatten(1), 1, correction=0)
        rstd = (variance + call.arguments["eps"]).rsqrt()
        shape = (-1, *[1] * (source.dim() - 1))
        return _scaled((source - mean.reshape(shape)) * rstd.reshape(shape), call, 1), mean[:, None], rstd[:, None]
    return call.function(part, *call.args[1:], **call.kwargs)


def removed_in_product(call: OpCall, other: OpCall) -> Tensor | None:
    """Which channels that a product of two activations sums over are removed.

    Queries and keys lose the same dimensions: those in which both differ from their twins.

    Returns:
        A mask for the product's first operand; ``None`` if the call is no such product.
    """
    if call.name not in _PRODUCTS:
        return None
    place = _PRODUCTS[call.name]
    first, second = call.args[place : place + 2]
    twin, its = other.args[place : place + 2]
    if first is twin or second is its:
        return None
    rows, columns = first != twin, (second != its).transpose(-1, -2)
    removed = rows.any(-2) & columns.any(-2)
    if not removed.any() or removed.all(-1).any():
        return None
    dense = all(differs.transpose(-1, -2)[removed].float().mean() > _DENSITY for differs in (rows, columns))
    return removed.unsqueeze(-2) if dense else None


def product_without(call: OpCall, removed: Tensor) -> Tensor:
    """The result of a product that leaves out what :func:`removed_in_product` found."""
    place = _PRODUCTS[call.name]
    first = call.args[place].masked_fill(removed, 0.0)
    return call.function(*call.args[:place], first, *call.args[place + 1 :], **call.kwargs)


def reduced_dims(call: OpCall) -> list[int]:
    """The dimensions of a call's first argument that it reduces, also those over which the rows of a weight are."""
    if call.name == _OF_ROWS and call.arguments["running_mean"] is None:
        return [dim for dim in range(call.args[0].dim()) if dim != 1]
    return _reduced_dims(call)


def _reduced_dims(call: OpCall) -> list[int]:
    if not call.args or not isinstance(call.args[0], Tensor) or call.args[0].dim() == 0:
        return []
    ndim = call.args[0].dim()
    if call.name in REDUCTIONS:
        return call.dims("dim", ndim)
    if call.name not in _NORMS:
        return []
    if call.name == "native_group_norm":
        return list(range(1, ndim)) if call.arguments["group"] == 1 else []
    return [ndim - 1] if len(call.arguments["normalized_shape"]) == 1 else []


def _scaled(normalized: Tensor, call: OpCall, dim: int) -> Tensor:
    """The normalised tensor times the call's weights, which lie along ``dim``."""
    shape = [1] * normalized.dim()
    shape[dim] = -1
    weight, bias = (call.arguments.get(name) for name in ("weight", "bias"))
    result = normalized if weight is None else normalized * weight.reshape(shape)
    result = result if bias is None else result + bias.reshape(shape)
    return result.to(call.args[0].dtype)
