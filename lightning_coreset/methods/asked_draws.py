"""How many draws the theorem, or what is refined of it, asks of one group for a given error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_coreset.coreset import (
    DrawLaw,
    draw_law,
    failure_probability,
    refined_sample_size,
    sample_size,
    sensitivities_from_norms,
)
from lightning_coreset.layers import LayerPair
from lightning_coreset.layers.coordinate_change import coordinate_weights

_ENTRIES = 2**24
"""Coordinates times channels: of larger layers only norms are looked at."""
_NORMS = 1e-5
"""How far norms, which are computed in single precision, may be from the true ones, with what follows from them."""


@dataclass(frozen=True, eq=False)
class AskedDraws:
    """The draws that guarantee an error.

    Attributes:
        scores: What they are proportional to, (N,).
        draws: How many; infinite where no number is known.
        bound: What asks for them, in words for the plan.
    """

    scores: Tensor
    draws: float
    bound: str

    @classmethod
    def of(cls, pairs: Sequence[LayerPair], epsilon: float, delta: float, input_radius: float) -> AskedDraws:
        """Of one group with a coreset form.

        Args:
            pairs: What reads its channels.
            epsilon: The error of any coordinate, which the weights as they are written make.
            delta: The probability with which it may be larger.
            input_radius: The radius of the ball of inputs.
        """
        bounds = [_PairBound.of(pair, input_radius) for pair in pairs]
        scores = torch.stack([bound.scores for bound in bounds]).amax(dim=0)
        total = float(scores.sum())
        # All new weights together carry at most S; a factor and its product are both rounded to the model's precision.
        rounding = max(torch.finfo(pair.view.tensors[pair.path.consumer.weight].dtype).eps for pair in pairs)
        epsilon = epsilon * (1 - _NORMS) - 1.01 * rounding * total
        if epsilon <= 0:
            return cls(scores, math.inf, "theorem")
        draws = _theorem(bounds, scores, epsilon, delta)
        if total > 0 and of_single_channels(pairs):
            refined = _refined(pairs, scores, epsilon, delta, input_radius)
            if refined < draws:
                return cls(scores, refined, "refined theorem")
        return cls(scores, draws, "theorem")


def _theorem(bounds: Sequence[_PairBound], scores: Tensor, epsilon: float, delta: float) -> float:
    drawn = scores > 0
    squares = torch.stack([(bound.slopes[drawn].square() / scores[drawn]).sum() for bound in bounds])
    complexity = math.sqrt(float(scores.sum() * squares.amax()))
    if not math.isfinite(complexity):  # an activation without a Lipschitz constant
        return math.inf
    coordinates = sum(bound.coordinates for bound in bounds)
    return sample_size(float(scores.sum()), epsilon, coordinates, delta, complexity=complexity)


def _refined(pairs: Sequence[LayerPair], scores: Tensor, epsilon: float, delta: float, input_radius: float) -> float:
    """Infinite where it is more than there are channels."""
    if sum(pair.coordinates for pair in pairs) * len(scores) > _ENTRIES:
        return math.inf
    rough = _law(pairs, scores, input_radius, spectral=False)
    still = replace(rough, deviation=torch.zeros_like(rough.deviation))
    if failure_probability(still, max(len(scores) - 1, 1), epsilon) > delta:
        return math.inf  # however little draws deviate
    return refined_sample_size(_law(pairs, scores, input_radius, spectral=True), epsilon, delta)


def _law(pairs: Sequence[LayerPair], scores: Tensor, input_radius: float, *, spectral: bool) -> DrawLaw:
    laws = []
    for pair in pairs:
        scale, offset = pair.affine_behind
        laws.append(
            draw_law(
                pair.producers,
                coordinate_weights(pair),
                pair.activation,
                scores,
                input_radius=input_radius,
                scale=scale,
                offset=offset,
                spectral=spectral,
            )
        )
    return DrawLaw.joined(laws)


def of_single_channels(pairs: Sequence[LayerPair]) -> bool:
    """Whether every coordinate is one sum over all channels, each of one row."""
    return all(pair.shift.shape[1] == 1 and pair.path.consumer.groups == 1 for pair in pairs)


@dataclass(frozen=True, eq=False)
class _PairBound:
    """What the theorem of ``coreset.sampling_bounds`` needs of one layer pair.

    In units of the consumer's outputs, before any BatchNorm behind it. A BatchNorm behind the activation makes a
    channel ``a phi(z) + t``: its offset counts in the sensitivity, but no more in the Rademacher average than any
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
    def of(cls, pair: LayerPair, input_radius: float) -> _PairBound:
        scale, offset = pair.affine_behind
        norms, weights = pair.producer_norms(), pair.consumer_norms()
        scores = sensitivities_from_norms(norms, weights, pair.activation, input_radius=input_radius)
        slopes = weights * scale.abs() * norms * math.sqrt(input_radius**2 + 1)
        slopes = torch.where(slopes > 0, slopes * pair.activation.lipschitz, 0.0)  # an infinite constant times 0 is NaN
        return cls(scale.abs() * scores + weights * offset.abs(), slopes, pair.coordinates)
