"""Choose the classes of one group that stay, and what their consumers become."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_coreset.coreset import draw_distinct, draw_fixed, draw_pps, sample_size, sensitivities_from_norms
from lightning_coreset.methods import Magnitude, Method, Random, Reconstruction, Sensitivity, method_name
from lightning_coreset.planning.layer_pair import LayerPair, affine_behind, layer_pairs, weighted_norms
from lightning_coreset.planning.layout import NoCoresetForm
from lightning_coreset.planning.moments import ActivationMoments
from lightning_coreset.planning.norms import class_norms, largest_class_norms
from lightning_coreset.planning.reconstruct import reconstruct_group
from lightning_coreset.planning.selection import Selection
from lightning_coreset.structure import ChannelGroup


@dataclass
class Selector:
    """Chooses group after group of one model, bottom to top.

    Attributes:
        method: How to choose.
        generator: The source of random numbers, on the CPU.
        laws: What is known by now of the inputs of layers, by the name of their weight.
        clipped: Groups for which a guaranteed error asks for more draws than they have channels.
        filters: Norms of the filters of layers whose weights need not be read once more, by name: those that read the
            group before and make the next one.
    """

    method: Method
    generator: torch.Generator
    laws: dict[str, ActivationMoments] = field(default_factory=dict)
    clipped: list[str] = field(default_factory=list)
    filters: dict[str, Tensor] = field(default_factory=dict)

    def select(self, group: ChannelGroup, size: int, tensors: Mapping[str, Tensor]) -> Selection:
        """Choose ``size`` classes of a group.

        Args:
            group: The group.
            size: Classes to keep, all of them included. Fewer stay where the rest contributes nothing. A method that
                chooses sizes itself only looks whether the group is to stay whole.
            tensors: Parameters and buffers by name, as the groups before left them.
        """
        method = self.method
        for member in group.by_role("consumer"):
            self.filters.pop(member.name, None)
        if isinstance(method, Reconstruction):
            try:
                return reconstruct_group(group, size, method, tensors, self.laws)
            except NoCoresetForm as reason:
                return _ranked(group, size, tensors, f"rank ({reason})")
        if size >= group.size:
            return Selection.whole(group)
        if isinstance(method, Random):
            kept = torch.randperm(group.size, generator=self.generator)[:size].sort().values
            return Selection(kept, method_name(method))
        if isinstance(method, Magnitude):
            return Selection(_largest(producer_norms(group, tensors, method.p), size), method_name(method))
        try:
            if method.epsilon is not None:
                return self._guaranteed(group, method.epsilon, method, tensors)
            return self._sampled(group, size, method, tensors)
        except NoCoresetForm as reason:
            if method.epsilon is not None:
                return replace(Selection.whole(group), method=f"kept whole ({reason})")
            return _ranked(group, size, tensors, f"rank ({reason})")

    def _sampled(self, group: ChannelGroup, size: int, method: Sensitivity, tensors: Mapping[str, Tensor]) -> Selection:
        forms = layer_pairs(group, tensors)
        paths = [
            sensitivities_from_norms(
                form.producer_norms(self.filters.get(form.path.producer.weight)),
                weighted_norms(form, tensors),
                form.activation,
                input_radius=method.input_radius,
            )
            for form in forms
        ]
        scores = torch.stack(paths).amax(dim=0)
        assert method.sampler is not None
        draw = {"distinct": draw_distinct, "draws": draw_fixed, "pps": draw_pps}[method.sampler]
        sample = draw(scores, size, self.generator)
        selection = Selection(sample.kept, method_name(method), weights=sample.weights)
        factor = selection.factor(group)
        left = {form.path.consumer.weight: form.filters_left(factor) for form in forms}
        self.filters |= {name: norms for name, norms in left.items() if norms is not None}
        return selection

    def _guaranteed(
        self, group: ChannelGroup, epsilon: float, method: Sensitivity, tensors: Mapping[str, Tensor]
    ) -> Selection:
        """As many draws as the theorem asks for; the whole group if it has no more channels than that."""
        views = [_TheoremView.of(group, form, method.input_radius, tensors) for form in layer_pairs(group, tensors)]
        scores = torch.stack([view.scores for view in views]).amax(dim=0)
        drawn = scores > 0
        squares = torch.stack([(view.slopes[drawn].square() / scores[drawn]).sum() for view in views])
        complexity = math.sqrt(float(scores.sum() * squares.amax()))
        coordinates = sum(view.coordinates for view in views)
        draws = sample_size(float(scores.sum()), epsilon, coordinates, method.delta, complexity=complexity)
        if draws >= group.size:
            self.clipped.append(group.name)
            return Selection.whole(group)
        sample = draw_fixed(scores, draws, self.generator)
        return Selection(sample.kept, method_name(method), weights=sample.weights)


@dataclass(frozen=True, eq=False)
class _TheoremView:
    """One path of a group as the theorem of ``coreset.bounds`` sees it.

    In units of the consumer's outputs, before any BatchNorm behind it. A BatchNorm behind the activation makes a
    channel ``a phi(z) + t``: its offset counts in the sensitivity, and no more in the Rademacher average than any
    constant, whose mean over random signs is zero.

    Attributes:
        scores: Bounds on what a channel adds to any coordinate, (N,).
        slopes: Lipschitz constants times the largest norm of input and row, (N,).
        coordinates: Outputs times positions.
    """

    scores: Tensor
    slopes: Tensor
    coordinates: int

    @classmethod
    def of(
        cls, group: ChannelGroup, form: LayerPair, input_radius: float, tensors: Mapping[str, Tensor]
    ) -> _TheoremView:
        scale, offset = affine_behind(group, form, tensors)
        norms, weights = form.producer_norms(), form.consumer_norms()
        scores = sensitivities_from_norms(norms, weights, form.activation, input_radius=input_radius)
        slopes = weights * scale.abs() * form.activation.lipschitz * norms * math.sqrt(input_radius**2 + 1)
        return cls(scale.abs() * scores + weights * offset.abs(), slopes, form.coordinates)


def _ranked(group: ChannelGroup, size: int, tensors: Mapping[str, Tensor], method: str) -> Selection:
    """Norms of what makes a class times the largest norm of what reads it, without reweighting."""
    if size >= group.size:
        return Selection.whole(group)
    read = [largest_class_norms(tensors[member.name], member) for member in group.by_role("consumer")]
    scores = producer_norms(group, tensors, 2) * torch.stack(read).amax(dim=0)
    return Selection(_largest(scores, size), method)


def _largest(scores: Tensor, size: int) -> Tensor:
    if not bool(scores.isfinite().all()):  # `topk` would take NaN for the largest of all
        raise ValueError("Expected the norms of all channels to be finite.")
    return scores.topk(size).indices.sort().values


def producer_norms(group: ChannelGroup, tensors: Mapping[str, Tensor], p: int) -> Tensor:
    """The norm of all that makes a class, float64 (N,)."""
    makers = group.by_role("producer") or group.by_role("consumer")
    return torch.stack([class_norms(tensors[member.name], member, p) for member in makers]).sum(dim=0)
