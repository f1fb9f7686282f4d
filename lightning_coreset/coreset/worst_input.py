r"""The worst input that ascent finds: how large the error of the coreset at hand is at least.

Shapes: J rows of the consumers, N channels, d inputs, s starts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_coreset.coreset.activations import Activation
from lightning_coreset.coreset.ball import in_their_span
from lightning_coreset.coreset.certificate import checked_problem

# Rows times channels (or inputs) handled at once: 2^22 numbers of float64 are 32 MB.
_BATCH = 2**22
_KICKS = 4
_LENGTH = 0.3
"""Of the first steps, in radii; a third of it after a kick."""


def largest_found_error(
    change: Tensor,
    producers: Tensor,
    activation: Activation,
    *,
    input_radius: float,
    generator: torch.Generator,
    starts: int = 16,
    steps: int = 60,
    constant: Tensor | None = None,
) -> Tensor:
    r"""The largest :math:`|e_j(x)|` that ascent over the ball finds from many starts: a lower bound on the truth.

    Gradient steps of falling length with momentum, back into the ball where they leave it; then a few kicks, each with
    an ascent from the best point of every start.

    Args:
        change: As in :func:`certify`, ``(J, N)``.
        producers: As there, ``(N, d + 1)``.
        activation: As there.
        input_radius: As there.
        generator: The source of the random starts, on the CPU.
        starts: Starting points for each row and sign, besides the gradient of the linear part.
        steps: Steps from each.
        constant: What is added to the sum over the channels, ``(J,)``; nothing by default.

    Returns:
        The errors found, float64 ``(J,)``: the value at an input of the ball, whatever the quality of the ascent.

    Raises:
        ValueError: As in :func:`certify`.

    Example:
        >>> from lightning_coreset.coreset import find_activation
        >>> change, producers = torch.tensor([[1.0]]), torch.tensor([[3.0, 4.0, 1.0]])
        >>> relu, generator = find_activation("relu"), torch.Generator().manual_seed(0)
        >>> found = largest_found_error(change, producers, relu, input_radius=2.0, generator=generator)
        >>> found.round(decimals=6)
        tensor([11.], dtype=torch.float64)

    """
    delta, P = checked_problem(change, producers, input_radius)
    A, bias = in_their_span(P[:, :-1]), P[:, -1]
    rows = max(1, _BATCH // ((starts + 1) * max(A.shape)))
    added = delta.new_zeros(len(delta)) if constant is None else constant.detach().double()
    ascents = [
        _Ascent(part, also, A, bias, activation, input_radius, generator)
        for part, also in zip(delta.split(rows), added.split(rows), strict=True)
    ]
    return torch.cat([ascent.largest(starts, steps) for ascent in ascents]).clamp_min(0)


class _Ascent:
    """From many starts for some rows and either sign, with the best value and input of every start."""

    def __init__(
        self,
        delta: Tensor,
        constant: Tensor,
        A: Tensor,
        bias: Tensor,
        activation: Activation,
        radius: float,
        generator: torch.Generator,
    ) -> None:
        self.delta, self.constant = torch.cat([delta, -delta]), torch.cat([constant, -constant])[:, None]
        self.A, self.bias, self.activation, self.radius, self.generator = A, bias, activation, radius, generator

    def largest(self, starts: int, steps: int) -> Tensor:
        """What is found for each row, (J,)."""
        directions = self._random(starts, self.A.shape[1]).expand(len(self.delta), -1, -1)
        X = self.radius * _unit(torch.cat([(self.delta @ self.A)[:, None], directions], dim=1))
        self.best, self.at = torch.full(X.shape[:2], -torch.inf, dtype=X.dtype, device=X.device), X
        self._climb(X, steps, _LENGTH)
        for _ in range(_KICKS):
            kick = self._random(*self.at.shape) * (self.radius / 2 / self.A.shape[1] ** 0.5)
            self._climb(self._inside(self.at + kick), steps // 2, _LENGTH / 3)
        return self.best.amax(dim=1).view(2, -1).amax(dim=0)

    def _climb(self, X: Tensor, steps: int, length: float) -> None:
        momentum, h = torch.zeros_like(X), 1e-6
        for step in range(steps + 1):
            z = X @ self.A.T + self.bias
            value = torch.einsum("jn,jsn->js", self.delta, self.activation.function(z)) + self.constant
            better = value > self.best
            self.best, self.at = torch.where(better, value, self.best), torch.where(better[..., None], X, self.at)
            # A central difference gives the slope of any activation; inference mode forbids autograd.
            slope = (self.activation.function(z + h) - self.activation.function(z - h)) / (2 * h)
            momentum = 0.9 * momentum + 0.1 * _unit((slope * self.delta[:, None]) @ self.A)
            X = self._inside(X + length * (1 - step / (steps + 1)) * self.radius * _unit(momentum))

    def _inside(self, X: Tensor) -> Tensor:
        norms = X.norm(dim=-1, keepdim=True)
        return torch.where(norms > self.radius * (1 - 1e-12), self.radius * _unit(X), X)

    def _random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(self.A.device)


def _unit(vectors: Tensor) -> Tensor:
    # A hair inside, so that rounding does not carry a point out of the ball and its error over the certificate.
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-300) * (1 - 1e-12)
