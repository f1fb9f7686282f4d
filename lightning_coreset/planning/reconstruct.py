"""The reconstruction of one group: which channels stay, and new weights, biases and statistics behind them.

Legend of shapes: N channels, m kept; O outputs of a consumer, q inputs that one channel becomes, k kernel positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_coreset import coreset
from lightning_coreset.coreset import mixing_matrix, spatial_correlation, variance_ratios
from lightning_coreset.methods import Reconstruction, method_name
from lightning_coreset.planning.layer_pair import LayerPair, norm_of_outputs, output_scale, single_channel_pairs
from lightning_coreset.planning.layout import NoCoresetForm, consumer_matrix, member_of, put_consumer, to_cpu_float64
from lightning_coreset.planning.moments import ActivationMoments, carried, moments, second_moment, whole_input
from lightning_coreset.planning.selection import Selection
from lightning_coreset.structure import ChannelGroup, Step

_OUTPUT_NEIGHBOURS = 0.7
"""Correlation of neighbouring activations behind an activation function, for the variance of a convolution's output."""


def reconstruct_group(
    group: ChannelGroup,
    size: int,
    method: Reconstruction,
    tensors: Mapping[str, Tensor],
    laws: dict[str, ActivationMoments],
) -> Selection:
    """Choose the channels that can best stand in for the others, and the weights with which they do.

    Args:
        group: The group.
        size: Channels to keep.
        method: The options.
        tensors: Parameters and buffers by name, as the groups before left them.
        laws: What is known of the inputs of layers; the laws behind this group are added.

    Raises:
        NoCoresetForm: If the group has no coreset form, or several channels make one class.
    """
    views = _views(group, tensors, laws)
    if size >= group.size:
        return Selection.whole(group)
    main = _main(views)
    result = coreset.reconstruct(
        main.moment, main.rows, size, mean=main.centre, rounds=method.rounds, ridge=method.ridge
    )
    updates: dict[str, Tensor] = {}
    for view in views:
        mix = result.mix if view is main else mixing_matrix(view.moment, result.kept, ridge=method.ridge)
        updates |= view.updates(group, result.kept, mix, {**tensors, **updates})
    error = result.error / result.energy if result.energy > 0 else 0.0
    return Selection(result.kept, method_name(method), updates, error)


def error_curve(
    group: ChannelGroup, method: Reconstruction, tensors: Mapping[str, Tensor], laws: dict[str, ActivationMoments]
) -> Tensor:
    """The expected squared error of the next layer's outputs for every number of channels that could go.

    As a part of the outputs' variance: where the law of a layer's input is not known, nor is the scale of its channels,
    and errors of different layers compare only by what they are beside the signal.

    Args:
        group: The group.
        method: The options.
        tensors: Parameters and buffers by name.
        laws: What is known of the inputs of layers; the laws behind this group are added.

    Returns:
        The relative error when 0, 1, ... N - 1 channels are gone, (N,).

    Raises:
        NoCoresetForm: If the group has no coreset form, or several channels make one class.
    """
    main = _main(_views(group, tensors, laws))
    curve = coreset.elimination_curve(main.moment, main.rows, ridge=method.ridge)
    variance = coreset.expected_error(main.covariance, main.rows)
    return curve / variance if variance > 0 else torch.zeros_like(curve)


def _views(group: ChannelGroup, tensors: Mapping[str, Tensor], laws: dict[str, ActivationMoments]) -> list[_View]:
    """The channels as each kind of consumer sees them; the laws behind the group are added."""
    forms = single_channel_pairs(group, tensors)
    readers = [form.path.consumer.weight for form in forms]
    if len(set(readers)) != len(readers):
        raise NoCoresetForm("one weight reads its channels in two ways")
    alike: dict[tuple[Step, ...], list[LayerPair]] = {}
    for form in forms:
        alike.setdefault(form.path.steps, []).append(form)
    views = [_View(group, same, tensors, laws) for same in alike.values()]
    for view in views:
        laws.update(view.carried_laws(group, tensors))
    return views


def _main(views: Sequence[_View]) -> _View:
    """The view by which channels are chosen: where most of the signal goes."""
    return max(views, key=lambda view: view.energy)


class _View:
    """The channels as consumers behind the same steps see them: one law, several consumers.

    Attributes:
        mean: (N,).
        covariance: (N, N), centred.
        centre: The mean if every consumer can take a constant, so that the moments are centred; ``None`` otherwise.
        moment: The moments that the mathematics works with, (N, N).
        rows: The consumers' weights, scaled by the BatchNorms behind them and condensed, (min(J, N), N).
        energy: The expected square of the consumers' outputs.
    """

    def __init__(
        self,
        group: ChannelGroup,
        forms: Sequence[LayerPair],
        tensors: Mapping[str, Tensor],
        laws: Mapping[str, ActivationMoments],
    ) -> None:
        self.forms = forms
        self.mean, self.covariance = moments(group, forms[0], tensors, laws)
        takes_constant = all(_constant_goes_into(form, tensors) is not None for form in forms)
        self.centre = self.mean if forms[0].before is not None and takes_constant else None
        self.moment = self.covariance if self.centre is not None else second_moment(self.mean, self.covariance)
        rows = [_matrix(form.consumers) * _repeated(output_scale(form, tensors), form) for form in forms]
        self.rows = coreset.compress_rows(torch.cat(rows))
        self.energy = coreset.expected_error(self.moment, self.rows)

    def carried_laws(self, group: ChannelGroup, tensors: Mapping[str, Tensor]) -> dict[str, ActivationMoments]:
        """The laws of the consumers' inputs, where this group is all of them."""
        found = {
            form.path.consumer.weight: carried(group, form, tensors, self.mean, self.covariance) for form in self.forms
        }
        return {name: law for name, law in found.items() if law is not None}

    def updates(
        self, group: ChannelGroup, kept: Tensor, mix: Tensor, tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """New consumers, biases and statistics for the channels that stay."""
        offset = torch.zeros_like(self.mean) if self.centre is None else self.mean - mix @ self.mean[kept]
        dropped = torch.ones(group.size, dtype=torch.bool).index_fill_(0, kept, False).nonzero().squeeze(1)
        updates: dict[str, Tensor] = {}
        for form in self.forms:
            # The rows of kept channels in the mixing matrix are the identity's.
            gone = form.consumers[:, dropped]
            new = form.consumers[:, kept] + torch.einsum("onqk,nm->omqk", gone, mix[dropped].to(gone))
            layer = form.path.consumer
            updates[layer.weight] = _written(group, form, kept, new, {**tensors, **updates})
            constant = torch.einsum("onqk,n->o", form.consumers, offset.to(form.consumers))
            updates |= _shifted(form, constant, {**tensors, **updates})
            updates |= self._repaired(group, form, kept, new, {**tensors, **updates})
        return updates

    def _repaired(
        self, group: ChannelGroup, form: LayerPair, kept: Tensor, new: Tensor, tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The running variance of a BatchNorm behind the consumer, told that its input varies less now."""
        norm = norm_of_outputs(form, tensors)
        places = whole_input(group, form, tensors)
        if norm is None or norm.running_var is None or places is None or places.shape[1] > 1:
            return {}
        kernel = tuple(tensors[form.path.consumer.weight].shape[2:]) or (1,)
        correlation = spatial_correlation(kernel, _OUTPUT_NEIGHBOURS)
        ratios = variance_ratios(self.covariance, form.consumers.flatten(2), kept, new.flatten(2), correlation)
        return {norm.running_var: to_cpu_float64(tensors[norm.running_var]) * ratios}


def _matrix(consumers: Tensor) -> Tensor:
    """Consumers (O, N, q, k) as (J, N)."""
    return consumers.permute(0, 2, 3, 1).reshape(-1, consumers.shape[1])


def _repeated(scale: Tensor, form: LayerPair) -> Tensor:
    """A scale (O,) for every row of ``_matrix``, (J, 1)."""
    return scale.repeat_interleave(form.consumers.shape[2] * form.consumers.shape[3])[:, None]


def _constant_goes_into(form: LayerPair, tensors: Mapping[str, Tensor]) -> tuple[str, float] | None:
    """The tensor that takes a constant added to the consumer's output, with its sign."""
    layer = form.path.consumer
    if layer.bias is not None and tensors[layer.bias].numel() == len(form.consumers):
        return layer.bias, 1.0
    norm = norm_of_outputs(form, tensors)
    if norm is not None and norm.running_mean is not None:
        return norm.running_mean, -1.0
    return None


def _shifted(form: LayerPair, constant: Tensor, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    place = _constant_goes_into(form, tensors)
    if place is None or not constant.any():
        return {}
    name, sign = place
    return {name: to_cpu_float64(tensors[name]) + sign * constant.reshape(tensors[name].shape)}


def _written(group: ChannelGroup, form: LayerPair, kept: Tensor, new: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """The consumer's weight with new columns (O, m, q, k) for kept classes and zeros for the others."""
    layer = form.path.consumer
    member = member_of(group, layer.weight, layer.in_dim)
    assert member is not None
    matrix = consumer_matrix(layer, tensors).clone()
    places = member.positions
    if bool((places < 0).any()):
        raise NoCoresetForm("its channels become different numbers of inputs")
    matrix[:, places.reshape(-1)] = 0.0
    matrix[:, places[kept].reshape(-1)] = new.flatten(1, 2)
    return put_consumer(layer, matrix, tensors[layer.weight])
