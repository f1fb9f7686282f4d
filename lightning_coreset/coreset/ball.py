"""What channels' pre-activations can be over a ball of inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_coreset.coreset.activations import Activation


@dataclass(frozen=True, eq=False)
class Ball:
    """The pre-activations of channels over a ball, in coordinates (x / radius, 1).

    Attributes:
        rows: What multiplies the coordinates, float64 (N, n).
        reach: The largest magnitudes, (N,).
        low: The least values, (N,).
        high: The largest, (N,).
        activations: What follows, and how many channels it follows: of the first ones, of the next ones, ...
    """

    rows: Tensor
    reach: Tensor
    low: Tensor
    high: Tensor
    activations: tuple[tuple[Activation, int], ...]

    @classmethod
    def of(cls, radius: float, *parts: tuple[Tensor, Activation]) -> Ball:
        """Of rows (N, d + 1), the bias last, and what follows them."""
        producers = torch.cat([rows for rows, _ in parts])
        linear, bias = producers[:, :-1], producers[:, -1]
        rows = torch.cat([radius * in_their_span(linear), bias[:, None]], dim=1)
        reach = rows[:, :-1].norm(dim=1) * (1 + 1e-12)
        activations = tuple((activation, len(some)) for some, activation in parts)
        return cls(rows, (bias.abs() + reach).clamp_min(1e-150), bias - reach, bias + reach, activations)

    def outputs(self, preactivations: Tensor) -> Tensor:
        """The channels, (..., N), of their pre-activations, (..., N)."""
        parts = preactivations.split([count for _, count in self.activations], dim=-1)
        return torch.cat(
            [activation.function(part) for (activation, _), part in zip(self.activations, parts, strict=True)], dim=-1
        )


def in_their_span(rows: Tensor) -> Tensor:
    """Rows in an orthonormal basis of their span if that is shorter: what they make of a ball stays the same."""
    return torch.linalg.qr(rows.T, mode="r").R.T if len(rows) < rows.shape[1] else rows
