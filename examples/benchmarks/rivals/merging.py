"""Neuron merging: every pruned filter is merged into the one kept filter that is most like it, without data.

Kim et al., "Neuron Merging: Compensating for Pruned Neurons", NeurIPS 2020, arXiv 2010.13160, with the weight and the
threshold of the authors' scripts for networks with BatchNorm. Without BatchNorm theirs is 0.45, which does worse on the
networks here. The kept filters are those of the largest L1 norm, as there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rivals.chains import Chain, Norm, largest, statistics

COSINE = 0.85
"""Weight of the cosine distance, against that of the constants that BatchNorms leave."""
LEAST_COSINE = 0.1
"""Filters less alike than this are dropped, not merged."""


def merge(chain: Chain, size: int) -> None:
    """Merge the pruned filters into kept ones, scaled by the ratio of their norms."""
    filters = chain.producer.weight.detach().double().flatten(1)
    if chain.norm is None and chain.producer.bias is not None:
        filters = torch.cat([filters, chain.producer.bias.detach().double()[:, None]], dim=1)
    kept = largest(filters.norm(p=1, dim=1), size)
    norms = filters.norm(dim=1).clamp_min(1e-12)
    cosines = (filters @ filters[kept].T) / norms[:, None] / norms[kept]
    scales = norms[:, None] / norms[kept]
    distances = 1 - cosines
    if chain.norm is not None:
        scales, constants = through_norm(chain.norm, scales, kept)
        distances = COSINE * distances + (1 - COSINE) * constants
        distances = distances.where(scales > 0, torch.inf)  # ReLU does not pass a negative factor
    nearest = distances.argmin(dim=1, keepdim=True)
    chosen = scales.gather(1, nearest)
    alike = (cosines.gather(1, nearest) >= LEAST_COSINE) & (chosen > 0)
    mixture = torch.zeros_like(scales).scatter(1, nearest, chosen * alike)
    mixture[kept] = torch.eye(size, dtype=mixture.dtype)
    chain.mix(kept, mixture)


def through_norm(norm: Norm, scales: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Factors between channels behind the BatchNorm, and the constants they leave, from 0 to 1 in each row.

    Args:
        norm: The BatchNorm of all N channels.
        scales: The factors between the filters, ``(N, m)``.
        kept: The channels of the columns.
    """
    mean, deviation, gain, shift = statistics(norm)
    ratio = gain / deviation
    behind = scales * ratio[:, None] / ratio[kept]
    origin = mean - shift / ratio  # what a filter gives where its channel is zero behind the BatchNorm
    constants = (ratio[:, None] * (scales * origin[kept] - origin[:, None])).abs() / behind.abs().clamp_min(1e-9)
    low, high = constants.amin(dim=1, keepdim=True), constants.amax(dim=1, keepdim=True)
    return behind, (constants - low) / (high - low).clamp_min(1e-12)
