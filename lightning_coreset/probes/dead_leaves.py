"""The dead-leaves model: images and volumes as piles of occluding balls.

Legend of shapes: ``n`` samples, ``c`` channels, ``k`` balls a sample, ``d`` spatial dimensions of sizes ``size``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

BALLS = {2: 40, 3: 100}
"""Balls a sample, by the number of spatial dimensions."""
SMALLEST = {2: 0.07, 3: 0.1}
"""Smallest radius as a part of the side. With this many balls, the average place is covered by about three."""
LARGEST = 1.0
OWN_COLOUR = 0.35
"""Deviation of a channel from the colour that all channels share: channels correlate with 1 / (1 + 0.35^2) = 0.89."""
_PIXELS_AT_ONCE = 2**20  # bounds the memory


def dead_leaves(samples: int, channels: int, size: Sequence[int], generator: Generator) -> Tensor:
    """Draw images, or volumes, of opaque balls that fall on top of each other until they cover nearly everything.

    Centres are uniform, and a radius ``r`` has the density ``r^-(d + 1)`` between two bounds, which is the law that
    looks alike at every scale: edges are sharp, and power falls between ``f^-2`` and ``f^-3``, as in photographs (Lee,
    Mumford and Huang, "Occlusion models for natural images", 2001). A ball has one random colour, whose channels
    correlate.

    Args:
        samples: Number of images.
        channels: Channels of each.
        size: Height and width, or depth, height and width.
        generator: Source of random numbers, on the CPU.

    Returns:
        ``(samples, channels, *size)`` in float32; all values together have mean 0 and deviation 1.

    Example:
        >>> images = dead_leaves(64, 3, (32, 32), torch.Generator().manual_seed(0))
        >>> left, right = images[..., :-1].flatten(), images[..., 1:].flatten()
        >>> bool(torch.corrcoef(torch.stack([left, right]))[0, 1] > 0.8)
        True
    """
    dims = len(size)
    count = BALLS[dims]
    centres = torch.rand(samples, count, dims, generator=generator)
    radii = _radii(torch.rand(samples, count, generator=generator), size)
    shared = torch.randn(samples, 1, count + 1, generator=generator)
    colours = shared + OWN_COLOUR * torch.randn(samples, channels, count + 1, generator=generator)

    step = max(1, _PIXELS_AT_ONCE // math.prod(size))
    images = torch.empty(samples, channels, math.prod(size))
    for start in range(0, samples, step):
        part = slice(start, start + step)
        top = _topmost(centres[part], radii[part], size).flatten(1)
        torch.gather(colours[part], 2, top[:, None].expand(-1, channels, -1), out=images[part])
    return standardised(images).view(samples, channels, *size)


def standardised(values: Tensor) -> Tensor:
    """Shift and scale all values together, in place, to mean 0 and deviation 1; equal values become 0."""
    values -= values.mean()
    return values.div_(values.square().mean().sqrt().clamp_min(1e-12))


def _radii(uniform: Tensor, size: Sequence[int]) -> Tensor:
    """Radii in pixels by inversion: ``r^-d`` is uniform between its values at the two bounds."""
    dims = len(size)
    side = math.prod(size) ** (1 / dims)
    smallest = max(SMALLEST[dims] * side, 1.0)  # a ball between two pixels would not be seen
    largest = max(LARGEST * side, 2 * smallest)
    low, high = largest**-dims, smallest**-dims
    return (low + (high - low) * uniform) ** (-1 / dims)


def _topmost(centres: Tensor, radii: Tensor, size: Sequence[int]) -> Tensor:
    """Number of the ball on top at each pixel, from 1; 0 where none lies. ``(n, *size)``.

    A ball is a span of pixels in each line along the last dimension. Only the pixels of spans are touched, some three
    times as many as there are; comparing every pixel with every ball takes ten times as long.
    """
    samples, count, _ = centres.shape
    *outer, width = size
    left = radii.square()  # of the squared radius, at each line that a ball may meet: (n, k, *outer)
    for dim, length in enumerate(outer):
        gap = centres[..., dim, None] * length - torch.arange(0.5, length)
        left = left[..., None] - gap.square().view(samples, count, *[1] * dim, length)
    half = left.clamp_min_(0).sqrt_()
    middle = (centres[..., -1] * width - 0.5).view(samples, count, *[1] * len(outer))
    start = (middle - half).ceil_().clamp_(min=0).long()
    stop = (middle + half).ceil_().clamp_(max=width).long()
    lengths = (stop - start).clamp_min_(0)

    lines = torch.arange(samples * math.prod(outer)).view(samples, 1, *outer) * width
    numbers = torch.arange(1, count + 1).view(count, *[1] * len(outer)).expand_as(lengths)
    met = lengths > 0
    lengths, first, numbers = lengths[met], (lines + start)[met], numbers[met]
    ends = lengths.cumsum(0)
    pixels = torch.arange(int(ends[-1]) if len(ends) else 0) + (first - (ends - lengths)).repeat_interleave(lengths)
    top = torch.zeros(samples * math.prod(size), dtype=torch.long)
    top.scatter_reduce_(0, pixels, numbers.repeat_interleave(lengths), "amax")  # balls fall in the order of numbers
    return top.view(samples, *size)
