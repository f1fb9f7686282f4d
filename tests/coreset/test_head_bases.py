"""The leading directions of a head lose as little as any could: against singular values and direct least squares."""

from __future__ import annotations

import torch

from lightning_coreset.coreset import query_key_bases, value_basis


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_no_bases_of_queries_and_keys_are_better():
    """The expected square of what is lost of the products, over independent queries and keys."""
    q, k = drawn(4000, 6, seed=0) @ drawn(6, 6, seed=1), drawn(3000, 6, seed=2) @ drawn(6, 6, seed=3)
    second_q, second_k = q.T @ q / len(q), k.T @ k / len(k)
    of_queries, of_keys = query_key_bases(second_q, second_k, ridge=1e-12)
    torch.testing.assert_close(of_queries.T @ of_keys, torch.eye(6, dtype=torch.float64))
    singular = torch.linalg.svdvals(torch.linalg.cholesky(second_q).T @ torch.linalg.cholesky(second_k))
    for stay in range(1, 6):
        lost = torch.eye(6, dtype=torch.float64) - of_queries[:stay].T @ of_keys[:stay]
        directly = ((q @ lost) @ k.T).square().mean()
        torch.testing.assert_close(directly, singular[stay:].square().sum(), rtol=1e-6, atol=1e-9)


def test_given_the_keys_no_queries_are_better():
    """Also where several heads of queries share the keys, each with moments of its own."""
    many = [drawn(500, 5, seed=seed) @ drawn(5, 5, seed=10 + seed) for seed in range(3)]
    k = drawn(400, 5, seed=20) @ drawn(5, 5, seed=21)
    second_k = k.T @ k / len(k)
    of_queries, of_keys = query_key_bases(sum(q.T @ q / len(q) for q in many), second_k, ridge=1e-12)
    for q in many:
        targets = (q @ k.T).T
        seen = k @ of_keys[:3].T
        best = torch.linalg.lstsq(seen, targets).solution
        torch.testing.assert_close(of_queries[:3] @ q.T, best, rtol=1e-6, atol=1e-8)


def test_no_basis_of_values_is_better():
    rows, weight = drawn(5000, 7, seed=0) @ drawn(7, 7, seed=1), drawn(4, 7, seed=2)
    basis = value_basis(rows.T @ rows / len(rows), weight.T @ weight, ridge=1e-9)
    outputs = rows @ weight.T
    for stay in range(1, 5):
        seen = rows @ basis[:stay].T
        lost = outputs - seen @ torch.linalg.lstsq(seen, outputs).solution
        expected = torch.linalg.svdvals(outputs)[stay:].square().sum()
        torch.testing.assert_close(lost.square().sum(), expected, rtol=1e-4, atol=1e-6 * float(outputs.square().sum()))


def test_values_that_are_all_zero_have_a_basis_too():
    basis = value_basis(torch.zeros(3, 3), torch.zeros(3, 3))
    assert bool(basis.isfinite().all())
    assert int(torch.linalg.matrix_rank(basis)) == 3
    assert all(bool(one.isfinite().all()) for one in query_key_bases(torch.zeros(3, 3), torch.zeros(3, 3)))
