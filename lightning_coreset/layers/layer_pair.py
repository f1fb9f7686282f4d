"""The coreset form of a group: one layer's channels, one activation, a consumer that adds them up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lightning_coreset.coreset import Activation
from lightning_coreset.layers.group_view import GroupView, NoCoresetForm
from lightning_coreset.layers.norms import in_single_precision, kernel_squares, largest_slice_norms, row_norms
from lightning_coreset.structure import Layer, Member, Norm, Path, StepKind


@dataclass(frozen=True, eq=False)
class LayerPair:
    """One producer, one activation, one consumer; shapes as in ``group_view``.

    A channel is the activation of ``scale * (filter . x) + shift``: BatchNorms before it are folded in. Matrices of the
    size of a weight are only made when they are asked for.

    Attributes:
        view: The group with its tensors.
        path: The path of the group.
        rows_at: Where the channels lie in the producer.
        columns_at: Where they lie in the consumer.
        scale: Of the filters of the producer, (N, r).
        shift: What is added to them, (N, r).
        activation: The activation between the two; the identity without one.
        before: The BatchNorm before the activation, if there is just one.
        behind: Scale and offset, both (N, q), that BatchNorms behind the activation apply to the channels; q is 1 but
            for a BatchNorm behind a Flatten.
        outputs: How many outputs the consumer has, O.
        output_norm: The BatchNorm that follows the consumer, if it normalises its outputs and nothing else.
        output_scale: Its abs(gamma) / sqrt(var + eps), (O,); ones without.
        constant_target: The tensor that can take a constant added to the consumer's outputs, with its sign.
        whole_input: The positions of every channel in the consumer's input, (N, q), if this group is all of it.
    """

    view: GroupView
    path: Path
    rows_at: Member
    columns_at: Member
    scale: Tensor
    shift: Tensor
    activation: Activation
    before: Norm | None
    behind: tuple[Tensor, Tensor]
    outputs: int
    output_norm: Norm | None
    output_scale: Tensor
    constant_target: tuple[str, float] | None
    whole_input: Tensor | None

    @cached_property
    def rows(self) -> Tensor:
        """The rows that compute the channels, the shift last, float64 (N, r, d + 1); absent rows are zero."""
        filters = self.rows_at.by_class(to_cpu_float64(filter_view(self.path.producer, self.view.tensors)))
        return torch.cat([filters * self.scale[:, :, None], self.shift[:, :, None]], dim=2)

    @property
    def producers(self) -> Tensor:
        """The row of largest norm of every channel, (N, d + 1)."""
        largest = self.rows.norm(dim=2).argmax(dim=1)
        return self.rows[torch.arange(len(self.rows)), largest]

    @cached_property
    def consumers(self) -> Tensor:
        """The weights that read the channels, float64 (O, N, q, k)."""
        return self.columns_at.by_class(consumer_matrix(self.path.consumer, self.view.tensors), dim=1)

    @property
    def affine_behind(self) -> tuple[Tensor, Tensor]:
        """Scale and offset, both (N,), of BatchNorms behind the activation.

        Raises:
            NoCoresetForm: If a BatchNorm behind a Flatten treats the positions of one channel differently.
        """
        scale, offset = self.behind
        if scale.shape[1] != 1:
            raise NoCoresetForm("a BatchNorm behind its activation treats the positions of a channel differently")
        return scale[:, 0], offset[:, 0]

    @property
    def coordinates(self) -> int:
        """Outputs times positions of the kernel, and of a channel behind a Flatten (O q k)."""
        kernel = consumer_view(self.path.consumer, self.view.tensors).shape[2]
        return self.outputs * self.columns_at.positions.shape[1] * kernel

    @property
    def max_pooled(self) -> bool:
        """Whether a max pooling stands between, too, so that every channel may come from a position of its own."""
        return any(step.op == StepKind.MAX_POOL for step in self.path.steps)

    def producer_norms(self) -> Tensor:
        """The norms of ``producers``, (N,)."""
        known = self.view.state.filter_norms.get(self.path.producer.weight)
        filters = row_norms(filter_view(self.path.producer, self.view.tensors)) if known is None else known
        return torch.hypot(self.rows_at.by_class(filters) * self.scale, self.shift).amax(dim=1)

    def consumer_norms(self, scale: Tensor | None = None) -> Tensor:
        """For every channel the largest norm of its weights over the outputs, which may be scaled (O,); (N,)."""
        weight = consumer_view(self.path.consumer, self.view.tensors)
        return largest_slice_norms(weight, self.columns_at, scale, self._squares)

    def normalised_consumer_norms(self) -> Tensor:
        """``consumer_norms`` with the BatchNorms behind the activation and behind the consumer, (N,)."""
        return self.consumer_norms(self.output_scale) * self.behind[0].abs().amax(dim=1)

    def reweighted_filter_norms(self, factors: Tensor) -> Tensor | None:
        """The norms of the consumer's own filters, float64 (O,), once every channel is multiplied by a factor (N,).

        ``None`` where that needs another look at the weight.
        """
        squares = self._squares
        if squares is None or self.path.consumer.groups != 1 or self.columns_at.total != squares.shape[1]:
            return None
        columns = self.columns_at.at_positions(factors, squares.shape[1])
        norms = (squares @ columns.square().to(squares.dtype)).sqrt().double()
        return norms if in_single_precision(norms) else None

    @cached_property
    def _squares(self) -> Tensor | None:
        """The consumer's ``kernel_squares``, (O, I), if its kernel has several positions."""
        weight = consumer_view(self.path.consumer, self.view.tensors)
        return kernel_squares(weight) if weight.shape[2] > 1 else None

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> LayerPair:
        """The same path with other contents of the consumer's tensors; what was read of the producer stays."""
        return replace(self, view=self.view.with_tensors(tensors))


def to_cpu_float64(tensor: Tensor) -> Tensor:
    """The values in float64 on the CPU, where a plan is the same for every device."""
    return tensor.detach().to("cpu", torch.float64)


def filter_view(layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    """A weight as (outputs, d), on its device and in its precision."""
    weight = tensors[layer.weight].detach().movedim(layer.out_dim, 0)
    return weight.reshape(len(weight), -1)


def consumer_view(layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    """A weight as (O, I, k), on its device and in its precision."""
    assert layer.in_dim is not None
    weight = tensors[layer.weight].detach().movedim((layer.out_dim, layer.in_dim), (0, 1))
    return weight.reshape(*weight.shape[:2], -1)


def consumer_matrix(layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    """A weight as (O, I, k), float64 on the CPU."""
    return to_cpu_float64(consumer_view(layer, tensors))


def put_consumer(layer: Layer, matrix: Tensor, like: Tensor) -> Tensor:
    """The inverse of ``consumer_matrix``: (O, I, k) in the shape of the weight ``like``, in float64."""
    assert layer.in_dim is not None
    moved = like.movedim((layer.out_dim, layer.in_dim), (0, 1))
    return matrix.reshape(moved.shape).movedim((0, 1), (layer.out_dim, layer.in_dim))
