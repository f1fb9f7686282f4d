"""Bases of streams: orthonormal, in the best directions, and as near to the channels as that allows."""

from __future__ import annotations

import pytest
import torch

from lightning_coreset.coreset import any_stream_basis, stream_basis


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def second_moments(channels: int, rank: int, *, centred: bool) -> torch.Tensor:
    rows = torch.randn(500, rank, dtype=torch.float64) @ torch.randn(rank, channels, dtype=torch.float64)
    rows = rows - rows.mean(dim=1, keepdim=True) if centred else rows
    return rows.T @ rows / 500


@pytest.mark.parametrize("centred", [False, True])
def test_its_rows_are_orthonormal_and_keep_norms(centred):
    covariance = second_moments(12, 12, centred=centred)
    basis = stream_basis(covariance, torch.eye(12), 7, centred=centred)

    product = basis.matrix @ basis.matrix.T
    expected = torch.eye(7, dtype=torch.float64) - (1 / 7 if centred else 0)
    torch.testing.assert_close(product, expected)
    if centred:
        ones = torch.ones(12, dtype=torch.float64)
        torch.testing.assert_close(basis.matrix @ ones, torch.zeros(7, dtype=torch.float64), atol=1e-9, rtol=0)
    assert basis.kept.tolist() == sorted(set(basis.kept.tolist()))


@pytest.mark.parametrize("centred", [False, True])
def test_it_spans_all_directions_that_there_are(centred):
    covariance = second_moments(12, 4, centred=centred)
    matrix = stream_basis(covariance, torch.eye(12), 4 + centred, centred=centred, ridge=1e-10).matrix

    torch.testing.assert_close(matrix.T @ matrix @ covariance, covariance)


def test_what_no_reader_reads_goes_first():
    importance = torch.diag(torch.tensor([1.0, 0.0, 1.0, 0.0]))
    basis = stream_basis(torch.eye(4), importance, 2)

    assert basis.kept.tolist() == [0, 2]
    torch.testing.assert_close(basis.matrix, torch.eye(4, dtype=torch.float64)[[0, 2]], atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [0, 1, 5])
def test_sizes_are_those_of_streams(size):
    with pytest.raises(ValueError, match=f"size from 2 to 4 but got {size}"):
        stream_basis(torch.eye(4), torch.eye(4), size, centred=True)


@pytest.mark.parametrize("centred", [False, True])
def test_a_random_basis_keeps_everything(centred):
    matrix = any_stream_basis(6, generator(), centred=centred).matrix
    x = torch.randn(6, dtype=torch.float64)
    x = x - x.mean() if centred else x

    torch.testing.assert_close(matrix.T @ (matrix @ x), x)
    assert not torch.allclose(matrix @ x, x)
    assert abs(float((matrix @ x).mean())) < 1e-9 or not centred
