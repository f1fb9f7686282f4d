"""Norms of the parts of weights, against straight formulas in double precision."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from lightning_coreset.layers import norms
from lightning_coreset.layers.norms import class_norms, largest_class_norms, largest_slice_norms, row_norms
from lightning_coreset.structure import Member

ONE_EACH = tuple((place,) for place in range(6))
SEVERAL = ((0, 3), (5,), (), (1, 2, 4))


def member(index: tuple[tuple[int, ...], ...], dim: int = 1) -> Member:
    return Member("weight", dim, "consumer", index)


def slices(weight: Tensor, index: tuple[tuple[int, ...], ...]) -> Tensor:
    """The norm of what every output reads of every class, (O, N)."""
    return torch.stack([weight.double()[:, list(places)].flatten(1).norm(dim=1) for places in index], dim=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_largest_slices(dtype, monkeypatch):
    for piece, index, positions in product([1, 100, 1 << 17], [ONE_EACH, SEVERAL, ((5,), (0,))], [1, 9]):
        monkeypatch.setattr(norms, "_PIECE", piece)
        weight, scale = torch.randn(50, 6, positions).to(dtype), torch.rand(50, dtype=torch.float64)
        expected = slices(weight, index)
        tolerance = {"rtol": 1e-12 if dtype == torch.float64 else 1e-6, "atol": 0}
        found = largest_slice_norms(weight, member(index))
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected.amax(dim=0), **tolerance)
        scaled = largest_slice_norms(weight, member(index), scale)
        torch.testing.assert_close(scaled, (expected * scale[:, None]).amax(dim=0), **tolerance)


@pytest.mark.parametrize("magnitude", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_no_square_leaves_its_range(magnitude):
    weight = torch.randn(8, 6, 9) * magnitude
    torch.testing.assert_close(row_norms(weight.flatten(1)), weight.double().flatten(1).norm(dim=1), rtol=1e-6, atol=0)
    found = largest_slice_norms(weight, member(ONE_EACH))
    torch.testing.assert_close(found, slices(weight, ONE_EACH).amax(dim=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(value):
    weight = torch.ones(8, 6, 1)
    weight[3, 2] = value
    assert (~row_norms(weight.flatten(1)).isfinite()).nonzero().flatten().tolist() == [3]
    assert (~largest_slice_norms(weight, member(ONE_EACH)).isfinite()).nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize(("shape", "dim"), [((6,), 0), ((6, 4), 0), ((4, 6), 1), ((4, 6, 3, 3), 1), ((6, 4, 3), 0)])
@pytest.mark.parametrize("index", [ONE_EACH, SEVERAL])
def test_classes(index, shape, dim, p):
    tensor = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    rows = tensor.detach().movedim(dim, 0).reshape(6, -1)
    expected = torch.stack([torch.linalg.vector_norm(rows[list(places)], p) for places in index])
    torch.testing.assert_close(class_norms(tensor, member(index, dim), p), expected)
    if tensor.dim() > 1:
        expected = slices(tensor.detach().movedim((1 - dim, dim), (0, 1)), index).amax(dim=0)
        torch.testing.assert_close(largest_class_norms(tensor, member(index, dim), [1 - dim]), expected)


@pytest.mark.parametrize(("order", "dim", "outputs"), [((0, 2, 1), 2, (0, 1)), ((0, 1, 2), 1, (0, 2))])
def test_every_matrix_of_a_stack_has_outputs_of_its_own(order, dim, outputs):
    """(experts, in, out) or (experts, out, in): as the matrices one below the other."""
    matrices = torch.randn(3, 6, 5, dtype=torch.float64)
    below = matrices.transpose(1, 2).reshape(15, 6)
    expected = largest_class_norms(below, member(SEVERAL, 1), [0])
    stack = matrices.permute(order)
    torch.testing.assert_close(largest_class_norms(stack, member(SEVERAL, dim), outputs), expected)
