r"""An upper bound, with proof, on a sum of activations over a ball: all channels and both signs in one quadratic form.

With :math:`y = (x / \beta, 1)`, :math:`z_p = Y_p \cdot y` and a linear part :math:`v`, any quadratic majorants of the
channels give

.. math:: v \cdot y + \sum_p \Delta_p \phi(z_p) \le \sum_p \gamma_p + y^T Q y, \qquad
    Q = \sum_p \alpha_p Y_p Y_p^T + \tfrac12 (c e^T + e c^T), \; c = v + \sum_p \tau_p Y_p,

and over the ball :math:`y^T Q y \le (1 + k) \, \lambda_{\max}(S Q S)` for every :math:`k > 0`, with :math:`S` the
identity but for :math:`k^{-1/2}` in the last place (the S-lemma: the least over :math:`k` is the maximum itself). This
is convex in the majorants, so that descent finds good ones; every choice is valid, and only the last is proven.

The signs of changes are not bounded apart, as in :func:`lightning_coreset.coreset.largest_absolute_sum`: where
:math:`\Delta_p > 0` a parabola lies above the kink of a ReLU, where :math:`\Delta_p < 0` one below takes away.

Shapes: R problems, N channels, n = min(N, d) + 1 coordinates, b eigenvectors that are followed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_coreset.coreset.ball import Ball
from lightning_coreset.coreset.eigenvalues import first_vectors, follow_largest, proven_largest_eigenvalues
from lightning_coreset.coreset.majorants import majorants

_SETTLED = 4
"""After so many steps the vectors that are followed are near enough to eigenvectors to believe a value."""
_RATE = 0.05
_SMOOTHING = (0.02, 0.002)
"""The temperature of the soft maximum of eigenvalues, as a part of the largest, at the first step and at the last."""


class Choice(NamedTuple):
    """One majorant for each channel, in units of |change| / reach and of |change|, and the logarithm of k."""

    square: Tensor  # (R, N)
    tilt: Tensor  # (R, N)
    log_k: Tensor  # (R,)

    def map(self, function: Callable[..., Tensor], *others: Choice) -> Choice:
        """The function of every part."""
        return Choice(*(function(*parts) for parts in zip(self, *others, strict=True)))

    def where(self, rows: Tensor, other: Choice) -> Choice:
        """These for some rows, the others for the rest."""
        wide = rows[:, None]
        return Choice(
            torch.where(wide, self.square, other.square),
            torch.where(wide, self.tilt, other.tilt),
            torch.where(rows, self.log_k, other.log_k),
        )


class _Adam:
    """Adam for many problems at once, whose slopes are of all sizes."""

    def __init__(self, like: Choice) -> None:
        self.first = self.second = like.map(torch.zeros_like)
        self.steps = 0

    def moved(self, choice: Choice, slope: Choice, length: float) -> Choice:
        """The choice after a step."""
        self.steps += 1
        self.first = self.first.map(lambda old, new: 0.8 * old + 0.2 * new, slope)
        self.second = self.second.map(lambda old, new: 0.95 * old + 0.05 * new.square(), slope)
        length, grown = length / (1 - 0.8**self.steps), 1 - 0.95**self.steps
        return choice.map(lambda old, m, v: old - length * m / ((v / grown).sqrt() + 1e-12), self.first, self.second)


@dataclass(frozen=True, eq=False)
class Bounded:
    """Bounds, and what a closer look at them starts from.

    Attributes:
        bound: Proven, float64 (R,).
        choice: The majorants found.
        slack: How far each majorant lies above its channel where the form is largest: what a split could win, (R, N).
    """

    bound: Tensor
    choice: Choice
    slack: Tensor


class JointBound:
    r"""The least upper bounds found on :math:`\sum_p \Delta_{rp} \phi(P_p \cdot (x, 1))` over a ball.

    Args:
        ball: The channels' rows and the ball.
        change: :math:`\Delta`, float64 ``(R, N)``.
        low: Inputs of which pre-activations lie above these, ``(R, N)``; of the whole ball by default.
        high: And below these.
        linear: Weights of the pre-activations themselves, which are added to the sum, ``(R, N)``; none by default.
    """

    def __init__(
        self,
        ball: Ball,
        change: Tensor,
        low: Tensor | None = None,
        high: Tensor | None = None,
        *,
        linear: Tensor | None = None,
    ) -> None:
        self.ball, self.rows, self.reach = ball, ball.rows, ball.reach
        self.change, self.weight = change, change.abs()
        self.linear = torch.zeros_like(change) if linear is None else linear
        self.unit = ((self.weight + self.linear.abs()) * self.reach).sum(dim=1).clamp_min(1e-150)
        self.majorants = majorants(
            ball.activations, ball.low if low is None else low, ball.high if high is None else high
        )

    def proven(self, steps: int, *, enough: float = 0.0, start: Choice | None = None) -> Bounded:
        """Bounds after so many steps of descent, or once all seem to be below ``enough``; valid in any case."""
        choice, vectors = self._descended(start or self._start(), steps, enough * (1 - 1e-3))
        square, tilt, k = self._in_units(choice)
        offsets = self.majorants.proven(self.change, square, tilt)
        magnitude = square.abs() * self.reach.square() + (tilt.abs() + self.linear.abs()) * self.reach
        linear, scale = (tilt + self.linear) @ self.rows, self._scale(k)
        apply = self._form(square, linear, scale)
        for _ in range(_SETTLED):
            values, vectors = follow_largest(apply, vectors)
        largest = torch.cat([self._proven(*one) for one in zip(square, linear, scale, magnitude, values, strict=True)])
        rounding = 16 * (len(self.rows) + self.rows.shape[1]) * torch.finfo(square.dtype).eps
        bound = offsets.sum(dim=1) + largest * (1 + k) + rounding * (magnitude + offsets.abs()).sum(dim=1)
        return Bounded(bound, choice, self._slack(square, tilt, offsets, scale[:, :, 0] * vectors[:, :, -1]))

    def _proven(self, square: Tensor, linear: Tensor, scale: Tensor, magnitude: Tensor, values: Tensor) -> Tensor:
        """The largest eigenvalue of one form, (1,)."""
        form = (self.rows.T * square) @ self.rows
        form[-1] += linear / 2
        form[:, -1] += linear / 2
        form *= scale
        form *= scale.T
        # A term is at most its magnitude over the ball, and its norm over the scaled one more by that of the scale.
        most = magnitude.sum() * scale.amax().square()
        return proven_largest_eigenvalues(form[None], most[None], len(self.rows), estimate=values[-1:])

    def _slack(self, square: Tensor, tilt: Tensor, offsets: Tensor, worst: Tensor) -> Tensor:
        direction = worst[:, :-1] * worst[:, -1:].sign()
        direction = direction / direction.norm(dim=1, keepdim=True).clamp_min(1e-300)
        z = direction @ self.rows[:, :-1].T + self.rows[:, -1]
        z = torch.minimum(torch.maximum(z, self.majorants.low), self.majorants.high)
        return offsets + (square * z + tilt) * z - self.change * self.ball.outputs(z)

    def _start(self) -> Choice:
        """Parabolas that touch kinks where pre-activations mostly lie, about a third of the reach from zero."""
        reach = self.reach
        right, left, middle = (self.ball.outputs(z) for z in (reach, -reach, torch.zeros_like(reach)))
        bend = (right + left - 2 * middle) / (2 * reach)  # that of ReLU is 1/2
        upwards = torch.where(self.change * bend > 0, 1.7 * bend.abs(), -0.05 * bend.abs())
        tilt = (right - left) / (2 * reach) * self.change.sign()
        return Choice(upwards, tilt, torch.full_like(self.change[:, 0], -1.5))

    def _descended(self, choice: Choice, steps: int, enough: float) -> tuple[Choice, Tensor]:
        """The best choice on the way down the softened bound, whose temperature falls; and the last eigenvectors."""
        best, least = choice, torch.full_like(choice.log_k, torch.inf)
        vectors, adam = first_vectors(len(self.change), self.rows.T), _Adam(choice)
        for step in range(steps):
            share = 1 - step / steps
            value, slope, vectors = self._value(choice, vectors, _SMOOTHING[0] * share + _SMOOTHING[1])
            better = value < least
            least, best = torch.where(better, value, least), choice.where(better, best)
            if step > _SETTLED and bool((least <= enough).all()):
                break
            choice = adam.moved(choice, slope, _RATE * share + 0.004)
        return best, vectors

    def _value(self, choice: Choice, vectors: Tensor, temperature: float) -> tuple[Tensor, Choice, Tensor]:
        """The bound as far as a search shows it, (R,), its softened slope, and eigenvectors for the next step."""
        square, tilt, k = self._in_units(choice)
        offsets, at = self.majorants.searched(self.change, square, tilt)
        linear, scale = (tilt + self.linear) @ self.rows, self._scale(k)

        apply = self._form(square, linear, scale)
        values, vectors = follow_largest(apply, vectors)
        largest = values[:, -1].clamp_min(0)
        value = largest * (1 + k) + offsets.sum(dim=1)
        mixed = torch.softmax(values / (temperature * largest).clamp_min(1e-300)[:, None], dim=1)
        scaled = scale * vectors
        parts, last = self.rows @ scaled, scaled[:, -1]
        squares = torch.einsum("rpb,rb->rp", parts.square(), mixed) * (1 + k)[:, None]
        crossed = torch.einsum("rpb,rb->rp", parts, mixed * last) * (1 + k)[:, None]
        image = torch.einsum("rb,rb->r", mixed * vectors[:, -1], apply(vectors)[:, -1])
        weight = self.weight / self.unit[:, None]
        slope = Choice(
            square=(squares - at.square()) * weight / self.reach,
            tilt=(crossed - at) * weight,
            log_k=(largest * k - (1 + k) * image) / self.unit,
        )
        return value, slope, vectors

    def _form(self, square: Tensor, linear: Tensor, scale: Tensor) -> Callable[[Tensor], Tensor]:
        """Multiplication with S Q S, (R, n, c) -> (R, n, c)."""

        def apply(columns: Tensor) -> Tensor:
            columns = scale * columns
            images = ((columns.mT @ self.rows.T) * square[:, None]) @ self.rows
            images += columns[:, -1, :, None] * linear[:, None] / 2
            images[:, :, -1] += (columns.mT @ linear[:, :, None])[:, :, 0] / 2
            return scale * images.mT

        return apply

    def _in_units(self, choice: Choice) -> tuple[Tensor, Tensor, Tensor]:
        return choice.square * self.weight / self.reach, choice.tilt * self.weight, choice.log_k.exp()

    def _scale(self, k: Tensor) -> Tensor:
        """The diagonal of S, (R, n, 1)."""
        scale = self.rows.new_ones(len(k), self.rows.shape[1], 1)
        scale[:, -1, 0] = k.rsqrt()
        return scale
