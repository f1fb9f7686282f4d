"""Convolutions: dense, grouped, depthwise and transposed, of any number of dimensions."""

from __future__ import annotations

import math

from torch import Tensor

from lightning_coreset.module_specs import module_spec
from lightning_coreset.structure.labels import ChannelLabels, TensorInfo
from lightning_coreset.structure.ops.einsum import FIXED_INPUT
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule
from lightning_coreset.structure.steps import Step, StepKind


def convolution(propagation: Propagation, call: OpCall) -> None:
    """Convolutions of any number of dimensions, dense, grouped, depthwise, transposed."""
    inputs, weight, bias = call.arguments["input"], call.arguments["weight"], call.arguments["bias"]
    groups = int(call.arguments["groups"])
    transposed = bool(call.arguments.get("transposed", False))
    out = call.results[0]
    propagation.pin_dims(weight, range(2, weight.dim()), "is a kernel position")
    axes = propagation.pin_dims(inputs, range(2, inputs.dim()), "is moved over by a convolution")
    propagation.count_macs(weight, (inputs if transposed else out).numel() * math.prod(weight.shape[1:]))
    if groups > 1 and groups == inputs.shape[1]:
        labels = _depthwise(propagation, inputs, weight, transposed)
        paths = propagation.producer_paths([inputs], Step(StepKind.DEPTHWISE, (propagation.info(weight).direct or "",)))
    else:
        into, made = (0, 1) if transposed else (1, 0)
        labels = _grouped(propagation, inputs, weight, groups, into, made)
        paths = propagation.record_layer(weight, into, made, inputs, bias=bias, groups=groups)
    shape = [1] * out.dim()
    shape[1] = out.shape[1]
    if bias is not None:
        propagation.unite(propagation.channel_labels(bias, 0, "is a bias"), labels, "has a bias that cannot be cut")
    of_samples = [axis for axis in axes if axis.dims == (0,)]
    propagation.set_info(
        out, TensorInfo((*of_samples, ChannelLabels(labels.reshape(shape), from_layer=True)), producer_paths=paths)
    )


def _grouped(propagation: Propagation, inputs: Tensor, weight: Tensor, groups: int, into: int, made: int) -> Tensor:
    """The same positions in every group of a grouped convolution go together; one group is the dense case."""
    reason = FIXED_INPUT
    columns = propagation.channel_labels(weight, into, reason)
    rows = propagation.channel_labels(weight, made, reason)
    channels = propagation.size_labels(inputs, 1, reason)
    if groups == 1:
        propagation.unite(columns, channels, reason)
        return rows
    if into == 0:  # transposed: all input channels lie in the weight's first dimension
        per_group = columns.reshape(groups, -1)[0].repeat(groups)
        propagation.unite(columns, per_group, reason)
        rows_of_out = rows.repeat(groups)
    else:
        columns = columns.repeat(groups)
        rows_of_out = rows.reshape(groups, -1)[0].repeat(groups)
        propagation.unite(rows, rows_of_out, reason)
        rows_of_out = rows
    propagation.unite(columns, channels, reason)
    return rows_of_out


def _depthwise(propagation: Propagation, inputs: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    """One filter (or several) for each channel: labels pass through."""
    channels = propagation.channel_labels(inputs, 1, FIXED_INPUT)
    owner = propagation.owners.get(propagation.info(weight).direct or "")
    counted = None if owner is None else module_spec(owner).groups
    if owner is None or counted is None or not module_spec(owner).updates(counted):
        propagation.union_find.block(channels, "passes a depthwise convolution whose group count cannot be updated")
    filters = propagation.channel_labels(weight, 0, FIXED_INPUT)
    if transposed:
        propagation.pin_dims(weight, [1], "is a channel multiplier")
        propagation.unite(filters, channels, FIXED_INPUT)
        return channels.repeat_interleave(weight.shape[1])
    multiplied = channels.repeat_interleave(weight.shape[0] // len(channels))
    propagation.unite(filters, multiplied, FIXED_INPUT)
    return multiplied


RULES: dict[str, Rule] = dict.fromkeys(
    ("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution"), convolution
)
