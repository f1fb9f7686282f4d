r"""Bases of attention heads in which the first directions lose least.

No activation lies between the values of a head and what reads them, nor between its queries and keys: any basis does as
well as the one in which the head was trained.

Shapes: N dimensions of a head, J outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_coreset.coreset.elimination import regularisation

_TINY = 1e-12


def value_basis(covariance: Tensor, importance: Tensor, *, ridge: float = 1e-3) -> Tensor:
    r"""The basis of a head's values: for every number of leading directions, as good as any.

    The leading right singular vectors of :math:`W C^{1/2}`, in terms of the dimensions as they are (Eckart and Young).

    Args:
        covariance: :math:`C` of the values where they are read, ``(N, N)``.
        importance: :math:`W^T W` of the weights that read them, ``(N, N)``.
        ridge: Added to the covariance, as a part of its mean diagonal.

    Returns:
        :math:`T`, float64 ``(N, N)``, with rows of norm 1: the values become :math:`T v`.

    Example:
        Only the sum of two values is read:

        >>> value_basis(torch.eye(2), torch.ones(2, 2))[0].abs().round(decimals=3)
        tensor([0.7070, 0.7070], dtype=torch.float64)
    """
    root = _root(_regular(covariance.double(), ridge))
    vectors = torch.linalg.eigh(root @ importance.double() @ root)[1].flip(1)
    basis = torch.linalg.solve(root, vectors).T
    return basis / basis.norm(dim=1, keepdim=True)


def query_key_bases(queries: Tensor, keys: Tensor, *, ridge: float = 1e-3) -> tuple[Tensor, Tensor]:
    r"""Bases of queries and of keys, whose products are as they were: the first directions lose least of them.

    For independent queries and keys the expected square of what is lost of :math:`q^T k` with the first ``m`` is the
    sum of the squared singular values of :math:`\Sigma_q^{1/2} \Sigma_k^{1/2}` behind the first ``m``, the least that
    is possible (Eckart and Young).

    Args:
        queries: The second moments :math:`\Sigma_q`, ``(N, N)``; their sum where several heads of queries share keys.
        keys: The second moments :math:`\Sigma_k`, ``(N, N)``; around the mean, where softmax follows.
        ridge: Added to both, as a part of their mean diagonals.

    Returns:
        :math:`T_q` and :math:`T_k`, float64 ``(N, N)``, with :math:`T_q^T T_k = I`.

    Example:
        >>> of_queries, of_keys = query_key_bases(torch.eye(3), torch.diag(torch.tensor([1.0, 9.0, 4.0])))
        >>> (of_queries.T @ of_keys).round(decimals=3).equal(torch.eye(3).double()), of_keys[0].abs().argmax().item()
        (True, 1)
    """
    root_q, root_k = _root(_regular(queries.double(), ridge)), _root(_regular(keys.double(), ridge))
    u, singular, vt = torch.linalg.svd(root_q @ root_k)
    share = singular.clamp_min(_TINY).sqrt()[:, None]
    return share * torch.linalg.solve(root_q, u).T, share * torch.linalg.solve(root_k, vt.T).T


def _regular(moment: Tensor, ridge: float) -> Tensor:
    return moment + (regularisation(moment, ridge) + _TINY) * torch.eye(len(moment), dtype=moment.dtype)


def _root(moment: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(moment)
    return (vectors * values.clamp_min(_TINY).sqrt()) @ vectors.T
