"""The Gaussian laws of a network's activations, without data: from BatchNorms, and carried from layer to layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt, prod

import torch
from torch import Tensor

from lightning_coreset.coreset import (
    Gaussian,
    activation_moments,
    batchnorm_preactivations,
    linear_preactivations,
    spatial_correlation,
)
from lightning_coreset.planning.layer_pair import LayerPair, affine_behind
from lightning_coreset.planning.layout import member_of, norm_shift, norm_weight, per_class
from lightning_coreset.structure import ChannelGroup

_NEIGHBOURS = 0.8
"""Correlation of neighbouring pixels in a patch, as measured on images."""


@dataclass(frozen=True, eq=False)
class ActivationMoments:
    """First and second moments of a layer's input channels.

    Attributes:
        mean: (C,).
        covariance: (C, C), centred.
        positions: How many inputs of the layer one channel becomes, beside its kernel.
    """

    mean: Tensor
    covariance: Tensor
    positions: int


def moments(
    group: ChannelGroup, form: LayerPair, tensors: Mapping[str, Tensor], inputs: Mapping[str, ActivationMoments]
) -> tuple[Tensor, Tensor]:
    """Mean (N,) and centred covariance (N, N) of the channels as their consumer sees them.

    Where a BatchNorm precedes the activation, its weight and bias are the deviations and means that training left in
    the model; elsewhere the law of the layer's input decides: that of the layer before if it is known, else a standard
    Gaussian.
    """
    found = activation_moments(form.activation, _law(group, form, tensors, inputs))
    mean, covariance = found.mean, found.covariance
    scale, offset = affine_behind(group, form, tensors)
    return scale * mean + offset, covariance * (scale[:, None] * scale).to(covariance.dtype)


def second_moment(mean: Tensor, covariance: Tensor) -> Tensor:
    """The uncentred second moment."""
    centre = mean.to(covariance.dtype)
    return torch.addr(covariance, centre, centre)


def _law(
    group: ChannelGroup, form: LayerPair, tensors: Mapping[str, Tensor], inputs: Mapping[str, ActivationMoments]
) -> Gaussian:
    producers = form.rows[:, 0]
    kernel = tuple(tensors[form.path.producer.weight].shape[2:])
    known = inputs.get(form.path.producer.weight)
    mean, covariance = _patch(producers.shape[1] - 1, kernel, known)
    if form.before is None or form.before.running_var is None:
        return linear_preactivations(producers, mean, covariance)
    count = len(tensors[form.before.running_var])
    shift = per_class(group, norm_shift(form.before, tensors, count), form.before)[:, 0]
    scale = per_class(group, norm_weight(form.before, tensors, count), form.before)[:, 0]
    return batchnorm_preactivations(producers, shift, scale, covariance)


def _patch(
    inputs: int, kernel: tuple[int, ...], known: ActivationMoments | None
) -> tuple[Tensor | None, float | tuple[Tensor, Tensor]]:
    """Mean and covariance of a layer's flattened input: channels times positions."""
    places = prod(kernel) * (known.positions if known is not None else 1)
    if known is None or len(known.mean) * places != inputs:
        if prod(kernel) == 1:
            return None, 1.0
        channels = torch.eye(inputs // prod(kernel), dtype=torch.float64)
        return None, (channels, spatial_correlation(kernel, _NEIGHBOURS))
    if known.positions > 1:  # behind a Flatten: the map of one channel, taken for square where it can be
        side = isqrt(known.positions)
        grid = (side, side) if side * side == known.positions else (known.positions,)
        return known.mean, (known.covariance, spatial_correlation(grid, _NEIGHBOURS))
    return known.mean, (known.covariance, spatial_correlation(kernel or (1,), _NEIGHBOURS))


def carried(
    group: ChannelGroup, form: LayerPair, tensors: Mapping[str, Tensor], mean: Tensor, covariance: Tensor
) -> ActivationMoments | None:
    """The law of the consumer's input, if this group is all of it."""
    places = whole_input(group, form, tensors)
    if places is None:
        return None
    order = places[:, 0].argsort()
    return ActivationMoments(mean[order], covariance[order][:, order], places.shape[1])


def whole_input(group: ChannelGroup, form: LayerPair, tensors: Mapping[str, Tensor]) -> Tensor | None:
    """The positions of every class in the consumer's input, (N, q), if this group is all of it."""
    layer = form.path.consumer
    member = member_of(group, layer.weight, layer.in_dim)
    if member is None or layer.groups != 1:
        return None
    places = member.positions
    per_channel = places.shape[1]
    whole = form.consumers.shape[1] * per_channel
    expected = torch.arange(whole).reshape(-1, per_channel)
    order = places[:, 0].argsort()
    assert layer.in_dim is not None
    if tensors[layer.weight].shape[layer.in_dim] != whole or not torch.equal(places[order], expected):
        return None
    return places
