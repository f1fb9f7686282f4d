"""Plain chains: a layer, perhaps a BatchNorm, an activation, perhaps pooling, and the one layer that reads it.

Shapes: N channels of the producer, m of them kept, d inputs of a filter, O outputs of the consumer, K positions of its
kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Layer = nn.Conv2d | nn.Linear
Norm = nn.BatchNorm1d | nn.BatchNorm2d
Rival = Callable[["Chain", int], None]
"""Narrows a chain in place to a number of channels."""


@dataclass(frozen=True)
class Chain:
    """A producer and its only consumer, each with the BatchNorm behind it if there is one."""

    producer: Layer
    norm: Norm | None
    consumer: Layer
    norm_behind: Norm | None

    def rows(self) -> Tensor:
        """The filters with their constants, and the BatchNorm folded in, float64 ``(N, d + 1)``."""
        weight = self.producer.weight.detach().double().flatten(1)
        bias = weight.new_zeros(len(weight)) if self.producer.bias is None else self.producer.bias.detach().double()
        if self.norm is not None:
            mean, deviation, scale, shift = statistics(self.norm)
            weight, bias = weight * (scale / deviation)[:, None], (bias - mean) * scale / deviation + shift
        return torch.cat([weight, bias[:, None]], dim=1)

    def columns(self) -> Tensor:
        """The weights of the consumer, float64 ``(O, N, K)``, also if it reads flattened images."""
        weight = self.consumer.weight.detach().double()
        return weight.reshape(len(weight), len(self.producer.weight), -1)

    def mix(self, kept: Tensor, mixture: Tensor) -> None:
        """Keep some channels, and let a mixture ``(N, m)`` of them stand for all: ``h = mixture @ h[kept]``."""
        self.narrow(kept, torch.einsum("onk,nm->omk", self.columns(), mixture))

    @torch.no_grad()
    def narrow(self, kept: Tensor, columns: Tensor) -> None:
        """Keep the filters at these positions; the consumer gets the weights ``columns``, ``(O, m, K)``."""
        for layer in (self.producer, self.norm):
            for name in ("weight", "bias", "running_mean", "running_var"):
                tensor = getattr(layer, name, None)
                if tensor is not None:
                    tensor.data = tensor.data[kept].clone()
        shape = len(columns), -1, *self.consumer.weight.shape[2:]
        self.consumer.weight.data = columns.reshape(shape).to(self.consumer.weight.dtype).contiguous()
        update_sizes(self.producer)
        update_sizes(self.consumer)
        if self.norm is not None:
            self.norm.num_features = len(kept)


def statistics(norm: Norm) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The running mean and deviation, the scale and the shift of a BatchNorm, float64 ``(N,)``."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    deviation = (norm.running_var.double() + norm.eps).sqrt()
    return norm.running_mean.double(), deviation, norm.weight.detach().double(), norm.bias.detach().double()


def update_sizes(layer: Layer) -> None:
    """Let the numbers of inputs and outputs follow the weight."""
    outputs, inputs = layer.weight.shape[:2]
    if isinstance(layer, nn.Conv2d):
        layer.out_channels, layer.in_channels = outputs, inputs
    else:
        layer.out_features, layer.in_features = outputs, inputs


def largest(norms: Tensor, size: int) -> Tensor:
    """The positions of the largest numbers, in ascending order."""
    return norms.topk(size).indices.sort().values


def find_chains(model: nn.Module, example: Tensor, producers: list[str]) -> list[Chain]:
    """The chains that start at layers with these names, each with what runs right after it.

    Whether the next layer that runs is the only reader is for the caller to know.
    """
    order: list[nn.Module] = []
    layers = [one for one in model.modules() if isinstance(one, Layer | Norm)]
    handles = [layer.register_forward_hook(lambda one, inputs, output: order.append(one)) for layer in layers]
    with torch.no_grad():
        model.eval()(example)
    for handle in handles:
        handle.remove()
    return [_chain(order, model.get_submodule(name)) for name in producers]


def _chain(order: list[nn.Module], producer: nn.Module) -> Chain:
    behind = order[order.index(producer) + 1 :]
    norm = behind.pop(0) if isinstance(behind[0], Norm) else None
    consumer, *rest = behind
    norm_behind = rest[0] if rest and isinstance(rest[0], Norm) else None
    assert isinstance(producer, Layer)
    assert isinstance(consumer, Layer)
    return Chain(producer, norm, consumer, norm_behind)


def prune_chains(rival: Rival, model: nn.Module, example: Tensor, sizes: Mapping[str, int]) -> None:
    """Narrow the chains that start at these layers in place, in the order of the network.

    Args:
        rival: Narrows one chain.
        model: The network.
        example: A small batch of inputs.
        sizes: The channels that each layer keeps, by its name.
    """
    for chain, size in zip(find_chains(model, example, [*sizes]), sizes.values(), strict=True):
        rival(chain, size)
