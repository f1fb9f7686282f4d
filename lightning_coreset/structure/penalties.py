"""Penalties: numbers made of parameters alone that join the loss, as L1, L2, group lasso and network slimming add them.

A sum over all of a parameter does not hold its channels as long as nothing but scalars meets it: what goes takes its
part of the penalty along. Where such a number meets anything else, as the norm by which a weight is divided does before
the weight is used, it is a part of the function that the network computes, and its channels stay.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_coreset._compat import view_base
from lightning_coreset.structure.labels import ChannelLabels, Statistic, TensorInfo, pin_all
from lightning_coreset.structure.op_call import EQUAL_ELEMENTS, OpCall, written_by
from lightning_coreset.structure.weak_map import IdentityWeakMap
from lightning_coreset.structure.weight_products import scales_rows

if TYPE_CHECKING:
    from lightning_coreset.structure.propagation import Propagation


def take_penalty(
    propagation: Propagation,
    source: Tensor,
    dims: Collection[int],
    reason: str,
    *,
    of_weights: bool = False,
    norm: bool = False,
) -> tuple[tuple[ChannelLabels, ...], tuple[Statistic, ...]]:
    """Reduce what is made of parameters: the axes along other dimensions, and what the result is made of.

    Args:
        propagation: What is known.
        source: What is reduced.
        dims: The dimensions that are reduced.
        reason: What to report if channels may not go because of it.
        of_weights: Whether the result may standardise what it is taken over, as a mean or a norm does.
        norm: Whether it is a norm.
    """
    reduced = set(dims)
    axes = propagation.info(source).channel_labels
    gone = [axis for axis in axes if set(axis.dims) <= reduced]
    others = [axis for axis in axes if not set(axis.dims) <= reduced]
    zero_free = norm and propagation.info(source).vanishes
    penalties = tuple(replace(penalty_of(axis, reason), zero_free=zero_free, of_weights=of_weights) for axis in gone)
    return tuple(pin_all(others, reduced, propagation.union_find, reason)), penalties


def penalty_of(axis: ChannelLabels, reason: str) -> Statistic:
    """What a number is made of that some labelled elements of parameters went into."""
    return Statistic(axis.labels.reshape(-1), reason, normalizes=False, penalty=True)


def follow_as_penalty(propagation: Propagation, call: OpCall, reason: str) -> bool:
    """Whether an operator that cannot be followed computes something of parameters alone, which may be a penalty."""
    infos = [propagation.info(tensor) for tensor in call.tensors]
    if call.written or not call.results or not all(info.constant for info in infos):
        return False
    entering = [statistic for info in infos for statistic in info.statistics]
    if not all(statistic.penalty for statistic in entering):
        return False
    penalties = [penalty_of(axis, reason) for info in infos for axis in info.channel_labels]
    for result in call.results:
        propagation.set_info(result, TensorInfo(constant=True, statistics=(*entering, *penalties)))
    return True


def pass_penalties(propagation: Propagation, call: OpCall, entering: Sequence[Statistic]) -> list[Statistic]:
    """The penalties that the results of a call are made of; where they are none any more, their channels stay."""
    if _moves_a_parameter(propagation, call):
        return []
    alone = all(_may_hold(propagation, tensor) for tensor in (*call.tensors, *call.results))
    if alone and not any(map(_is_shown, call.written)):
        return [_standardising(propagation, call, penalty) for penalty in entering]
    scales = call.name in ("mul", "div") and scales_rows(propagation, call.tensors)
    for penalty in entering:
        if penalty.met or (penalty.zero_free and scales):
            propagation.normalized.append(penalty.labels)
            propagation.standardised.append(penalty.labels)
        else:
            hold(propagation, penalty, use_in(call))
    return []


def _standardising(propagation: Propagation, call: OpCall, penalty: Statistic) -> Statistic:
    """The same, once a mean or the like of weights has met the weights that it was taken over."""
    if penalty.met or not penalty.of_weights:
        return penalty
    roots = propagation.union_find.roots
    own = roots(penalty.labels).unique()
    axes = [axis for tensor in call.tensors for axis in propagation.info(tensor).channel_labels]
    return replace(penalty, met=any(torch.equal(own, roots(axis.labels).unique()) for axis in axes))


def hold(propagation: Propagation, statistic: Statistic, where: str) -> None:
    """Forbid the removal of the channels that a value is made of, which is used for something else."""
    propagation.union_find.block(statistic.labels, f"{statistic.reason}, and the result {where}")


def use_in(call: OpCall) -> str:
    """How a call uses a statistic that holds its channels, in words that follow "the result"."""
    if call.name == "_local_scalar_dense":
        return "is read as a number of Python (aten._local_scalar_dense)"
    return f"enters another computation ({call.title})"


def end_penalties(propagation: Propagation, output: Tensor) -> None:
    """An output that is a single number is a loss, or a part of one: the penalties in it hold nothing."""
    info = propagation.info(output)
    if is_scalar(output) and info.statistics:
        others = tuple(statistic for statistic in info.statistics if not statistic.penalty)
        propagation.set_info(output, replace(info, statistics=others))


def _may_hold(propagation: Propagation, tensor: Tensor) -> bool:
    return is_scalar(tensor) or propagation.info(tensor).constant or tensor in propagation.alike


_ALIKE = EQUAL_ELEMENTS | {torch.ops.aten.eye}
_COPIES = frozenset({torch.ops.aten._to_copy, torch.ops.aten.clone, torch.ops.aten.t})


def note_alike(function: Any, tensors: Sequence[Tensor], result: Any, known: IdentityWeakMap[bool]) -> None:
    """Note tensors that code makes alike for all rows and columns, as an identity matrix, until it writes to them.

    Of each, whether it is an identity matrix.
    """
    if not hasattr(function, "overloadpacket") or function.is_view:
        return
    if written_by(function):
        for tensor in tensors:
            for one in (tensor, view_base(tensor)):
                if one is not None:
                    known.forget(one)
        return
    if not isinstance(result, Tensor):
        return
    if tensors:
        alike = all(tensor in known and tensor.shape == result.shape for tensor in tensors)
        identity = function.overloadpacket in _COPIES and known.get(tensors[0]) is True
    else:
        alike = function.overloadpacket in _ALIKE
        identity = (
            function.overloadpacket is torch.ops.aten.eye and result.dim() == 2 and result.shape[0] == result.shape[1]
        )
    if alike:
        known[result] = identity


def is_scalar(tensor: Tensor) -> bool:
    """Whether a tensor is a single number, as a loss is."""
    return tensor.numel() == 1 and tensor.dim() <= 1


def _moves_a_parameter(propagation: Propagation, call: OpCall) -> bool:
    """Whether an update is added to a parameter: its norm only says how far, as that of a gradient does."""
    return any(propagation.info(tensor).update for tensor in call.tensors) and all(
        propagation.info(result).direct is not None for result in call.results
    )


def _is_shown(tensor: Tensor) -> bool:
    """Whether another tensor shows its memory, which nothing says of what is made of it."""
    return view_base(tensor) is not None
