r"""Upper bounds on largest eigenvalues that rounding cannot break; eigenvectors followed while matrices change.

Shapes: R matrices, n rows; b vectors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_VECTORS, _STEPS = 10, 24
"""Followed at once; and how often, where an eigenvalue has to be estimated from nothing."""


def proven_largest_eigenvalues(
    matrices: Tensor, magnitude: Tensor, terms: int, *, estimate: Tensor | None = None
) -> Tensor:
    r"""Upper bounds on the largest eigenvalues: a number :math:`t` for which :math:`t I - B` has a Cholesky factor.

    Args:
        matrices: Symmetric :math:`B`, float64 ``(R, n, n)``.
        magnitude: The sum of the norms of the terms that each was added up from, ``(R,)``: it bounds every eigenvalue,
            and the scale of rounding errors.
        terms: How many terms those were.
        estimate: About what the eigenvalues are, ``(R,)``; computed by default.

    Returns:
        The bounds, ``(R,)``, at least the rounding errors.
    """
    size = matrices.shape[1]
    # What rounding can hide: a factorisation that succeeds proves positive definiteness up to n eps times the trace
    # (Rump, 2006), and forming B rounds by as much again.
    slack = 4 * (size + terms) * torch.finfo(matrices.dtype).eps
    about = _largest(matrices) if estimate is None else estimate
    about = torch.minimum(about.clamp_min(0), magnitude)
    proven = magnitude.clone()
    open_rows = (magnitude > 0).nonzero().flatten()
    margin = 1e-6
    while len(open_rows) and margin < size:
        candidate = about[open_rows] + margin * magnitude[open_rows]
        shifted = -matrices[open_rows]
        shifted.diagonal(dim1=1, dim2=2).add_(candidate[:, None])
        passed = torch.linalg.cholesky_ex(shifted).info == 0
        proven[open_rows[passed]] = torch.minimum(candidate, magnitude[open_rows])[passed]
        open_rows = open_rows[~passed]
        margin *= 4
    return proven + slack * (size * proven + magnitude)


def follow_largest(apply: Callable[[Tensor], Tensor], vectors: Tensor) -> tuple[Tensor, Tensor]:
    r"""Better approximations of the largest eigenvectors: Rayleigh and Ritz on the vectors and their residuals.

    One step for each of a sequence of matrices that change slowly. It needs products only.

    Args:
        apply: Multiplies with the matrices, ``(R, n, c) -> (R, n, c)``.
        vectors: Orthonormal, ``(R, n, b)``.

    Returns:
        ``(values, vectors)``: Ritz values in ascending order, ``(R, b)``, never above the eigenvalues, and vectors.
    """
    images = apply(vectors)
    residuals = images - vectors @ (vectors.mT @ images)
    basis = torch.linalg.qr(torch.cat([vectors, residuals], dim=2)).Q
    inner = basis.mT @ apply(basis)
    values, turned = torch.linalg.eigh((inner + inner.mT) / 2)
    keep = vectors.shape[2]
    return values[:, -keep:], basis @ turned[:, :, -keep:]


def first_vectors(problems: int, like: Tensor) -> Tensor:
    """Orthonormal vectors to begin with, the same for all problems, ``(R, n, b)``, with as many rows as ``like``."""
    size = len(like)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(size, min(_VECTORS, size), generator=generator, dtype=torch.float64).to(like)
    return torch.linalg.qr(start).Q.expand(problems, -1, -1)


def _largest(matrices: Tensor) -> Tensor:
    """About the largest eigenvalues, (R,), by products, which cost far less than a decomposition."""
    vectors = first_vectors(len(matrices), matrices[0])
    for _ in range(_STEPS):
        values, vectors = follow_largest(lambda columns: matrices @ columns, vectors)
    return values[:, -1]
