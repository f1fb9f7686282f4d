"""A group's tensors as the matrices of the mathematics.

Legend of shapes: N classes of the group; r rows that make one class (1 but for grouped convolutions and the like);
d + 1 inputs of a producer with its bias last; O outputs of a consumer; I its inputs; q input positions of one class
(several behind a Flatten); k kernel positions; K = q k.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_coreset.structure import ChannelGroup, Layer, Member, Norm


class NoCoresetForm(Exception):  # noqa: N818 - a finding, not an error
    """A group is no sum of one layer's activated channels; the message says why, in words for a user."""


def to_cpu_float64(tensor: Tensor) -> Tensor:
    """The values in float64 on the CPU, where a plan comes out the same for every device."""
    return tensor.detach().to("cpu", torch.float64)


def member_of(group: ChannelGroup, name: str | None, dim: int | None) -> Member | None:
    """The group's member on one dimension of a tensor."""
    return next((member for member in group.members if member.name == name and member.dim == dim), None)


def member_at(group: ChannelGroup, name: str, dim: int | None) -> Member:
    """The group's member on a dimension that is known to carry the group."""
    member = member_of(group, name, dim)
    assert member is not None
    return member


def producer_filters(group: ChannelGroup, layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    """Filters without their bias, (N, r, d); absent rows are zero."""
    return by_class(to_cpu_float64(filter_view(layer, tensors)), member_at(group, layer.weight, layer.out_dim))


def producer_bias(group: ChannelGroup, layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    """The bias of every filter, (N, r); zeros without."""
    member = member_at(group, layer.weight, layer.out_dim)
    outputs = member.length or tensors[layer.weight].shape[layer.out_dim]
    bias = (
        torch.zeros(outputs, dtype=torch.float64)
        if layer.bias is None
        else to_cpu_float64(tensors[layer.bias]).reshape(-1)
    )
    if len(bias) != outputs:  # a transposed convolution with groups has as many biases as outputs
        raise NoCoresetForm("its bias has another length than its filters")
    return by_class(bias, member)


def filter_view(layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    """A weight as (outputs, d) where it is and as precise as it is."""
    weight = tensors[layer.weight].detach().movedim(layer.out_dim, 0)
    return weight.reshape(len(weight), -1)


def consumer_slices(group: ChannelGroup, layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    """The consumer's weights of every class, (O, N, q, k)."""
    return by_class(consumer_matrix(layer, tensors), member_at(group, layer.weight, layer.in_dim), dim=1)


def consumer_matrix(layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    """A weight as (O, I, k)."""
    return to_cpu_float64(consumer_view(layer, tensors))


def consumer_view(layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    """A weight as (O, I, k) where it is and as precise as it is."""
    assert layer.in_dim is not None
    weight = tensors[layer.weight].detach().movedim((layer.out_dim, layer.in_dim), (0, 1))
    return weight.reshape(*weight.shape[:2], -1)


def put_consumer(layer: Layer, matrix: Tensor, like: Tensor) -> Tensor:
    """The inverse of ``consumer_matrix``: (O, I, k) in the shape of the weight ``like``, in float64."""
    assert layer.in_dim is not None
    moved = like.movedim((layer.out_dim, layer.in_dim), (0, 1))
    return matrix.reshape(moved.shape).movedim((0, 1), (layer.out_dim, layer.in_dim))


def norm_scale(norm: Norm, tensors: Mapping[str, Tensor]) -> Tensor:
    """The scale gamma / sqrt(var + eps) for every channel of a BatchNorm."""
    if norm.running_var is None:
        raise NoCoresetForm("a BatchNorm beside it keeps no running statistics")
    deviation = (to_cpu_float64(tensors[norm.running_var]) + norm.eps).sqrt()
    return norm_weight(norm, tensors, len(deviation)) / deviation


def norm_weight(norm: Norm, tensors: Mapping[str, Tensor], channels: int) -> Tensor:
    """The weight gamma of a BatchNorm, ones without."""
    return torch.ones(channels, dtype=torch.float64) if norm.weight is None else to_cpu_float64(tensors[norm.weight])


def norm_shift(norm: Norm, tensors: Mapping[str, Tensor], channels: int) -> Tensor:
    """The bias beta of a BatchNorm, zeros without."""
    return torch.zeros(channels, dtype=torch.float64) if norm.bias is None else to_cpu_float64(tensors[norm.bias])


def per_class(group: ChannelGroup, values: Tensor, norm: Norm) -> Tensor:
    """What a BatchNorm holds for every class, (N, r)."""
    member = member_of(group, norm.running_mean, 0)
    if member is None:
        raise NoCoresetForm("its BatchNorm's channels are not its own")
    return by_class(values, member)


def fold_batch_norm(
    group: ChannelGroup, scale: Tensor, shift: Tensor, norm: Norm, tensors: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """An affine map of what makes the channels, scale and shift both (N, r), with a BatchNorm behind it."""
    assert norm.running_mean is not None
    mean = to_cpu_float64(tensors[norm.running_mean])
    parts = (norm_scale(norm, tensors), mean, norm_shift(norm, tensors, len(mean)))
    gain, centre, offset = (per_class(group, part, norm) for part in parts)
    return gain * scale, gain * (shift - centre) + offset


def by_class(tensor: Tensor, member: Member, dim: int = 0) -> Tensor:
    """One dimension (positions) as two (N, q); zeros for classes with fewer positions than others."""
    if member.one_each and len(member.index) == tensor.shape[dim]:
        return tensor.unsqueeze(dim + 1)
    index = member.positions
    shape = list(tensor.shape)
    shape[dim] = 1
    padded = torch.cat([tensor, tensor.new_zeros(shape)], dim=dim)
    return padded.index_select(dim, index.flatten() % padded.shape[dim]).unflatten(dim, index.shape)
