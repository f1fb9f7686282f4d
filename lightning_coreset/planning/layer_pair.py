"""The coreset form of a group: one layer's channels, one activation, consumers that add them up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_coreset.coreset import Activation, find_activation
from lightning_coreset.planning.layout import (
    NoCoresetForm,
    by_class,
    consumer_slices,
    consumer_view,
    filter_view,
    fold_batch_norm,
    member_at,
    norm_scale,
    norm_shift,
    per_class,
    producer_bias,
    producer_filters,
    to_cpu_float64,
)
from lightning_coreset.planning.norms import in_single_precision, kernel_squares, largest_slice_norms, row_norms
from lightning_coreset.planning.selection import column_factors
from lightning_coreset.structure import ChannelGroup, Norm, Path, Step, StepKind


@dataclass(frozen=True, eq=False)
class LayerPair:
    """One producer, one activation, one consumer; shapes as in ``layout``.

    A channel is the activation of ``scale * (filter . x) + shift``: BatchNorms before it are folded in. Matrices of the
    size of a weight are only made when they are asked for.

    Attributes:
        group: The group.
        path: The path of the group.
        tensors: Parameters and buffers by name, as the groups before left them.
        scale: Of the rows of the producer, (N, r).
        shift: Of what they make, (N, r).
        activation: What stands between.
        before: The BatchNorm before the activation, if there is just one.
        behind: BatchNorms behind the activation.
    """

    group: ChannelGroup
    path: Path
    tensors: Mapping[str, Tensor]
    scale: Tensor
    shift: Tensor
    activation: Activation
    before: Norm | None
    behind: tuple[Norm, ...]

    @cached_property
    def rows(self) -> Tensor:
        """What makes the channels, the shift last, (N, r, d + 1)."""
        filters = producer_filters(self.group, self.path.producer, self.tensors)
        return torch.cat([filters * self.scale[:, :, None], self.shift[:, :, None]], dim=2)

    @property
    def producers(self) -> Tensor:
        """Of every class the row of largest norm, (N, d + 1)."""
        largest = self.rows.norm(dim=2).argmax(dim=1)
        return self.rows[torch.arange(len(self.rows)), largest]

    @cached_property
    def consumers(self) -> Tensor:
        """What reads the channels, (O, N, q, k)."""
        return consumer_slices(self.group, self.path.consumer, self.tensors)

    @property
    def outputs(self) -> int:
        """How many outputs the consumer has, O."""
        return self.tensors[self.path.consumer.weight].shape[self.path.consumer.out_dim]

    @property
    def coordinates(self) -> int:
        """Outputs times positions of the kernel, and of a channel behind a Flatten: O q k."""
        consumer = self.path.consumer
        positions = member_at(self.group, consumer.weight, consumer.in_dim).positions.shape[1]
        return self.outputs * positions * consumer_view(consumer, self.tensors).shape[2]

    def producer_norms(self, filters: Tensor | None = None) -> Tensor:
        """The norms of ``producers``, (N,); those of the producer's filters, (rows,), may be known."""
        producer = self.path.producer
        filters = row_norms(filter_view(producer, self.tensors)) if filters is None else filters
        member = member_at(self.group, producer.weight, producer.out_dim)
        return torch.hypot(by_class(filters, member) * self.scale, self.shift).amax(dim=1)

    def consumer_norms(self, scale: Tensor | None = None) -> Tensor:
        """Of every class the largest norm over the outputs, which may be scaled (O,), of what reads it, (N,)."""
        consumer = self.path.consumer
        member = member_at(self.group, consumer.weight, consumer.in_dim)
        return largest_slice_norms(consumer_view(consumer, self.tensors), member, scale, self.squares)

    @cached_property
    def squares(self) -> Tensor | None:
        """The consumer's ``kernel_squares``, (O, I), if its kernel has several positions."""
        weight = consumer_view(self.path.consumer, self.tensors)
        return kernel_squares(weight) if weight.shape[2] > 1 else None

    def filters_left(self, factor: Tensor) -> Tensor | None:
        """The norms of the consumer's own filters, float64 (O,), after this group's classes were multiplied, (N,).

        ``None`` where that cannot be told without another look at the weight.
        """
        consumer = self.path.consumer
        member = member_at(self.group, consumer.weight, consumer.in_dim)
        if self.squares is None or consumer.groups != 1 or member.total != self.squares.shape[1]:
            return None
        factors = column_factors(member, factor, self.squares.shape[1])
        norms = (self.squares @ factors.square().to(self.squares.dtype)).sqrt().double()
        return norms if in_single_precision(norms) else None


def layer_pairs(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> list[LayerPair]:
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


def single_channel_pairs(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> list[LayerPair]:
    """The forms of a group each of whose classes is one channel that every output of its consumers may read.

    Raises:
        NoCoresetForm: If the group has no coreset form, or a grouped convolution makes or reads its channels.
    """
    forms = layer_pairs(group, tensors)
    if any(form.shift.shape[1] != 1 for form in forms):
        raise NoCoresetForm("several channels of a grouped convolution go together")
    if any(form.path.consumer.groups != 1 for form in forms):
        raise NoCoresetForm("a grouped convolution reads its channels")
    return forms


def _path_form(group: ChannelGroup, path: Path, tensors: Mapping[str, Tensor]) -> LayerPair:
    before, activation, behind = _read(path.steps)
    if path.producer.in_dim is None:
        raise NoCoresetForm("an embedding makes its channels")
    for layer in (path.producer, path.consumer):
        if {layer.in_dim, layer.out_dim} != {0, 1}:
            raise NoCoresetForm(f"{layer.weight} is a stack of matrices")
    shift = producer_bias(group, path.producer, tensors)
    scale = torch.ones_like(shift)
    for norm in before:
        scale, shift = fold_batch_norm(group, scale, shift, norm, tensors)
    only = before[0] if len(before) == 1 else None
    return LayerPair(group, path, tensors, scale, shift, activation, only, tuple(behind))


def _read(steps: Sequence[Step]) -> tuple[list[Norm], Activation, list[Norm]]:
    """BatchNorms before the one activation, the activation, BatchNorms behind it."""
    activation: Activation | None = None
    before: list[Norm] = []
    behind: list[Norm] = []
    for step in steps:
        if step.op == StepKind.BATCH_NORM and step.norm is not None:
            if step.norm.running_mean is None:
                raise NoCoresetForm("its BatchNorm keeps no running statistics")
            (before if activation is None else behind).append(step.norm)
        elif step.op == StepKind.MAX_POOL:
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


def weighted_norms(form: LayerPair, tensors: Mapping[str, Tensor]) -> Tensor:
    """The consumers' norms as selection sees them, (N,): with BatchNorms behind the activation and the consumer."""
    norms = form.consumer_norms(output_scale(form, tensors))
    for norm in form.behind:
        norms = norms * per_class(form.group, norm_scale(norm, tensors).abs(), norm).amax(dim=1)
    return norms


def output_scale(form: LayerPair, tensors: Mapping[str, Tensor]) -> Tensor:
    """|gamma_o| / sqrt(var_o + eps) of the BatchNorm that follows the consumer, (O,); ones without."""
    norm = norm_of_outputs(form, tensors)
    if norm is not None and norm.running_var is not None:
        return norm_scale(norm, tensors).abs()
    return torch.ones(form.outputs, dtype=torch.float64)


def norm_of_outputs(form: LayerPair, tensors: Mapping[str, Tensor]) -> Norm | None:
    """The BatchNorm that follows the consumer, if it normalises its outputs and nothing else.

    Behind a concatenation it has more channels than the consumer has outputs, and where they lie is not known here.
    """
    norm = form.path.consumer.norm
    if norm is None or norm.running_mean is None:
        return None
    return norm if len(tensors[norm.running_mean]) == form.outputs else None


def affine_behind(group: ChannelGroup, form: LayerPair, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Scale and offset, both (N,), that BatchNorms behind the activation apply to the channels.

    Raises:
        NoCoresetForm: If a BatchNorm behind a Flatten treats the positions of one channel differently.
    """
    scale, offset = torch.ones(group.size, dtype=torch.float64), torch.zeros(group.size, dtype=torch.float64)
    for norm in form.behind:
        assert norm.running_mean is not None
        mean = to_cpu_float64(tensors[norm.running_mean])
        parts = (norm_scale(norm, tensors), mean, norm_shift(norm, tensors, len(mean)))
        a, centre, shift = (per_class(group, part, norm) for part in parts)
        if a.shape[1] != 1:
            raise NoCoresetForm("a BatchNorm behind its activation treats the positions of a channel differently")
        scale, offset = a[:, 0] * scale, a[:, 0] * (offset - centre[:, 0]) + shift[:, 0]
    return scale, offset
