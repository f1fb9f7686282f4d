"""Inputs of a ball at which something is large: ascent from many starts. What it finds is so, wherever it ends.

Shapes: S samples, R starts for each, values as in ``tape``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_coreset.agreement.tape import Tape

Objective = Callable[[Tensor], Tensor]
"""What is to be large, ``(S * R,)``, as a function of the values of a node, ``(S * R, 1, ...)``."""

_LENGTH = 0.5
"""Of the first steps, in radii."""
_INSIDE = 1 - 1e-12
"""So that rounding does not carry a point out of the ball."""


def ascend(
    tape: Tape,
    node: int,
    objective: Objective,
    centers: Tensor,
    radius: float,
    *,
    starts: int,
    steps: int,
    seed: int,
) -> Tensor:
    """Inputs near the largest values that are found on balls.

    Args:
        tape: The networks.
        node: Whose values are made large.
        objective: Rows of one sample follow each other: start r of sample s is row ``s * R + r``.
        centers: The samples, ``(S, 1, ...)``.
        radius: Of the balls. With 0 the samples themselves come back.
        starts: The center, and so many less one random points of the ball.
        steps: Gradient steps of falling length from each, with momentum.
        seed: Of the starts.

    Returns:
        For each start the best input that it came by, ``(S, R, 1, ...)``.
    """
    if radius == 0:
        return centers[:, None]
    x, middle = _starts(centers, radius, starts, seed), centers.repeat_interleave(starts, dim=0)
    momentum = torch.zeros_like(x)
    best, at = torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device), x
    for step in range(steps + 1):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            value = objective(tape.run(x, [node])[0])
            (slope,) = torch.autograd.grad(value.sum(), x)
        x = x.detach()
        better = _wide(value.detach() > best, x)
        best, at = torch.maximum(best, value.detach()), torch.where(better, x, at)
        momentum = 0.7 * momentum + 0.3 * _unit(slope)
        moved = x + _LENGTH * (1 - step / (steps + 1)) * radius * _unit(momentum)
        x = middle + _within(moved - middle, radius)
    return at.unflatten(0, (len(centers), starts))


def _starts(centers: Tensor, radius: float, starts: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(centers), starts, *centers.shape[1:])
    moves = _unit(torch.randn(shape, generator=generator, dtype=torch.float64).to(centers.device).flatten(0, 1))
    moves = moves.view(shape) * radius * _INSIDE
    moves[:, 0] = 0
    return (centers[:, None] + moves).flatten(0, 1)


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.view(-1, *[1] * (like.dim() - 1))


def _norms(vectors: Tensor) -> Tensor:
    return _wide(vectors.flatten(1).norm(dim=1), vectors)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / _norms(vectors).clamp_min(1e-300)


def _within(moves: Tensor, radius: float) -> Tensor:
    norms = _norms(moves)
    return torch.where(norms > radius * _INSIDE, _unit(moves) * radius * _INSIDE, moves)
