"""The coreset form of a group: its producers and consumers as matrices, with what stands between folded in.

Legend of shapes: N classes of the group; d + 1 inputs of a producer with its bias last; O outputs of a consumer; K
positions of one class in one output (kernel positions, times those that a Flatten makes of one channel).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_coreset.coreset import Activation, find_activation
from lightning_coreset.structure import ChannelGroup, Layer, Member, Norm, Path, Step


class NoCoresetForm(Exception):
    """A group is no sum of one layer's activated channels; the message says why, in words for a user."""


@dataclass(frozen=True, eq=False)
class PathForm:
    """One producer, one activation, one consumer.

    Attributes:
        producers: (N, d + 1), BatchNorm folded in; of a class with several channels, the row of largest norm.
        consumers: (O, N, K), scaled by BatchNorms behind the activation and behind the consumer.
        activation: What stands between.
    """

    producers: Tensor
    consumers: Tensor
    activation: Activation


def path_forms(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> list[PathForm]:
    """The coreset forms of all paths of a group.

    Args:
        group: The group.
        tensors: Parameters and buffers by qualified name, as the groups before left them.

    Raises:
        NoCoresetForm: If the group has none.
    """
    makers = {member.name for member in group.by_role("producer")}
    if len(makers) != 1:
        raise NoCoresetForm("several layers make its channels" if makers else "no layer's weight makes its channels")
    reached = {(path.consumer.weight, path.consumer.in_dim) for path in group.paths}
    for consumer in group.by_role("consumer"):
        if (consumer.name, consumer.dim) not in reached:
            raise NoCoresetForm(f"what stands before {consumer.name} is not known")
    return [_path_form(group, path, tensors) for path in group.paths]


def _path_form(group: ChannelGroup, path: Path, tensors: Mapping[str, Tensor]) -> PathForm:
    before, activation, behind = _read(path.steps)
    if path.producer.in_dim is None:
        raise NoCoresetForm("an embedding makes its channels")
    rows = _producer_rows(group, path.producer, tensors)
    for norm in before:
        rows = _fold(group, rows, norm, tensors)
    norms = rows.norm(dim=2)
    largest = norms.argmax(dim=1)
    producers = rows[torch.arange(len(rows)), largest]
    consumers = consumer_slices(group, path.consumer, tensors).double()
    for norm in behind:
        scale = _per_class(group, _norm_scale(norm, tensors), norm)
        consumers = consumers * scale.amax(dim=1)[None, :, None]
    if path.consumer.norm is not None:
        scale = _norm_scale(path.consumer.norm, tensors)
        if len(scale) == len(consumers):
            consumers = consumers * scale[:, None, None]
    return PathForm(producers, consumers, activation)


def _read(steps: Sequence[Step]) -> tuple[list[Norm], Activation, list[Norm]]:
    """BatchNorms before the one activation, the activation, BatchNorms behind it."""
    activation: Activation | None = None
    before: list[Norm] = []
    behind: list[Norm] = []
    for step in steps:
        if step.op == "batch_norm" and step.norm is not None:
            if step.norm.running_mean is None:
                raise NoCoresetForm("its BatchNorm keeps no running statistics")
            (before if activation is None else behind).append(step.norm)
        elif step.op == "max_pool":
            continue  # treated as if it commuted with the sum; an approximation
        else:
            found = find_activation(step.op, step.args)
            if found is None:
                raise NoCoresetForm(f"{step.op} stands between its producer and its consumer")
            if activation is not None:
                raise NoCoresetForm(f"two activations, {activation.name} and {step.op}, stand on one path")
            activation = found
    identity = find_activation("")
    assert identity is not None
    return before, activation or identity, behind


def _positions(member: Member, nowhere: int) -> Tensor:
    """Positions of every class along the member's dimension, (N, q), filled up with ``nowhere``."""
    width = max(len(places) for places in member.index)
    return torch.tensor([[*places, *[nowhere] * (width - len(places))] for places in member.index], dtype=torch.int64)


def _member(group: ChannelGroup, name: str | None, dim: int) -> Member | None:
    return next((member for member in group.members if member.name == name and member.dim == dim), None)


def _producer_rows(group: ChannelGroup, layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    """Filters with their bias last, float64 (N, rows of a class, d + 1); absent rows are zero."""
    weight = tensors[layer.weight].detach().double().movedim(layer.out_dim, 0).flatten(1)
    bias = weight.new_zeros(len(weight)) if layer.bias is None else tensors[layer.bias].detach().double().reshape(-1)
    bias = bias if len(bias) == len(weight) else bias.repeat(len(weight) // len(bias))
    rows = torch.cat([weight, bias[:, None]], dim=1)
    member = _member(group, layer.weight, layer.out_dim)
    assert member is not None
    padded = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
    return padded[_positions(member, len(rows)).to(rows.device)]


def _fold(group: ChannelGroup, rows: Tensor, norm: Norm, tensors: Mapping[str, Tensor]) -> Tensor:
    """Rows of ``norm(P x)``: scaled, and shifted in the bias column."""
    scale = _per_class(group, _norm_scale(norm, tensors, signed=True), norm)
    mean = _per_class(group, _double(norm.running_mean, tensors), norm)
    shift = 0.0 if norm.bias is None else _per_class(group, _double(norm.bias, tensors), norm)
    folded = rows * scale[:, :, None]
    folded[:, :, -1] += shift - scale * mean
    return folded


def _double(name: str | None, tensors: Mapping[str, Tensor]) -> Tensor:
    assert name is not None
    return tensors[name].detach().double()


def _norm_scale(norm: Norm, tensors: Mapping[str, Tensor], *, signed: bool = False) -> Tensor:
    """gamma / sqrt(var + eps) for every channel of a BatchNorm."""
    if norm.running_var is None:
        raise NoCoresetForm("a BatchNorm beside it keeps no running statistics")
    deviation = (_double(norm.running_var, tensors) + norm.eps).sqrt()
    gamma = torch.ones_like(deviation) if norm.weight is None else _double(norm.weight, tensors)
    return (gamma if signed else gamma.abs()) / deviation


def _per_class(group: ChannelGroup, values: Tensor, norm: Norm) -> Tensor:
    """What a BatchNorm holds for every class, (N, channels of the class)."""
    member = _member(group, norm.running_mean, 0)
    if member is None:
        raise NoCoresetForm("its BatchNorm's channels are not its own")
    padded = torch.cat([values, values.new_zeros(1)])
    return padded[_positions(member, len(values)).to(values.device)]


def consumer_slices(group: ChannelGroup, layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    """The consumer's weights of every class, (O, N, K)."""
    assert layer.in_dim is not None
    member = _member(group, layer.weight, layer.in_dim)
    assert member is not None
    return member_slices(tensors[layer.weight], member, layer.out_dim)


def member_slices(tensor: Tensor, member: Member, out_dim: int) -> Tensor:
    """A weight as (outputs, N, everything else), the positions of a class side by side."""
    weight = tensor.detach().movedim((out_dim, member.dim), (0, 1))
    weight = weight.reshape(*weight.shape[:2], -1)
    padded = torch.cat([weight, weight.new_zeros(len(weight), 1, weight.shape[2])], dim=1)
    positions = _positions(member, weight.shape[1]).to(weight.device)
    return padded[:, positions].flatten(2)
