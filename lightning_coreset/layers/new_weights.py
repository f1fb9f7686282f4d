"""New consumers, biases and statistics for fewer channels.

Shapes: N channels, m kept; O outputs of a consumer, q inputs that one channel becomes, k kernel positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_coreset.coreset import spatial_correlation, variance_ratios
from lightning_coreset.coreset.least_squares import others
from lightning_coreset.layers.consumer_set import ConsumerSet
from lightning_coreset.layers.group_view import NoCoresetForm
from lightning_coreset.layers.layer_pair import LayerPair, consumer_matrix, put_consumer, to_cpu_float64

_OUTPUT_NEIGHBOURS = 0.7
"""Correlation of neighbouring activations behind an activation function, for the variance of a convolution's output."""


def write_updates(readers: ConsumerSet, kept: Tensor, mix: Tensor, updates: dict[str, Tensor]) -> None:
    """Add new consumers, biases and statistics to ``updates``, by name.

    Args:
        readers: The consumers.
        kept: The channels that stay, (m,).
        mix: How the kept channels replace all of them: ``channels ~ mix @ channels[kept]``, (N, m).
        updates: New contents of whole tensors.
    """
    mean = readers.mean
    offset = torch.zeros_like(mean) if readers.centre is None else mean - mix @ mean[kept]
    dropped = others(kept, len(mean))
    for pair in readers.pairs:
        # The rows of kept channels in the mixing matrix are the identity's.
        gone = pair.consumers[:, dropped]
        new = pair.consumers[:, kept] + torch.einsum("onqk,nm->omqk", gone, mix[dropped].to(gone))
        constant = torch.einsum("onqk,n->o", pair.consumers, offset.to(pair.consumers))
        updates |= {
            pair.path.consumer.weight: _with_columns(pair, kept, new),
            **_shifted(pair, constant),
            **_rescaled_variance(pair, readers.covariance, kept, new),
        }


def _rescaled_variance(pair: LayerPair, covariance: Tensor, kept: Tensor, new: Tensor) -> dict[str, Tensor]:
    """The running variance of a BatchNorm behind the consumer, whose output varies less with fewer channels."""
    norm, places = pair.output_norm, pair.whole_input
    if norm is None or norm.running_var is None or places is None or places.shape[1] > 1:
        return {}
    tensors = pair.view.tensors
    kernel = tuple(tensors[pair.path.consumer.weight].shape[2:]) or (1,)
    correlation = spatial_correlation(kernel, _OUTPUT_NEIGHBOURS)
    ratios = variance_ratios(covariance, pair.consumers.flatten(2), kept, new.flatten(2), correlation)
    return {norm.running_var: to_cpu_float64(tensors[norm.running_var]) * ratios}


def _shifted(pair: LayerPair, constant: Tensor) -> dict[str, Tensor]:
    """The tensor that takes a constant (O,) added to the consumer's outputs."""
    if pair.constant_target is None or not constant.any():
        return {}
    name, sign = pair.constant_target
    tensor = pair.view.tensors[name]
    return {name: to_cpu_float64(tensor) + sign * constant.reshape(tensor.shape)}


def _with_columns(pair: LayerPair, kept: Tensor, new: Tensor) -> Tensor:
    """The consumer's weight with new columns (O, m, q, k) for kept channels and zeros for the others."""
    layer, tensors = pair.path.consumer, pair.view.tensors
    places = pair.columns_at.positions
    if bool((places < 0).any()):
        raise NoCoresetForm("its channels become different numbers of inputs")
    matrix = consumer_matrix(layer, tensors).clone()
    matrix[:, places.reshape(-1)] = 0.0
    matrix[:, places[kept].reshape(-1)] = new.flatten(1, 2)
    return put_consumer(layer, matrix, tensors[layer.weight])
