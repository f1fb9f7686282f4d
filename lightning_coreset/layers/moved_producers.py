"""Producers that move: new rows for the channels that stay, in the weights, biases and BatchNorms that make them.

Shapes: N channels, m kept, d inputs of a producer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_coreset.coreset import Refinement
from lightning_coreset.layers.group_view import GroupView, NoCoresetForm
from lightning_coreset.layers.layer_pair import LayerPair, to_cpu_float64
from lightning_coreset.layers.pairing import single_channel_pairs

_EPSILON = 1e-8


def movable_pair(view: GroupView) -> LayerPair | None:
    """The pair that makes a group's channels, if its rows may become combinations of each other, else ``None``.

    Nothing but the producer and one BatchNorm may hold values of the channels, with a constant to set; and consumers
    read this group alone, all of them through the same activation.
    """
    try:
        pairs = single_channel_pairs(view)
    except NoCoresetForm:
        return None
    pair, norm = pairs[0], pairs[0].before
    made_by = {pair.path.producer.weight, pair.path.producer.bias, *_norm_tensors(pair)}
    held_elsewhere = any(one.role != "consumer" and one.name not in made_by for one in view.group.members)
    seen_alike = len({one.activation for one in pairs}) == 1 and all(one.whole_input is not None for one in pairs)
    has_constant = pair.path.producer.bias is not None if norm is None else None not in (norm.weight, norm.bias)
    return pair if seen_alike and has_constant and not held_elsewhere and not view.group.weight_norms else None


def _norm_tensors(pair: LayerPair) -> tuple[str | None, ...]:
    norm = pair.before
    return () if norm is None else (norm.weight, norm.bias, norm.running_mean, norm.running_var)


@dataclass(frozen=True, eq=False)
class MovedProducers:
    """The rows that a refinement makes of a producer's rows as they are now.

    Attributes:
        pair: The pair, with the tensors as they are now.
        count: How many channels stay, m.
        rows: New values by tensor name: for the m channels that stay, along the dimension that holds them.
    """

    pair: LayerPair
    count: int
    rows: Mapping[str, Tensor]

    @classmethod
    def of(cls, pair: LayerPair, refinement: Refinement, mean: Tensor, covariance: Tensor) -> MovedProducers:
        """Combine the rows of a producer.

        Args:
            pair: The pair.
            refinement: How.
            mean: Of the pre-activations, (N,).
            covariance: (N, N).
        """
        producer, norm, combination = pair.path.producer, pair.before, refinement.combination
        rows = combination @ pair.rows[:, 0]  # (m, d + 1), BatchNorms folded in
        weight = pair.view.tensors[producer.weight]
        moved = weight.movedim(producer.out_dim, 0)
        filters = rows[:, :-1].reshape(len(combination), *moved.shape[1:]).movedim(0, producer.out_dim)
        constant = rows[:, -1] + refinement.shift
        if norm is None:
            assert producer.bias is not None
            return cls(pair, len(rows), {producer.weight: filters, producer.bias: constant})
        assert norm.weight is not None and norm.bias is not None  # noqa: PT018 - `movable_pair` checked
        assert norm.running_mean is not None and norm.running_var is not None  # noqa: PT018
        shift = combination @ mean.double() + refinement.shift
        variance = ((combination @ covariance.double()) * combination).sum(dim=1).clamp_min(_EPSILON)
        values = {
            producer.weight: filters,
            norm.bias: shift,
            norm.running_mean: shift - constant,
            norm.running_var: (variance - norm.eps).clamp_min(_EPSILON),
        }
        values[norm.weight] = (values[norm.running_var] + norm.eps).sqrt()
        if producer.bias is not None:
            values[producer.bias] = torch.zeros_like(constant)
        return cls(pair, len(rows), values)

    def in_place_of(self, kept: Tensor) -> dict[str, Tensor]:
        """New contents of whole tensors, in which the channels that stay have their new rows."""
        updates = {}
        for name, values in self.rows.items():
            dim, positions = self._at(name)
            updates[name] = to_cpu_float64(self.pair.view.tensors[name]).index_copy(dim, positions[kept], values)
        return updates

    def beside(self, so_far: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a network that makes both: all channels as they are, and behind them those that moved.

        Args:
            so_far: Tensors of that network, as other groups made them: what reads another group that moved is wider,
                with zeros for what is behind.
        """
        wide = {}
        for name, values in self.rows.items():
            dim, _ = self._at(name)
            tensor = so_far.get(name, self.pair.view.tensors[name].detach())
            room = _zeros_like(tensor, dim, self.count)
            room[tuple(map(slice, values.shape))] = values.to(tensor)
            wide[name] = torch.cat([tensor, room], dim=dim)
        return wide

    def unread(self, pairs: Sequence[LayerPair], so_far: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The consumers' tensors in that network: they read nothing of what is behind.

        Args:
            pairs: The consumers.
            so_far: Tensors of that network, as other groups made them.
        """
        wide = {}
        for pair in pairs:
            consumer, places = pair.path.consumer, pair.whole_input
            assert consumer.in_dim is not None and places is not None  # noqa: PT018
            tensor = so_far.get(consumer.weight, pair.view.tensors[consumer.weight].detach())
            room = _zeros_like(tensor, consumer.in_dim, places.shape[1] * self.count)
            wide[consumer.weight] = torch.cat([tensor, room], dim=consumer.in_dim)
        return wide

    def _at(self, name: str) -> tuple[int, Tensor]:
        """The dimension of a tensor that holds the channels, and their positions (N,)."""
        producer = self.pair.path.producer
        dim = producer.out_dim if name == producer.weight else 0
        member = self.pair.view.group.member_at(name, dim)
        assert member is not None
        return dim, member.positions[:, 0]


def _zeros_like(tensor: Tensor, dim: int, length: int) -> Tensor:
    """Zeros of another length along one dimension."""
    return tensor.new_zeros([*tensor.shape[:dim], length, *tensor.shape[dim + 1 :]])
