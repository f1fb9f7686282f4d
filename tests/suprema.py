"""The largest error over a disc, by enumeration, and small problems in the plane to try bounds on."""

import math

import torch
from torch import Tensor


def exact_supremum(change: Tensor, producers: Tensor, slope: float, radius: float) -> Tensor:
    """Of |e| over the disc, for activations with a kink at zero: linear between lines, so largest where these meet.

    Corners of the pieces, ends of the lines on the circle, and on every arc the point in the direction of the gradient.
    """
    A, b = producers[:, :-1], producers[:, -1]  # noqa: N806
    i, j = torch.triu_indices(len(A), len(A), 1)
    across = A[i, 0] * A[j, 1] - A[i, 1] * A[j, 0]
    corners = torch.stack([b[j] * A[i, 1] - b[i] * A[j, 1], b[i] * A[j, 0] - b[j] * A[i, 0]], dim=1) / across[:, None]
    size = A.norm(dim=1)
    foot, half = -(b / size.square())[:, None] * A, (radius**2 - (b / size).square()).clamp_min(0).sqrt()[:, None]
    along = torch.stack([-A[:, 1], A[:, 0]], dim=1) / size[:, None]
    ends = torch.cat([foot + half * along, foot - half * along])[((b / size).abs() <= radius).repeat(2)]
    angles = torch.atan2(ends[:, 1], ends[:, 0]).sort().values
    angles = angles if len(angles) else torch.zeros(1, dtype=A.dtype)
    middle = angles + torch.diff(angles, append=angles[:1] + 2 * math.pi) / 2
    on_arcs = radius * torch.stack([middle.cos(), middle.sin()], dim=1)
    gradient = torch.einsum("jn,an,nd->jad", change, torch.where(on_arcs @ A.T + b > 0, 1.0, slope).to(A), A)
    tops = (radius * gradient / gradient.norm(dim=2, keepdim=True).clamp_min(1e-300)).flatten(0, 1)
    points = torch.cat([corners[corners.norm(dim=1) <= radius], ends, tops, -tops, torch.zeros(1, 2, dtype=A.dtype)])
    z = points @ A.T + b
    return (torch.where(z > 0, z, slope * z) @ change.T).abs().amax(dim=0)


def tiny(seed: int, rows: int = 3) -> tuple[Tensor, Tensor, float]:
    generator = torch.Generator().manual_seed(seed)
    channels = int(torch.randint(2, 14, (1,), generator=generator))
    producers = torch.randn(channels, 3, generator=generator, dtype=torch.float64) * torch.tensor([1, 1, 0.7]).double()
    return torch.randn(rows, channels, generator=generator, dtype=torch.float64), producers, 1.3
