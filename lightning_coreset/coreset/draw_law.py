"""What draws of channels with replacement are like for any input of a ball: the numbers of ``refined_bounds``.

Shapes: N channels, d inputs of the producer, J coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_coreset.coreset.activations import Activation, value_range
from lightning_coreset.coreset.slopes import slope_range

_ROUNDED = 1 + 1e-9
"""Sums and eigenvalues in float64 are within this of the truth."""
_EACH = 2**33
"""Multiplications for eigenvalues of every coordinate; above it one eigenvalue bounds all. Some seconds."""
_WIDEST = 2048
"""Of the matrices of which an eigenvalue is computed."""


@dataclass(frozen=True, eq=False)
class DrawLaw:
    """What the bounds need to know of draws with replacement: of J coordinates in the units of the consumer's outputs.

    Attributes:
        total: The sum of the sensitivities, S.
        complexity: V of the theorem.
        mean: Root M times the mean of the largest error is at most this, float64 ``(J,)``.
        spread: The length of an interval with all that one draw can contribute, ``(J,)``.
        above: How far a draw can fall short of the mean, and how far it can exceed it, ``(2, J)``.
        deviation: The largest standard deviation of a draw, over all inputs, ``(J,)``.
    """

    total: float
    complexity: float
    mean: Tensor
    spread: Tensor
    above: Tensor
    deviation: Tensor

    @classmethod
    def joined(cls, laws: Sequence[DrawLaw]) -> DrawLaw:
        """Of several consumers for which the same channels are drawn."""
        return cls(
            max(law.total for law in laws),
            max(law.complexity for law in laws),
            torch.cat([law.mean for law in laws]),
            torch.cat([law.spread for law in laws]),
            torch.cat([law.above for law in laws], dim=1),
            torch.cat([law.deviation for law in laws]),
        )


def draw_law(
    producers: Tensor,
    consumers: Tensor,
    activation: Activation,
    sensitivity: Tensor,
    *,
    input_radius: float = 1.0,
    scale: Tensor | None = None,
    offset: Tensor | None = None,
    spectral: bool = True,
) -> DrawLaw:
    r"""What one layer's draws are like for any input of a ball.

    Args:
        producers: Rows that compute the channels, ``(N, d + 1)``, the bias last.
        consumers: The weights that read them, a row for each coordinate, ``(J, N)``.
        activation: The activation between the two.
        sensitivity: What the draws are proportional to, ``(N,)``; any positive numbers give a valid law.
        input_radius: The radius :math:`\beta` of the ball of inputs.
        scale: What multiplies the activations, :math:`a`, ``(N,)``; ones by default.
        offset: What is added to them then, :math:`t`, ``(N,)``; zeros by default.
        spectral: Whether to bound deviations by eigenvalues, nearly all of the cost; else by the largest magnitudes.

    Returns:
        The law. Its mean is infinite, so that nothing follows, where the activation has no Lipschitz constant or a
        channel that is never drawn contributes to a coordinate.

    Raises:
        ValueError: If the activation's turning points are not known.

    Example:
        >>> from lightning_coreset.coreset import find_activation, sensitivities
        >>> producers, consumers, relu = torch.eye(2, 3), torch.ones(1, 2), find_activation("relu")
        >>> s = sensitivities(producers, consumers[..., None], relu)
        >>> law = draw_law(producers, consumers, relu, s)
        >>> round(law.total, 3), (law.spread / law.total).round(decimals=3)
        (2.828, tensor([0.7070], dtype=torch.float64))

    """
    s, W = sensitivity.double(), consumers.detach().double()
    a = torch.ones_like(s) if scale is None else scale.double()
    t = torch.zeros_like(s) if offset is None else offset.double()
    P, drawn = producers.detach().double(), s > 0
    layer = _Layer(P[drawn], W[:, drawn], a[drawn], t[drawn], activation, input_radius, s[drawn])
    least, most = layer.contributions()
    first, last = least.amin(dim=1), most.amax(dim=1)
    # What differences of rounded sums can hide.
    hidden = 1e-12 * torch.maximum(first.abs(), last.abs())
    spread = last - first + hidden
    above = torch.stack([layer.average(most) - first, last - layer.average(least)]) + hidden
    square = layer.average(torch.maximum(least.square(), most.square()))
    deviation = torch.minimum(square.sqrt(), spread / 2)
    if spectral:
        deviation = torch.fmin(deviation, layer.deviation())
    mean = layer.mean()
    undrawn = _Layer(P[~drawn], W[:, ~drawn], a[~drawn], t[~drawn], activation, input_radius, s[~drawn])
    mean = torch.where(mean.isnan() | undrawn.matters(), math.inf, mean)
    complexity = layer.complexity() if float(hidden.max()) <= 1e-12 * layer.total * (1 + 1e-5) else math.inf
    return DrawLaw(layer.total, complexity, *(part * _ROUNDED for part in (mean, spread, above, deviation)))


@dataclass(frozen=True, eq=False)
class _Layer:
    """The channels that can be drawn."""

    producers: Tensor
    consumers: Tensor
    scale: Tensor
    offset: Tensor
    activation: Activation
    radius: float
    scores: Tensor

    @property
    def total(self) -> float:
        return float(self.scores.sum())

    @property
    def inverse(self) -> Tensor:
        """The inverse probabilities, (N,)."""
        return self.total / self.scores

    @property
    def rows(self) -> Tensor:
        """The radius times the weights of the rows, without the bias, (N, d)."""
        return self.radius * self.producers[:, :-1]

    @property
    def slopes(self) -> Tensor:
        """What multiplies the activations, (J, N)."""
        return self.consumers * self.scale

    def average(self, draws: Tensor) -> Tensor:
        """The mean over draws of contributions (J, N)."""
        return draws @ (self.scores / self.total)

    def ends(self) -> tuple[Tensor, Tensor]:
        """The least and the largest values of the channels, (N,)."""
        reach, bias = self.rows.norm(dim=1), self.producers[:, -1]
        ends = [self.scale * end + self.offset for end in value_range(self.activation, bias - reach, bias + reach)]
        return torch.minimum(*ends), torch.maximum(*ends)

    def matters(self) -> Tensor:
        """Whether these channels contribute to a coordinate, (J,)."""
        return self.consumers.abs() @ torch.maximum(*(end.abs() for end in self.ends())) > 0

    def contributions(self) -> tuple[Tensor, Tensor]:
        """The least and the most that a draw contributes, (J, N)."""
        ends = [self.consumers * self.inverse * end for end in self.ends()]
        return torch.minimum(*ends), torch.maximum(*ends)

    def mean(self) -> Tensor:
        """Root M times a bound on the mean of the largest error, (J,)."""
        if not len(self.scores):
            return self.consumers.new_zeros(len(self.consumers))
        reach, bias = self.rows.norm(dim=1), self.producers[:, -1]
        linear, rest = _parts(self.activation, (bias - reach).min(), (bias + reach).max())
        squares = (self.slopes.square() * self.inverse) @ self.rows.square().sum(dim=1)
        centred = squares - (self.slopes @ self.rows).square().sum(dim=1)
        return linear * torch.maximum(centred, 1e-12 * squares).sqrt() + 2 * rest * squares.sqrt()

    def deviation(self) -> Tensor:
        """The largest standard deviation of a draw, from that at the input zero and how far inputs lead, (J,)."""
        at_zero = self.scale * self.activation.function(self.producers[:, -1]) + self.offset
        draws = self.consumers * self.inverse * at_zero
        square = self.average(draws.square())
        variance = torch.maximum(square - self.average(draws).square(), 1e-12 * square)
        eigenvalues = _largest_eigenvalues(self.slopes.square() * self.inverse, self.rows)
        return variance.sqrt() + self.activation.lipschitz * eigenvalues.sqrt()

    def complexity(self) -> float:
        """V of the theorem."""
        norms = self.producers.norm(dim=1) * math.sqrt(self.radius**2 + 1)
        linear = self.slopes.abs().amax(dim=0) * norms * self.activation.lipschitz
        return math.sqrt(float((linear.square() * self.inverse).sum()))


def _parts(activation: Activation, low: Tensor, high: Tensor) -> tuple[float, float]:
    """The slope of a linear part, and the Lipschitz constant of what is left: half the sum of slopes, half the span."""
    least, most = map(float, slope_range(activation, low, high))
    return abs(least + most) / 2, (most - least) / 2


def _largest_eigenvalues(weights: Tensor, rows: Tensor) -> Tensor:
    """Bounds on the largest eigenvalues of sums of weights (J, N) times outer products of rows (N, d); (J,)."""
    width = min(rows.shape)
    if len(weights) > 1 and len(weights) * width**2 * max(rows.shape) > _EACH:
        return _largest_eigenvalues(weights.amax(dim=0, keepdim=True), rows).expand(len(weights))
    if width > _WIDEST:
        return weights @ rows.square().sum(dim=1)  # the trace
    if len(rows) <= rows.shape[1]:
        gram, roots = rows @ rows.T, weights.sqrt()
        forms = (root[:, None] * gram * root for root in roots)
    else:
        forms = (rows.T * weight @ rows for weight in weights)
    return torch.stack([torch.linalg.eigvalsh(form)[-1] for form in forms]).clamp_min(0) * _ROUNDED
