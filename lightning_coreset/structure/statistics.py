"""Statistics over channels: means, variances and norms by which a network normalises its own channels.

A LayerNorm makes the value of each channel depend on all the others, so removing channels is not the same as zeroing
them. It is well defined all the same: what is left is the network in which every such statistic is taken over the
channels that stay. That is a normalisation of fewer channels, as long as a statistic is only combined with the channels
that it was taken over. A mean over channels that goes anywhere else, such as into a convolution, is a feature of its
own: its channels stay.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_coreset.structure.labels import ChannelLabels, Statistic, TensorInfo, pin_all, unite_along
from lightning_coreset.structure.loss_terms import gathers_terms, is_read_loss, meets_only_numbers
from lightning_coreset.structure.op_call import OpCall
from lightning_coreset.structure.penalties import hold, pass_penalties, use_in

if TYPE_CHECKING:
    from lightning_coreset.structure.propagation import Propagation, Rule


def take_statistic(
    propagation: Propagation, source: Tensor, dims: Collection[int], reason: str
) -> tuple[tuple[ChannelLabels, ...], tuple[ChannelLabels, ...]]:
    """Reduce over ``dims``: the axes that lie along other dimensions, and those whose statistics are taken.

    A grid, such as the channels within heads, can lose whole rows only, unless dimensions within heads may go: all
    heads the same. The dimensions of a weight are pinned: what it is normalised by depends on columns that belong to
    other channels.
    """
    info, reduced = propagation.info(source), set(dims)
    others: list[ChannelLabels] = []
    normalized: list[ChannelLabels] = []
    for axis in info.channel_labels:
        inner = axis.dims[-1]
        if inner not in reduced or info.constant or (len(axis.dims) > 1 and not propagation.within_heads):
            others.append(axis)
        else:
            normalized.append(unite_along(axis, axis.dims[:-1], propagation.union_find, reason))
    return tuple(pin_all(others, reduced, propagation.union_find, reason)), tuple(normalized)


def note_further_results(propagation: Propagation, call: OpCall) -> None:
    """What a normalisation returns beside its result, mean and deviation, holds the channels if something uses it."""
    reason = f"has its statistics returned ({call.title})"
    axes = propagation.info(call.args[0]).channel_labels
    for result in call.results[1:]:
        statistics = tuple(Statistic(axis.flat, reason, normalizes=False) for axis in axes)
        propagation.set_info(result, TensorInfo(statistics=statistics))


def check_statistics(propagation: Propagation, call: OpCall, rule: Rule) -> list[Statistic]:
    """The statistics that enter a call; none if its rule cannot tell what becomes of them, whose channels then stay."""
    entering = [statistic for tensor in call.tensors for statistic in propagation.info(tensor).statistics]
    if not entering or getattr(rule, "passes_statistics", False):
        return entering
    gathered = gathers_terms(propagation, call)
    for one in entering:
        if one.joins_loss and is_read_loss(propagation, call):
            propagation.read_terms.append(one)
        elif not (one.penalty or (one.joins_loss and gathered)):
            hold(propagation, one, use_in(call))
    # Of what is left the results will tell.
    return [one for one in entering if one.penalty or (one.joins_loss and gathered)]


def pass_statistics(propagation: Propagation, call: OpCall, entering: Sequence[Statistic]) -> list[Statistic]:
    """What the results of a call are still made of: the statistics that have not met the channels they are of.

    Those that meet them normalise them. A statistic that nothing uses, as the mean of an attention over its heads that
    ``nn.MultiheadAttention`` returns beside its output, does not.
    """
    penalties = [one for one in entering if one.penalty]
    entering = [one for one in entering if not one.penalty]
    _block_averages(propagation, call, entering)
    axes = [axis for tensor in call.tensors for axis in propagation.info(tensor).channel_labels]
    met = [_classes(propagation, axis.labels) for axis in axes]
    goes_on = meets_only_numbers(propagation, call)
    left = []
    for one in {id(one): one for one in entering}.values():
        if one.normalizes and any(torch.equal(_classes(propagation, one.labels), classes) for classes in met):
            propagation.normalized.append(one.labels)
        else:
            left.append(one if goes_on else replace(one, joins_loss=False))
    if gathers_terms(propagation, call):  # a sum over samples normalises nothing
        left = [replace(one, normalizes=False) for one in left]
    return [*left, *pass_penalties(propagation, call, penalties)] if penalties else left


def _block_averages(propagation: Propagation, call: OpCall, entering: Iterable[Statistic]) -> None:
    """A sum that is divided by how many channels there are is a mean, but would be divided by their old number."""
    numbers = [number for number in (*call.args, *call.kwargs.values()) if isinstance(number, (int, float)) and number]
    for one in entering if call.name in ("div", "mul", "true_divide") else ():
        count = len(one.labels)
        if one.sums and any(math.isclose(number, count) or math.isclose(number * count, 1.0) for number in numbers):
            propagation.union_find.block(
                one.labels, f"{one.reason} and divided by how many there are (use mean or var)"
            )


def block_statistics(propagation: Propagation, tensor: Tensor, where: str) -> None:
    """Forbid the removal of the channels that the values of a tensor are statistics of."""
    for statistic in propagation.info(tensor).statistics:
        hold(propagation, statistic, where)


def _classes(propagation: Propagation, labels: Tensor) -> Tensor:
    return propagation.union_find.roots(labels).unique()


def passes_statistics(rule: Rule) -> Rule:
    """Mark a rule of an operator that combines or moves elements: what enters it as a statistic stays one."""
    rule.passes_statistics = True  # type: ignore[attr-defined]
    return rule
