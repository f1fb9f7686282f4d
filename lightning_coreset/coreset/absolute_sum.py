r"""An upper bound, with proof, on the largest weighted sum of absolute values of linear functions over a ball.

Choosing the best signs is a hard combinatorial problem; its standard relaxation has a bound for every positive vector,
and any of them will do: the search for a good one may be sloppy, only the last step must be exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_coreset.coreset.ball import in_their_span
from lightning_coreset.coreset.eigenvalues import proven_largest_eigenvalues

# Power iterations a step: the direction of descent needs an eigenvector to a few digits, kept from step to step.
_POWER_ITERATIONS = 8
_BATCH = 2**22


def largest_absolute_sum(weights: Tensor, producers: Tensor, *, steps: int = 30) -> Tensor:
    r"""Bound :math:`\sup_{\|\tilde x\| \le 1} \sum_p w_{jp} |P_p \cdot \tilde x|` for each row of weights.

    With :math:`M = \mathrm{diag}(w) P` the supremum is :math:`\max_{s \in \{-1, 1\}^N} \|M^T s\|`, and for every
    :math:`d > 0`

    .. math:: \max_s s^T M M^T s \le \Big(\sum_p d_p\Big) \, \lambda_{\max}(D^{-1/2} M M^T D^{-1/2}).

    Subgradient steps on :math:`\log d` from the row norms of :math:`M` tighten it. The eigenvalue of the best
    :math:`d` is not the estimate of a power iteration, which lies below the truth, but a number :math:`t` for which
    :math:`t I - B` has a Cholesky factor.

    Args:
        weights: Weights :math:`w`, not negative, float64 ``(J, N)``.
        producers: Rows :math:`P`, float64 ``(N, d + 1)``.
        steps: Steps of the descent.

    Returns:
        The bounds, float64 ``(J,)``.

    Example:
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        >>> largest_absolute_sum(torch.ones(1, 2).double(), rows).square().round(decimals=2)
        tensor([2.], dtype=torch.float64)

    """
    # The smaller of N x N and (d + 1) x (d + 1) carries the eigenvalue; a square factor serves both.
    producers = in_their_span(producers)
    norms = producers.norm(dim=1)
    size = max(1, _BATCH // producers.numel())  # there are no fewer rows than columns now
    bounds = []
    for part in weights.split(size):
        scale = _descend(part, producers, norms, steps)
        squares = torch.where(scale > 0, part.square() / scale.clamp_min(1e-300), 0.0)
        matrices = (producers.T * squares[:, None]) @ producers
        trace = matrices.diagonal(dim1=1, dim2=2).sum(dim=1)
        eigenvalue = proven_largest_eigenvalues(matrices, trace, len(producers))
        bounds.append((scale.sum(dim=1) * eigenvalue).sqrt())
    return torch.cat(bounds)


def _descend(weights: Tensor, P: Tensor, norms: Tensor, steps: int) -> Tensor:
    """The vectors ``d`` found, ``(rows, N)``; zero where a weight or a row is zero, which adds nothing to the sum."""
    d = weights * norms
    live = d > 0
    y = torch.where(live, d.clamp_min(1e-300).log(), -torch.inf)
    best, best_value = d, torch.full_like(d[:, 0], torch.inf)
    v = torch.where(live, d.sqrt(), 0.0)
    channels = live.sum(dim=1, keepdim=True)
    for i in range(steps):
        root = torch.where(live, weights / d.clamp_min(1e-300).sqrt(), 0.0)
        for _ in range(_POWER_ITERATIONS):
            v = v / v.norm(dim=1, keepdim=True).clamp_min(1e-300)
            v = root * (((root * v) @ P) @ P.T)
        eigenvalue = v.norm(dim=1)
        v = v / eigenvalue.clamp_min(1e-300)[:, None]
        total = d.sum(dim=1)
        better = total * eigenvalue < best_value
        best, best_value = torch.where(better[:, None], d, best), torch.minimum(best_value, total * eigenvalue)
        # The gradient's entries are of order 1 / N: the factor makes the first steps of order 1 in log d.
        length = 2 / (1 + 0.3 * i) * channels.clamp(max=30) / 3
        y = torch.where(live, y - length * (d / total.clamp_min(1e-300)[:, None] - v.square()), -torch.inf)
        # No entry may underflow to zero: it would drop its channel from the sum, and the bound would be none.
        y = torch.where(live, (y - y.amax(dim=1, keepdim=True)).clamp_min(-60), -torch.inf)
        d = y.exp()
    return best
