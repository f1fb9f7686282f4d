"""Read a group as pairs of layers, or say why it is not a sum of activated channels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_coreset.coreset import Activation, find_activation, written_out_activation
from lightning_coreset.layers.group_view import GroupView, NoCoresetForm
from lightning_coreset.layers.layer_pair import LayerPair, to_cpu_float64
from lightning_coreset.structure import Layer, Member, Norm, Path, Step, StepKind


def layer_pairs(view: GroupView) -> tuple[LayerPair, ...]:
    """A group as a sum of activated channels: a producer, an activation and a consumer for each of its paths.

    Raises:
        NoCoresetForm: If it is no such sum, with the reason.
    """
    group = view.group
    if group.normalized:  # each then depends on all the others, whatever its paths look like
        raise NoCoresetForm("its channels are normalised by their own statistics")
    makers = {member.name for member in group.by_role("producer")}
    if len(makers) != 1:
        raise NoCoresetForm("several layers make its channels" if makers else "no layer's weight makes its channels")
    reached = {(path.consumer.weight, path.consumer.in_dim) for path in group.paths}
    if not reached:
        raise NoCoresetForm("no layer reads its channels, which only meet each other")
    for consumer in group.by_role("consumer"):
        if (consumer.name, consumer.dim) not in reached:
            raise NoCoresetForm(f"what stands before {consumer.name} is not known")
    return tuple(_layer_pair(view, path) for path in group.paths)


def check_positions(pairs: Sequence[LayerPair]) -> None:
    """Raise ``NoCoresetForm`` if positions are added up with unknown weights: the error of one says nothing then."""
    for pair in pairs:
        if any(step.op == StepKind.POSITIONS and step.args == (None,) for step in pair.path.steps):
            raise NoCoresetForm("its positions are added up with weights that are not known")


def check_ranges(pairs: Sequence[LayerPair], input_radius: float) -> None:
    """Raise ``NoCoresetForm`` unless the range of every activation is known, which a bound for all inputs needs.

    Args:
        pairs: The pairs of a group.
        input_radius: The radius of the ball of inputs.
    """
    for pair in pairs:
        activation = pair.activation
        if activation.turning_points is None:
            raise NoCoresetForm(f"the turning points of its activation {activation.name} are not known")
        if math.isfinite(activation.checked):
            largest = float(pair.producer_norms().max()) * math.sqrt(input_radius**2 + 1)
            if largest > activation.checked:
                raise NoCoresetForm(f"inputs may leave the range in which its activation {activation.name} was checked")


def single_channel_pairs(view: GroupView) -> tuple[LayerPair, ...]:
    """:func:`layer_pairs` of a group of single channels, each of which every output of its consumers may read.

    Raises:
        NoCoresetForm: Also if a grouped convolution computes or reads the channels.
    """
    pairs = layer_pairs(view)
    if any(pair.shift.shape[1] != 1 for pair in pairs):
        raise NoCoresetForm("several channels of a grouped convolution go together")
    if any(pair.path.consumer.groups != 1 for pair in pairs):
        raise NoCoresetForm("a grouped convolution reads its channels")
    return pairs


def _layer_pair(view: GroupView, path: Path) -> LayerPair:
    producer, consumer = path.producer, path.consumer
    before, activation, behind = _split_at_activation(path.steps)
    if producer.in_dim is None:
        raise NoCoresetForm("an embedding makes its channels")
    for layer in (producer, consumer):
        if {layer.in_dim, layer.out_dim} != {0, 1}:
            raise NoCoresetForm(f"{layer.weight} is a stack of matrices")
    rows_at = view.group.member_at(producer.weight, producer.out_dim)
    columns_at = view.group.member_at(consumer.weight, consumer.in_dim)
    assert rows_at is not None
    assert columns_at is not None
    shift = _biases(view, producer, rows_at)
    outputs = view.tensors[consumer.weight].shape[consumer.out_dim]
    norm = norm_of_outputs(view, consumer, outputs)
    scale, shift = _fold(view, before, torch.ones_like(shift), shift)
    return LayerPair(
        view,
        path,
        rows_at,
        columns_at,
        scale,
        shift,
        activation,
        before=before[0] if len(before) == 1 and isinstance(before[0], Norm) else None,
        behind=_fold(view, behind, torch.ones_like(shift[:, :1]), torch.zeros_like(shift[:, :1])),
        outputs=outputs,
        output_norm=norm,
        output_scale=output_scale(view, norm, outputs),
        constant_target=constant_target(view, consumer, outputs, norm),
        whole_input=_whole_input(view, consumer, columns_at),
    )


def _split_at_activation(steps: Sequence[Step]) -> tuple[list[Norm | float], Activation, list[Norm | float]]:
    """What stands before the one activation, the activation, and what stands behind it: BatchNorms and factors.

    Positions that are added up with weights which are not negative are, as far as bounds go, one position times the sum
    of the weights: their average lies between them.
    """
    activation: Activation | None = None
    before: list[Norm | float] = []
    behind: list[Norm | float] = []
    for step in steps:
        if step.op == StepKind.BATCH_NORM and step.norm is not None:
            if step.norm.running_mean is None:
                raise NoCoresetForm("its BatchNorm keeps no running statistics")
            (before if activation is None else behind).append(step.norm)
        elif step.op == StepKind.POSITIONS:
            (gain,) = step.args
            if isinstance(gain, int | float):
                (before if activation is None else behind).append(gain)
        elif step.op == StepKind.MAX_POOL:
            continue  # treated as if it commuted with the sum; an approximation
        else:
            found = _activation(step)
            if activation is not None:
                raise NoCoresetForm(f"two activations, {activation.name} and {step.op}, stand on one path")
            activation = found
    identity = find_activation("")
    assert identity is not None
    return before, activation or identity, behind


def _activation(step: Step) -> Activation:
    found = find_activation(step.op, step.args)
    if found is None and step.expression is not None:
        found = written_out_activation(step.expression)
        if found is None:
            raise NoCoresetForm(f"its activation {step.expression} is not known to be finite and continuous")
    if found is None:
        raise NoCoresetForm(f"{step.op} stands between its producer and its consumer")
    return found


@dataclass(frozen=True, eq=False)
class BatchNormValues:
    """What a BatchNorm holds, float64 (channels,) each: it maps z to ``gain * (z - mean) + bias``.

    Attributes:
        weight: Gamma, ones without.
        bias: Beta, zeros without.
        mean: The running mean.
        gain: ``gamma / sqrt(var + eps)``.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    gain: Tensor

    @classmethod
    def of(cls, norm: Norm, tensors: Mapping[str, Tensor]) -> BatchNormValues:
        """Read a BatchNorm's tensors.

        Raises:
            NoCoresetForm: If it keeps no running statistics.
        """
        if norm.running_mean is None or norm.running_var is None:
            raise NoCoresetForm("a BatchNorm beside it keeps no running statistics")
        mean = to_cpu_float64(tensors[norm.running_mean])
        deviation = (to_cpu_float64(tensors[norm.running_var]) + norm.eps).sqrt()
        weight = torch.ones_like(mean) if norm.weight is None else to_cpu_float64(tensors[norm.weight])
        bias = torch.zeros_like(mean) if norm.bias is None else to_cpu_float64(tensors[norm.bias])
        return cls(weight, bias, mean, weight / deviation)


def per_channel(view: GroupView, values: Tensor, norm: Norm) -> Tensor:
    """What a BatchNorm holds for every channel of the group, (N, r).

    Raises:
        NoCoresetForm: If the BatchNorm's channels are not the group's.
    """
    member = view.group.member_at(norm.running_mean, 0)
    if member is None:
        raise NoCoresetForm("its BatchNorm's channels are not its own")
    return member.by_class(values)


def _fold(view: GroupView, maps: Sequence[Norm | float], scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """An affine map ``z -> scale z + shift``, both (N, r), with BatchNorms and factors behind it."""
    for one in maps:
        if not isinstance(one, Norm):
            scale, shift = one * scale, one * shift
            continue
        values = BatchNormValues.of(one, view.tensors)
        gain, mean, bias = (per_channel(view, part, one) for part in (values.gain, values.mean, values.bias))
        scale, shift = gain * scale, gain * (shift - mean) + bias
    return scale, shift


def _biases(view: GroupView, producer: Layer, rows_at: Member) -> Tensor:
    """The bias of every filter, float64 (N, r); zeros without."""
    outputs = rows_at.length or view.tensors[producer.weight].shape[producer.out_dim]
    if producer.bias is None:
        return rows_at.by_class(torch.zeros(outputs, dtype=torch.float64))
    bias = to_cpu_float64(view.tensors[producer.bias]).reshape(-1)
    if len(bias) != outputs:  # a transposed convolution with groups has as many biases as outputs
        raise NoCoresetForm("its bias has another length than its filters")
    return rows_at.by_class(bias)


def norm_of_outputs(view: GroupView, consumer: Layer, outputs: int) -> Norm | None:
    """The BatchNorm behind the consumer.

    Behind a concatenation it has more channels than the consumer has outputs, and where they lie is not known here.
    """
    norm = consumer.norm
    if norm is None or norm.running_mean is None:
        return None
    return norm if len(view.tensors[norm.running_mean]) == outputs else None


def output_scale(view: GroupView, norm: Norm | None, outputs: int) -> Tensor:
    """The gain of the BatchNorm behind a consumer, (O,); ones without."""
    if norm is None or norm.running_var is None:
        return torch.ones(outputs, dtype=torch.float64)
    return BatchNormValues.of(norm, view.tensors).gain.abs()


def constant_target(view: GroupView, consumer: Layer, outputs: int, norm: Norm | None) -> tuple[str, float] | None:
    """The tensor that can take a constant added to a consumer's outputs, with its sign."""
    if consumer.bias is not None and view.tensors[consumer.bias].numel() == outputs:
        return consumer.bias, 1.0
    return None if norm is None or norm.running_mean is None else (norm.running_mean, -1.0)


def _whole_input(view: GroupView, consumer: Layer, columns_at: Member) -> Tensor | None:
    assert consumer.in_dim is not None
    inputs = view.tensors[consumer.weight].shape[consumer.in_dim]
    if consumer.groups != 1 or inputs != columns_at.positions.numel():
        return None
    places = columns_at.positions
    if columns_at.one_each:
        return places
    expected = torch.arange(inputs).reshape(places.shape)
    return places if torch.equal(places[places[:, 0].argsort()], expected) else None
