"""Random rows of what a layer reads: rows of a matrix, patches of a convolution.

The same rows are taken whenever the sizes are the same, so that two runs can be compared row by row, and layers that
read one tensor show equal samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_coreset.nested import tensors_in

_NUMBERS = 4096
"""Of each tensor that a network returns."""


def some_of(total: int, wanted: int, call: int = 0) -> Tensor | None:
    """Positions of ``wanted`` of ``total`` rows, drawn with replacement; ``None`` for all of them."""
    if total <= wanted:
        return None
    generator = torch.Generator().manual_seed(1_000_003 * call + total)
    return torch.randint(total, (wanted,), generator=generator)


def rows_of(matrix: Tensor, wanted: int, call: int = 0) -> Tensor:
    """Some rows of a matrix (rows, I), on the CPU."""
    chosen = some_of(len(matrix), wanted, call)
    picked = matrix if chosen is None else matrix[chosen.to(matrix.device)]
    return _kept(picked)


def numbers_of(returned: Any) -> list[Tensor]:
    """Some numbers of every floating-point tensor that a network returned, on the CPU."""
    tensors = [one.detach() for one in tensors_in(returned) if one.is_floating_point() and not one.is_sparse]
    return [rows_of(one.reshape(-1, 1), _NUMBERS)[:, 0] for one in tensors]


def channels_last(maps: Tensor) -> Tensor:
    """Maps (B, C, ...) as rows (B ..., C)."""
    return maps.movedim(1, -1).reshape(-1, maps.shape[1])


def patches_of(
    maps: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    wanted: int,
    call: int = 0,
) -> Tensor:
    """Some of the patches that a convolution reads, with the zeros of its padding, on the CPU (R, C, k)."""
    spatial = len(kernel)
    padded = F.pad(maps, [side for size in reversed(padding) for side in (size, size)]) if any(padding) else maps
    reach = [d * (size - 1) + 1 for d, size in zip(dilation, kernel, strict=True)]
    counts = [(n - r) // s + 1 for n, r, s in zip(padded.shape[2:], reach, stride, strict=True)]
    total = len(maps) * prod(counts)
    chosen = some_of(total, wanted, call)
    at = torch.arange(total) if chosen is None else chosen
    sample, *corner = torch.unravel_index(at, (len(maps), *counts))
    taps = torch.unravel_index(torch.arange(prod(kernel)), tuple(kernel))
    places = [corner[axis][:, None] * stride[axis] + taps[axis][None] * dilation[axis] for axis in range(spatial)]
    index = [one.to(maps.device) for one in (sample[:, None], *places)]
    patches = padded.movedim(1, -1)[tuple(index)]  # (R, k, C)
    return _kept(patches.transpose(1, 2)).contiguous()


def _kept(samples: Tensor) -> Tensor:
    """A copy on the CPU, in single precision unless the network is in double precision."""
    dtype = torch.float64 if samples.dtype == torch.float64 else torch.float32
    return samples.detach().to("cpu", dtype, copy=True)
