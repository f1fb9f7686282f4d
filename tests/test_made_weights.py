"""Weights that are made some rows at a time: contents, views, products, what is cut of them and other versions."""

from __future__ import annotations

import mmap
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_coreset.plan import ParameterChange
from lightning_coreset.structure import Example, Member, find_groups
from lightning_coreset.surgery import new_value
from lightning_coreset.verification import failing_groups, made_weights, virtual
from lightning_coreset.verification.cut_weights import cut
from lightning_coreset.verification.depthwise import DepthwiseConvolutions
from lightning_coreset.verification.disturbed import columns_that_differ, disturbed
from lightning_coreset.verification.trial import Trial
from lightning_coreset.verification.virtual import VirtualWeights
from lightning_coreset.verification.ways import on_a_copy_without_weights

pytestmark = pytest.mark.skipif(not hasattr(mmap, "MAP_ANONYMOUS"), reason="memory cannot be reserved")


@pytest.fixture(autouse=True)
def few_rows_at_a_time(monkeypatch):
    monkeypatch.setattr(made_weights, "_BLOCK", 15)  # three rows of five


def pair(shape: tuple[int, ...] = (8, 5), dtype: torch.dtype = torch.float64) -> tuple[VirtualWeights, Tensor, Tensor]:
    """What makes weights, a weight that it makes, and a real one with the same content."""
    torch.manual_seed(0)
    real = torch.randn(shape, dtype=dtype)
    weights = VirtualWeights(nn.Linear(2, 2))
    with weights:
        return weights, weights.new(shape, dtype, real.clone().__getitem__, own=False), real


STEPS = {
    "factor": lambda w: w.mul_(torch.tensor(1.5, dtype=w.dtype)),
    "numbers": lambda w: w.add_(torch.linspace(0, 1, w.numel(), dtype=w.dtype).view(w.shape), alpha=2),
    "number": lambda w: w.add_(torch.ones(1, 1, dtype=w.dtype)),
    "row": lambda w: w.mul_(torch.arange(float(w.shape[-1]), dtype=w.dtype)),
    "rows": lambda w: w.index_fill_(0, torch.tensor([1, 6]), 0.0),
    "columns": lambda w: w.index_fill_(1, torch.tensor([0, 3]), 7.0),
    "last": lambda w: w.index_fill_(-1, torch.tensor([1]), -1.0),
    "first of all": lambda w: w.index_fill_(-w.dim(), torch.tensor([2]), -1.0),
    "mask": lambda w: w.masked_fill_(torch.arange(w.numel()).view(w.shape) % 3 == 0, 0.5),
    "mask of columns": lambda w: w.masked_fill_(torch.arange(w.shape[-1]) % 2 == 0, 0.5),
}
VIEWS = {
    "whole": lambda w: w,
    "transposed": lambda w: w.transpose(0, 1),
    "row": lambda w: w[3],
    "rows": lambda w: w[2:5],
    "every other row": lambda w: w[1::2],
    "every other row, some columns": lambda w: w[1::3, 1:3],
    "columns": lambda w: w[:, 2:4],
    "flat": lambda w: w.reshape(-1)[7:19],
    "element": lambda w: w[4, 2],
    "nothing": lambda w: w[3:3],
    "expanded": lambda w: w[None].expand(3, *w.shape),
    "diagonal": lambda w: w.diagonal(),
}


@pytest.mark.parametrize("shape", [(8, 5), (8, 4, 3)])
@pytest.mark.parametrize("first", STEPS)
@pytest.mark.parametrize("second", ["factor", "rows", "columns", "mask"])
def test_contents_after_steps(shape, first, second):
    weights, one, real = pair(shape)
    with weights, torch.no_grad():
        for step in (first, second):
            STEPS[step](one)
            STEPS[step](real)
        for name, view in VIEWS.items():
            assert torch.equal(view(one) + 0, view(real) + 0), name
        made = weights.made(one)
        assert torch.equal(torch.cat([rows for _, rows in made.blocks()]), real)
        places = torch.tensor([6, 0, 6, 2])
        assert torch.equal(made.rows(places), real[places])


def test_a_view_is_made_of_as_few_rows_as_it_reaches_into():
    asked: list[int] = []
    real = torch.randn(9, 5)

    def make(which):
        asked.append(len(real[which]))
        return real[which]

    weights = VirtualWeights(nn.Linear(2, 2))
    with weights:
        one = weights.new((9, 5), real.dtype, make, own=False)
        for view, rows in ((one[2:4], 2), (one[::4], 3), (one[5], 1), (one, 9), (one.t()[:, 3:5], 2)):
            asked.clear()
            assert view.add(0).shape == view.shape
            assert asked == [rows]


def products(w: Tensor, x: Tensor, y: Tensor) -> list[Tensor]:
    bias = torch.ones(8, dtype=w.dtype)
    return [
        functional.linear(x, w),
        functional.linear(x[0], w, bias),
        functional.linear(x[None], w, bias),
        y @ w,
        w @ x.t(),
        w.t() @ y.t(),
        torch.addmm(bias, x, w.t()),
        torch.addmm(bias, x, w.t(), beta=2),
        x @ w[2:5].t(),
        torch.einsum("oi,ni->no", w, x),
        w @ w.t(),
        functional.embedding(torch.tensor([[7, 0, 7], [1, 1, 3]]), w),
        functional.embedding(torch.tensor(4, dtype=torch.int32), w),
        functional.embedding(torch.tensor([], dtype=torch.int64), w),
        functional.embedding(torch.tensor([1]), w[2:]),
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_products_and_lookups(dtype):
    weights, one, real = pair(dtype=dtype)
    x, y = torch.randn(4, 5, dtype=dtype), torch.randn(4, 8, dtype=dtype)
    with weights, torch.no_grad():
        for number, (its, expected) in enumerate(zip(products(one, x, y), products(real, x, y), strict=True)):
            torch.testing.assert_close(its, expected, msg=f"product {number}")


def test_a_square_weight_is_not_taken_for_its_transpose():
    weights, one, real = pair((5, 5))
    x = torch.randn(4, 5, dtype=torch.float64)
    with weights, torch.no_grad():
        for its, expected in ((x @ one, x @ real), (x @ one.t(), x @ real.t()), (one @ x.t(), real @ x.t())):
            torch.testing.assert_close(its, expected)


def test_what_does_not_fit_raises_what_torch_does():
    weights, one, _ = pair()
    with weights, torch.no_grad():
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            functional.linear(torch.randn(4, 6, dtype=torch.float64), one)
        with pytest.raises(IndexError, match="out of range"):
            functional.embedding(torch.tensor([8]), one)


def test_derivatives():
    weights, one, real = pair()
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    with weights:
        one, real = one.requires_grad_(), real.requires_grad_()
        for w, found in ((one, []), (real, expected := [])):
            found += torch.autograd.grad((functional.linear(x, w).sin() @ w).sum(), (x, w))
            for its, other in zip(found, expected or found, strict=True):
                torch.testing.assert_close(its, other)


def test_a_product_makes_some_rows_at_a_time():
    asked: list[int] = []
    weights, _, real = pair()

    def make(which):
        asked.append(len(real[which]))
        return real[which]

    with weights, torch.no_grad():
        functional.linear(torch.randn(4, 5, dtype=torch.float64), weights.new((8, 5), real.dtype, make, own=False))
    assert asked == [3, 3, 2]


@pytest.mark.parametrize("dims", [(0,), (1,), (0, 1), ()])
@pytest.mark.parametrize("factors", [(), (0,), (1,), (0, 1)])
def test_what_a_change_leaves(dims, factors):
    weights, one, real = pair()
    kept = {dim: torch.tensor([[0, 2, 3, 6], [1, 4]][dim]) for dim in dims}
    shape = tuple(len(kept[dim]) if dim in kept else length for dim, length in enumerate(real.shape))
    along = {dim: torch.arange(1.0, shape[dim] + 1, dtype=torch.float64) for dim in factors}
    change = ParameterChange("weight", (8, 5), shape, kept, factors=along)
    expected = new_value(change, real)
    with weights, torch.no_grad():
        left = cut(change, one, weights)
        assert left in weights
        assert torch.equal(left + 0, expected)
        assert torch.equal(left[1:3] + 0, expected[1:3])
        assert torch.equal(cut(change, real, weights), expected)


def member(role: str, dim: int, index: list[int]) -> tuple[Member, Tensor]:
    return Member("weight", dim, tuple((place,) for place in index), role), torch.tensor(index)


@pytest.mark.parametrize("role", ["producer", "channelwise"])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("zeros", [[], [(0, [2])], [(1, [4])], [(0, [2]), (1, [1, 4])]])
def test_another_version_differs_where_it_should(role, dim, zeros):
    weights, one, real = pair()
    places = [member(role, dim, [1, 2, 4])]
    reading = [member("consumer", other, index) for other, index in zeros]
    with weights, torch.no_grad():
        make = disturbed(one, places, reading, weights)
        second = make()
        assert make() is second
        whole = second + 0
        assert torch.equal(second[3:5] + 0, whole[3:5])
        assert torch.equal(weights.made(second).rows(torch.tensor([4, 1])), whole[[4, 1]])
    differs = torch.zeros(8, 5, dtype=torch.bool).index_fill_(dim, torch.tensor([1, 2, 4]), True)
    for other, index in zeros:
        differs.index_fill_(other, torch.tensor(index), True)
        assert not whole.index_select(other, torch.tensor(index)).any()
    assert torch.equal(whole != real, differs)
    for other, index in zeros:
        real = real.index_fill(other, torch.tensor(index), 0.0)  # so does what it is compared with
    assert torch.equal((whole != real).any(0), columns_that_differ(real, places, reading))
    if role == "producer":
        ratio = torch.where(whole != real, whole / real, torch.nan).flatten()
        assert ratio[~ratio.isnan() & ~ratio.isinf()].unique().numel() > 1  # not the same but for a factor


def test_what_layers_reads_lets_no_error_pass(monkeypatch):
    """A consumer that is forgotten, and one that reads other channels, in weights that are made by rows."""
    monkeypatch.setattr(virtual, "MANY", 0)
    monkeypatch.setattr(virtual, "LARGE", 0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4)).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    groups = find_groups(model, x)
    with on_a_copy_without_weights(model) as usable:
        trial = Trial(usable.model, Example.of(x), virtual=usable.virtual)
        assert trial.passes(groups)
        assert trial.attempt(groups) is None
        for group in groups:
            left = [one for one in group.members if one.role != "consumer"]
            assert trial.attempt([with_members(group, left)]) is not None
            others = [moved(one) if one.role == "consumer" else one for one in group.members]
            assert trial.attempt([with_members(group, others)]) is not None


def with_members(group, members):
    return replace(group, members=tuple(members))


def moved(one: Member) -> Member:
    return replace(one, index=one.index[1:] + one.index[:1])


def test_steps_are_forgotten_where_they_are_undone():
    weights, one, real = pair()
    with weights, torch.no_grad():
        one.mul_(torch.tensor(2.0, dtype=torch.float64))
        one.index_fill_(1, torch.tensor([0]), 0.0)
        as_it_was = weights.after(one, 1)
        assert torch.equal(as_it_was + 0, 2 * real)
        del weights.made(one).steps[1:]
        assert torch.equal(one + 0, 2 * real)


def test_other_precisions(monkeypatch):
    torch.manual_seed(0)
    model = nn.Linear(5, 8, bias=False).bfloat16()
    monkeypatch.setattr(virtual, "LARGE", 0)
    weights = VirtualWeights(model)
    with weights, torch.no_grad():
        (new,) = weights.in_place_of_weights().values()
        new.mul_(torch.tensor(3.0, dtype=torch.bfloat16))
        expected = (model.weight.detach() * 3).double()
        model.weight.data = new.data
        weights.convert(model, torch.float64)
        assert torch.equal(model.weight + 0, expected)


def test_what_a_mode_copies_of_a_view_is_real():
    """In the code of a mode, ``contiguous`` is one operator, which is a view or a copy."""
    weights, one, real = pair((8, 1, 3, 3))
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    with weights, torch.no_grad(), DepthwiseConvolutions():
        its = functional.conv2d(x, one, padding=1, groups=8)
    torch.testing.assert_close(its, functional.conv2d(x, real, padding=1, groups=8))


@pytest.mark.parametrize("view", [torch.view_as_complex, lambda w: w.view(torch.int64)])
def test_a_view_in_another_dtype_is_refused(view):
    """Another copy has the numbers, and is tried then."""
    weights, one, _ = pair((8, 2))
    with weights, torch.no_grad(), pytest.raises(NotImplementedError, match="no memory"):
        view(one)


class Filters(nn.Module):
    """Multiplies by complex numbers, which are kept as pairs of real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 12), nn.Linear(12, 8), nn.Linear(8, 3)
        self.filters = nn.Parameter(torch.randn(3, 8, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fft.rfft(self.second(self.first(x).relu()).relu()[:, None].expand(-1, 4, -1), dim=1)
        return self.last(torch.fft.irfft(x * torch.view_as_complex(self.filters), n=4, dim=1).mean(1))


def depthwise() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 5, 1))


@pytest.mark.parametrize(("make", "x"), [(Filters, torch.randn(4, 6)), (depthwise, torch.randn(2, 3, 8, 8))])
def test_right_groups_pass_whatever_reads_the_weights(make, x, monkeypatch):
    monkeypatch.setattr(virtual, "MANY", 0)
    monkeypatch.setattr(virtual, "LARGE", 0)
    torch.manual_seed(0)
    model = make()
    groups = find_groups(model, x)
    assert groups
    assert failing_groups(model, groups, Example.of(x)) == {}
