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


def host(tensor: Tensor) -> Tensor:
    """The values in float64 on the CPU, where a plan comes out the same for every device."""
    return tensor.detach().to("cpu", torch.float64)


def positions(member: Member, nowhere: int) -> Tensor:
    """Positions of every class along the member's dimension, int64 (N, q), filled up with ``nowhere``."""
    width = max(len(places) for places in member.index)
    return torch.tensor([[*places, *[nowhere] * (width - len(places))] for places in member.index], dtype=torch.int64)


def member_of(group: ChannelGroup, name: str | None, dim: int | None) -> Member | None:
    """The group's member on one dimension of a tensor."""
    return next((member for member in group.members if member.name == name and member.dim == dim), None)


def producer_rows(group: ChannelGroup, layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    """Filters with their bias last, (N, r, d + 1); absent rows are zero."""
    weight = host(tensors[layer.weight]).movedim(layer.out_dim, 0)
    weight = weight.reshape(len(weight), -1)
    bias = weight.new_zeros(len(weight)) if layer.bias is None else host(tensors[layer.bias]).reshape(-1)
    if len(bias) != len(weight):  # a transposed convolution with groups has as many biases as outputs
        raise NoCoresetForm("its bias has another length than its filters")
    member = member_of(group, layer.weight, layer.out_dim)
    assert member is not None
    rows = torch.cat([weight, bias[:, None]], dim=1)
    return _padded(rows, 0)[positions(member, len(rows))]


def consumer_slices(group: ChannelGroup, layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    """The consumer's weights of every class, (O, N, q, k)."""
    member = member_of(group, layer.weight, layer.in_dim)
    assert member is not None
    weight = consumer_matrix(layer, tensors)
    return _padded(weight, 1)[:, positions(member, weight.shape[1])]


def consumer_matrix(layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    """A weight as (O, I, k)."""
    assert layer.in_dim is not None
    weight = host(tensors[layer.weight]).movedim((layer.out_dim, layer.in_dim), (0, 1))
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
    deviation = (host(tensors[norm.running_var]) + norm.eps).sqrt()
    return norm_weight(norm, tensors, len(deviation)) / deviation


def norm_weight(norm: Norm, tensors: Mapping[str, Tensor], channels: int) -> Tensor:
    """The weight gamma of a BatchNorm, ones without."""
    return torch.ones(channels, dtype=torch.float64) if norm.weight is None else host(tensors[norm.weight])


def norm_shift(norm: Norm, tensors: Mapping[str, Tensor], channels: int) -> Tensor:
    """The bias beta of a BatchNorm, zeros without."""
    return torch.zeros(channels, dtype=torch.float64) if norm.bias is None else host(tensors[norm.bias])


def per_class(group: ChannelGroup, values: Tensor, norm: Norm) -> Tensor:
    """What a BatchNorm holds for every class, (N, r)."""
    member = member_of(group, norm.running_mean, 0)
    if member is None:
        raise NoCoresetForm("its BatchNorm's channels are not its own")
    return _padded(values, 0)[positions(member, len(values))]


def fold(group: ChannelGroup, rows: Tensor, norm: Norm, tensors: Mapping[str, Tensor]) -> Tensor:
    """Rows (N, r, d + 1) of the BatchNorm of what they make: scaled, and shifted in the bias column."""
    assert norm.running_mean is not None
    mean = host(tensors[norm.running_mean])
    scale = per_class(group, norm_scale(norm, tensors), norm)
    shift = per_class(group, norm_shift(norm, tensors, len(mean)), norm)
    folded = rows * scale[:, :, None]
    folded[:, :, -1] += shift - scale * per_class(group, mean, norm)
    return folded


def _padded(tensor: Tensor, dim: int) -> Tensor:
    """One more zero position along ``dim``, for classes with fewer positions than others."""
    shape = list(tensor.shape)
    shape[dim] = 1
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=dim)
