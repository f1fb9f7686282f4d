"""What is found of networks on balls without the package: samples and ascent on the modules themselves, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


def in_ball(x: Tensor, radius: float, count: int, seed: int = 0) -> Tensor:
    """Points of the balls around samples, half of them on the sphere, (count, n, ...)."""
    generator = torch.Generator().manual_seed(seed)
    moves = torch.randn(count, *x.shape, generator=generator, dtype=torch.float64).flatten(2)
    moves = moves / moves.norm(dim=2, keepdim=True)
    lengths = torch.rand(count, len(x), 1, generator=generator, dtype=torch.float64)
    lengths[: count // 2] = 1
    return x.double() + (radius * (1 - 1e-12) * lengths * moves).view(count, *x.shape)


def extremes(function: Callable[[Tensor], Tensor], x: Tensor, radius: float, steps: int = 25) -> tuple[Tensor, Tensor]:
    """The least and the largest value found of every output on the ball around every sample, (n, outputs)."""
    points = torch.cat([x.double()[None], in_ball(x, radius, 60)])
    values = function(points.flatten(0, 1)).detach().flatten(1).unflatten(0, points.shape[:2])
    low, high = values.amin(0), values.amax(0)
    for output in range(values.shape[2] if radius else 0):
        for sign in (-1, 1):
            best = (sign * values[:, :, output]).topk(3, dim=0).indices
            start = points.flatten(2).gather(0, best[:, :, None].expand(-1, -1, x[0].numel())).view(3, *x.shape)
            found = _ascended(lambda y, k=output, s=sign: s * function(y).flatten(1)[:, k], start, x, radius, steps)
            low[:, output] = torch.minimum(low[:, output], (sign * found).amin(0))
            high[:, output] = torch.maximum(high[:, output], (sign * found).amax(0))
    return low, high


def _ascended(value: Callable[[Tensor], Tensor], points: Tensor, x: Tensor, radius: float, steps: int) -> Tensor:
    best = torch.full(points.shape[:2], -torch.inf, dtype=torch.float64)
    for step in range(steps):
        points = points.detach().requires_grad_()
        now = value(points.flatten(0, 1))
        (slope,) = torch.autograd.grad(now.sum(), points)
        best = torch.maximum(best, now.detach().view_as(best))
        flat = slope.flatten(2)
        length = radius * 0.5 * (1 - step / steps)
        moved = points.detach() + length * (flat / flat.norm(dim=2, keepdim=True).clamp_min(1e-300)).view_as(points)
        moves = (moved - x.double()).flatten(2)
        inside = moves * (radius * (1 - 1e-12) / moves.norm(dim=2, keepdim=True).clamp_min(1e-300)).clamp_max(1)
        points = x.double() + inside.view_as(points)
    return best


def difference(first: nn.Module, second: nn.Module) -> Callable[[Tensor], Tensor]:
    """The change of outputs in float64."""
    a, b = copy.deepcopy(first).double().eval(), copy.deepcopy(second).double().eval()
    return lambda x: a(x) - b(x)
