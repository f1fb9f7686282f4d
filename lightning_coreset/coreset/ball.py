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
        activation: What follows.
    """

    rows: Tensor
    reach: Tensor
    low: Tensor
    high: Tensor
    activation: Activation

    @classmethod
    def of(cls, producers: Tensor, activation: Activation, radius: float) -> Ball:
        """Of the rows (N, d + 1), the bias last."""
        linear, bias = producers[:, :-1], producers[:, -1]
        rows = torch.cat([radius * in_their_span(linear), bias[:, None]], dim=1)
        reach = rows[:, :-1].norm(dim=1) * (1 + 1e-12)
        return cls(rows, (bias.abs() + reach).clamp_min(1e-150), bias - reach, bias + reach, activation)


def in_their_span(rows: Tensor) -> Tensor:
    """Rows in an orthonormal basis of their span if that is shorter: what they make of a ball stays the same."""
    return torch.linalg.qr(rows.T, mode="r").R.T if len(rows) < rows.shape[1] else rows
