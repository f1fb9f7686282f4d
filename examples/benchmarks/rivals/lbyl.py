"""LBYL: every pruned filter is spread over all kept ones, without data.

Lee et al., "Leave Before You Leave: Data-Free Restoration of Pruned Neural Networks Without Fine-Tuning",
arXiv 2107.01808. The kept filters are those of the largest L2 norm.
"""

from __future__ import annotations

import torch

from rivals.chains import Chain, largest

BIAS = 1e-2
"""Weight of the difference of the constants that BatchNorm leaves, against that of the filters."""
RIDGE = 1e-3
"""Weight of the squared coefficients, as a part of the mean squared norm of a filter."""


def spread(chain: Chain, size: int) -> None:
    r"""Approximate the pruned filters by sums of kept ones in the least-squares sense.

    With filters :math:`f` and constants :math:`b` after BatchNorm, the coefficients of one pruned filter minimise
    :math:`\|f - \sum_j s_j f_j\|^2 + \lambda_1 (b - \sum_j s_j b_j)^2 + \lambda_2 \|s\|^2`.
    """
    rows = chain.rows()
    kept = largest(chain.producer.weight.detach().flatten(1).norm(dim=1), size)
    rows[:, -1] *= BIAS**0.5
    gram = rows @ rows.T
    within = gram[kept][:, kept]
    within += RIDGE * within.diagonal().mean() * torch.eye(size, dtype=within.dtype)
    mixture = torch.linalg.solve(within, gram[kept]).T
    mixture[kept] = torch.eye(size, dtype=mixture.dtype)
    chain.mix(kept, mixture)
