"""The consumers of a group with the moments of the channels as they see them, in closed form and without data.

Shapes: N channels; O outputs of a consumer, q inputs that one channel becomes, k kernel positions; J = O q k.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from math import isqrt, prod

import torch
from torch import Tensor

from lightning_coreset.coreset import (
    Gaussian,
    activation_moments,
    batchnorm_preactivations,
    compress_rows,
    expected_error,
    linear_preactivations,
    spatial_correlation,
)
from lightning_coreset.layers.group_view import GroupView, NoCoresetForm
from lightning_coreset.layers.layer_pair import LayerPair
from lightning_coreset.layers.pairing import BatchNormValues, per_channel, single_channel_pairs
from lightning_coreset.layers.plan_state import ActivationMoments
from lightning_coreset.structure import Step

_NEIGHBOURS = 0.8
"""Correlation of neighbouring pixels in a patch, as measured on images."""


def consumer_sets(view: GroupView) -> list[ConsumerSet]:
    """The consumers of a group, together where the same steps precede them.

    The moments of the consumers' inputs, where this group is all of them, are added to ``view.state``.

    Raises:
        NoCoresetForm: If the group has no coreset form, or several channels make one class.
    """
    pairs = closed_form_pairs(view)
    # A bias of several consumers cannot take a constant that is meant for one of them.
    targets = Counter(pair.constant_target for pair in pairs)
    alike: dict[tuple[Step, ...], list[LayerPair]] = {}
    for pair in pairs:
        own = replace(pair, constant_target=None) if targets[pair.constant_target] > 1 else pair
        alike.setdefault(pair.path.steps, []).append(own)
    sets = [ConsumerSet(same) for same in alike.values()]
    for one in sets:
        view.state.input_moments.update(one.carried_moments())
    return sets


def closed_form_pairs(view: GroupView) -> tuple[LayerPair, ...]:
    """The pairs of a group whose moments can be derived.

    Raises:
        NoCoresetForm: If the group has no coreset form, or several channels make one class.
    """
    pairs = single_channel_pairs(view)
    readers = [pair.path.consumer.weight for pair in pairs]
    if len(set(readers)) != len(readers):
        raise NoCoresetForm("one weight reads its channels in two ways")
    return pairs


def makers_of_derived(views: Iterable[GroupView]) -> frozenset[str]:
    """The weights that make the channels of groups whose moments can be derived: those of whose inputs moments count.

    Args:
        views: The groups of a plan.
    """
    found: set[str] = set()
    for view in views:
        with suppress(NoCoresetForm):
            found |= {pair.path.producer.weight for pair in closed_form_pairs(view)}
    return frozenset(found)


def main_set(sets: Sequence[ConsumerSet]) -> ConsumerSet:
    """The consumers by which channels are chosen: those that get most of the signal."""
    return sets[0] if len(sets) == 1 else max(sets, key=lambda one: one.energy)


class ConsumerSet:
    """Consumers behind the same steps: one distribution of the channels, several weights that read them.

    Args:
        pairs: A layer pair for each consumer.

    Attributes:
        pairs: As given.
        mean: (N,).
        covariance: (N, N), centred.
        centre: The mean if every consumer can take a constant, so that the moments are centred; ``None`` otherwise.
        moment: The moments that the selection works with, (N, N).
        rows: The consumers' weights, scaled by the BatchNorms behind them and compressed, (min(J, N), N).
    """

    def __init__(self, pairs: Sequence[LayerPair]) -> None:
        self.pairs = pairs
        self.mean, self.covariance = closed_form_moments(pairs[0])
        takes_constant = all(pair.constant_target is not None for pair in pairs)
        self.centre = self.mean if pairs[0].before is not None and takes_constant else None
        self.moment = self.covariance if self.centre is not None else second_moment(self.mean, self.covariance)
        self.rows = compress_rows(torch.cat([_scaled_rows(pair) for pair in pairs]))

    @cached_property
    def energy(self) -> float:
        """The expected square of the consumers' outputs."""
        return expected_error(self.moment, self.rows)

    def carried_moments(self) -> dict[str, ActivationMoments]:
        """The moments of the consumers' inputs, by weight, where this group is all of them."""
        found = {
            pair.path.consumer.weight: carried_moments(pair, self.mean, self.covariance)
            for pair in self.pairs
            if pair.view.state.carried is None or pair.path.consumer.weight in pair.view.state.carried
        }
        return {name: moments for name, moments in found.items() if moments is not None}


def _scaled_rows(pair: LayerPair) -> Tensor:
    """Consumers (O, N, q, k) as (J, N), each output scaled by the BatchNorm behind it."""
    rows = pair.consumers.permute(0, 2, 3, 1).reshape(-1, pair.consumers.shape[1])
    return rows * pair.output_scale.repeat_interleave(len(rows) // pair.outputs)[:, None]


def closed_form_moments(pair: LayerPair) -> tuple[Tensor, Tensor]:
    """Mean (N,) and centred covariance (N, N) of the channels as their consumer sees them.

    Where a BatchNorm precedes the activation, its weight and bias are the deviations and means that training left in
    the model; elsewhere the moments of the layer's input decide: those carried from the layer before if they are known,
    else those of a standard Gaussian.
    """
    (scale, offset), rows = pair.affine_behind, pair.rows[:, 0]
    found = activation_moments(pair.activation, _preactivations(pair, rows))
    covariance = found.covariance * (scale[:, None] * scale).to(found.covariance.dtype)
    return scale * found.mean + offset, covariance


def second_moment(mean: Tensor, covariance: Tensor) -> Tensor:
    """The uncentred second moment."""
    centre = mean.to(covariance.dtype)
    return torch.addr(covariance, centre, centre)


def carried_moments(pair: LayerPair, mean: Tensor, covariance: Tensor) -> ActivationMoments | None:
    """The moments of the consumer's input, if this group is all of it."""
    places = pair.whole_input
    if places is None:
        return None
    order = places[:, 0].argsort()
    return ActivationMoments(mean[order], covariance[order][:, order], places.shape[1])


def _preactivations(pair: LayerPair, rows: Tensor) -> Gaussian:
    """The Gaussian distribution of what enters the activation, from the rows (N, d + 1)."""
    tensors = pair.view.tensors
    kernel = tuple(tensors[pair.path.producer.weight].shape[2:])
    known = pair.view.state.input_moments.get(pair.path.producer.weight)
    mean, covariance = _patch_moments(rows.shape[1] - 1, kernel, known)
    if pair.before is None:
        return linear_preactivations(rows, mean, covariance)
    values = BatchNormValues.of(pair.before, tensors)
    shift, scale = (per_channel(pair.view, part, pair.before)[:, 0] for part in (values.bias, values.weight))
    return batchnorm_preactivations(rows, shift, scale, covariance)


def _patch_moments(
    inputs: int, kernel: tuple[int, ...], known: ActivationMoments | None
) -> tuple[Tensor | None, float | tuple[Tensor, Tensor]]:
    """Mean and covariance of a layer's flattened input: channels times positions."""
    positions = prod(kernel) * (known.positions if known is not None else 1)
    if known is None or len(known.mean) * positions != inputs:
        if prod(kernel) == 1:
            return None, 1.0
        channels = torch.eye(inputs // prod(kernel), dtype=torch.float64)
        return None, (channels, spatial_correlation(kernel, _NEIGHBOURS))
    if known.positions > 1:  # behind a Flatten: the map of one channel, taken for square where it can be
        side = isqrt(known.positions)
        grid = (side, side) if side * side == known.positions else (known.positions,)
        return known.mean, (known.covariance, spatial_correlation(grid, _NEIGHBOURS))
    return known.mean, (known.covariance, spatial_correlation(kernel or (1,), _NEIGHBOURS))
