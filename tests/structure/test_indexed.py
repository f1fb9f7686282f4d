"""Rows moved by index, tensors of equal elements, buffers that are filled step by step: pruned exactly, or refused."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from networks import zero_consumers
from torch import Tensor, nn

from lightning_coreset.structure import find_groups
from lightning_coreset.surgery import apply_changes, named_tensors, slice_members

pytestmark = [
    pytest.mark.usefixtures("double_precision"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning"),
    pytest.mark.filterwarnings("ignore:index_reduce.. is in beta:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled:UserWarning"),
]

ROWS, WIDTH = 12, 8
GENERATOR = torch.Generator().manual_seed(0)
TO, FROM = torch.randint(0, ROWS, (2, 40), generator=GENERATOR)
ORDER = torch.randperm(ROWS, generator=GENERATOR)
EDGES = torch.sparse_coo_tensor(torch.stack([TO, FROM]), torch.rand(40).double(), (ROWS, ROWS), check_invariants=True)
EDGES = EDGES.coalesce()


class Net(nn.Module):
    """A function of rows between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 6), nn.Linear(6, 2)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(self.function(torch.relu(self.a(x))))))


def spread(index: Tensor, h: Tensor) -> Tensor:
    return index[:, None].expand(-1, h.shape[1])


def assigned(whole: Tensor, index: object, values: Tensor | float) -> Tensor:
    whole = whole.clone()
    whole[index] = values  # type: ignore[index]
    return whole


def through_a_view(h: Tensor) -> Tensor:
    whole = torch.zeros(h.shape)
    whole[:].index_put_((ORDER,), h)
    return whole


def through_a_part(h: Tensor) -> Tensor:
    whole = torch.zeros(h.shape)
    whole[2:].index_put_((ORDER[:4] % 4,), h[:4])
    return whole


def step_by_step(h: Tensor) -> Tensor:
    state, out = torch.zeros(h.shape[1]), torch.zeros(h.shape)
    for number in range(len(h)):
        state = 0.5 * state + h[number]
        out[number] = state
    return out


def unpooled(h: Tensor) -> Tensor:
    pooled, index = nn.functional.max_pool1d(h.t()[None], 2, return_indices=True)
    return nn.functional.max_unpool1d(pooled, index, 2)[0].t()


FOLLOWED: dict[str, Callable[[Tensor], Tensor]] = {
    "gather": lambda h: h.gather(0, spread(ORDER, h)),
    "take_along_dim": lambda h: torch.take_along_dim(h, ORDER[:, None], 0),
    "repeated index": lambda h: h.gather(0, ORDER[:, None].repeat(1, h.shape[1])),
    "scatter": lambda h: torch.zeros_like(h).scatter(0, spread(ORDER, h), h),
    "scatter_add": lambda h: torch.zeros(h.shape).scatter_add(0, spread(TO, h), h[FROM]),
    "scatter_add in place": lambda h: torch.zeros(h.shape).scatter_add_(0, spread(TO, h), h[FROM]),
    "new_zeros": lambda h: h.new_zeros(ROWS + 2, h.shape[1]).scatter_add(0, spread(TO, h), h[FROM]),
    "scatter_reduce": lambda h: torch.zeros_like(h).scatter_reduce(0, spread(TO, h), h[FROM], "amax"),
    "mean of messages": lambda h: torch.zeros_like(h).scatter_reduce(
        0, spread(TO, h), h[FROM], "mean", include_self=False
    ),
    "masked_scatter": lambda h: h.masked_scatter((ORDER > 5)[:, None].expand_as(h), h.flip(0)),
    "masked_scatter, broadcast": lambda h: h.masked_scatter(
        (torch.arange(3 * ROWS) % 5 > 2).view(3, ROWS, 1).expand(-1, -1, h.shape[1]), torch.cat([h.flip(0)] * 3)
    ).sum(0),
    "slice_scatter": lambda h: h.slice_scatter(h[:4] * 2, 0, 4, 8),
    "select_scatter": lambda h: h.select_scatter(h[3] * 2, 0, 5),
    "rows added to zeros": lambda h: h.new_zeros(ROWS + 2, h.shape[1]).index_add(0, TO, h[FROM], alpha=0.5),
    "rows copied to where others go": lambda h: (h * 2).index_copy(0, TO.unique(), h[: len(TO.unique())]),
    "one row added to several": lambda h: (h * 2).index_put((ORDER[:3],), h[0], accumulate=True),
    "a number assigned to rows": lambda h: (h * 2).index_put((ORDER > 5,), torch.tensor(0.5)),
    "fft along rows": lambda h: torch.fft.fft(h, dim=0).real,
    "rfft along rows and back": lambda h: torch.fft.irfft(torch.fft.rfft(h, dim=0) * 0.5, n=ROWS, dim=0),
    "spectrum times complex weights": lambda h: torch.fft.ifft(torch.fft.fft(h, dim=0) * (1 + 2j), dim=0).real,
    "spectrum written out": lambda h: torch.view_as_real(torch.fft.fft(h, dim=0)).sum(-1),
    "complex of two": lambda h: torch.complex(h, h.flip(0)).conj().imag,
    "rotary pairs of rows": lambda h: torch.view_as_complex(torch.stack([h, -h], -1)).abs(),
    "max_unpool": unpooled,
    "zeros of the width": lambda h: torch.zeros(h.shape[1]) + h,
    "a factor of the width": lambda h: h * torch.full((1, h.shape[1]), 0.5),
    "zeros that met rows": lambda h: h * (torch.zeros(1, h.shape[1]) + torch.arange(ROWS)[:, None].cos()).exp(),
    "zeros joined": lambda h: torch.cat([h, torch.zeros(2, h.shape[1])]),
    "zeros stacked": lambda h: torch.stack([h, torch.zeros(h.shape)]).sum(0),
    "step by step": step_by_step,
    "rows added": lambda h: torch.zeros_like(h).index_add(0, TO, h[FROM]),
    "rows added in place": lambda h: h.new_zeros(ROWS, h.shape[1]).index_add_(0, TO, h[FROM], alpha=2.0),
    "rows copied": lambda h: h.index_copy(0, ORDER[:4], h[4:8]),
    "rows filled": lambda h: h.index_fill(0, ORDER[:4], 2.0),
    "the largest of rows": lambda h: torch.zeros_like(h).index_reduce(0, TO, h[FROM], "amax"),
    "rows assigned": lambda h: torch.zeros_like(h).index_put((ORDER,), h),
    "rows assigned in place": lambda h: assigned(h, ORDER[:4], h[4:8]),
    "rows assigned under a mask": lambda h: assigned(h, ORDER > 5, 2 * h[ORDER > 5]),
    "a number under a mask": lambda h: assigned(h, ORDER > 5, 0.0),
    "rows accumulated": lambda h: torch.zeros_like(h).index_put((TO,), h[FROM], accumulate=True),
    "columns of the transposed assigned": lambda h: assigned(h.t(), (slice(None), ORDER[:4]), h[4:8].t()).t(),
    "assigned by two indices": lambda h: assigned(h.new_zeros(3, 4, h.shape[1]), (ORDER // 4, ORDER % 4), h).flatten(
        0, 1
    ),
    "assigned by indices apart": lambda h: (
        assigned(h.new_zeros(3, h.shape[1], 4), (ORDER // 4, slice(None), ORDER % 4), h).transpose(1, 2).flatten(0, 1)
    ),
    "assigned through a view of all": through_a_view,
    "one row assigned to many": lambda h: assigned(h, ORDER[:4], h[5]),
    "masked_select": lambda h: h.masked_select((ORDER > 5)[:, None]).view(-1, h.shape[1]),
    "segments": lambda h: torch.segment_reduce(h, "sum", lengths=torch.tensor([5, 7])),
    "rows repeated": lambda h: h.repeat_interleave(ORDER % 3, 0),
    "sparse edges": lambda h: EDGES @ h,
    "sparse edges by rows": lambda h: EDGES.to_sparse_csr() @ h,
    "torch.sparse.mm": lambda h: torch.sparse.mm(EDGES, h),
    "sparse edges and the node": lambda h: torch.sparse.addmm(h, EDGES, h),
    "the mean over sparse edges": lambda h: torch.sparse.mm(EDGES.to_sparse_csr(), h, "mean"),
    "tril of rows": lambda h: torch.einsum("nm,mc->nc", torch.ones(ROWS, ROWS).tril(), h),
}
HELD: dict[str, Callable[[Tensor], Tensor]] = {
    "an index of its own for each channel": lambda h: h.gather(
        0, torch.arange(ROWS * WIDTH).reshape(ROWS, WIDTH) % ROWS
    ),
    "only the first channels": lambda h: nn.functional.pad(h.gather(0, spread(ORDER, h)[:, :3]), (0, WIDTH - 3)),
    "along channels": lambda h: h.gather(1, torch.arange(WIDTH).flip(0).expand(ROWS, -1)),
    "assigned through a view of a part": through_a_part,
    "columns assigned": lambda h: assigned(h, (slice(None), torch.tensor([1, 0])), 0.5 * h[:, :2]),
    "a mask of elements": lambda h: assigned(h, torch.eye(ROWS, WIDTH).bool(), 0.0),
    "data assigned": lambda h: assigned(h, ORDER[:4], torch.rand(4, WIDTH)),
    "sparse from the right": lambda h: (h.t() @ EDGES).t(),
    "a position chosen by the channels": lambda h: h[h.sum(0).argsort()[:3] % ROWS],
    "added along channels": lambda h: torch.zeros_like(h).index_add(1, torch.arange(WIDTH) // 2, h),
    "columns assigned by a grid": lambda h: h.index_put((ORDER[:, None], torch.arange(WIDTH)), h),
    "a mask of its own for each channel": lambda h: h.masked_scatter(torch.eye(ROWS, WIDTH).bool(), h),
    "the same, broadcast": lambda h: (
        h.t()
        .masked_scatter(torch.eye(WIDTH).bool()[:3, :, None].expand(-1, -1, ROWS), torch.rand(3 * WIDTH, ROWS))[0]
        .t()
    ),
    "distances": lambda h: torch.cdist(h, h)[:, :WIDTH],
    "distances of many": lambda h: torch.cdist(h.repeat(3, 1), h)[:, :WIDTH],
    "fft along channels": lambda h: torch.fft.fft(h, dim=1).real,
    "data in the zeros": lambda h: torch.zeros(ROWS, WIDTH).copy_(torch.arange(ROWS * WIDTH).view(ROWS, WIDTH)) + h,
    "zeros that met columns": lambda h: h * (torch.zeros(ROWS, 1, WIDTH) + torch.arange(WIDTH).cos())[:, 0],
    "added to the zeros": lambda h: torch.zeros(ROWS, WIDTH).add_(torch.arange(WIDTH)) + h,
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_channels_that_stay_in_place_can_go(name: str) -> None:
    model, x = Net(FOLLOWED[name]), torch.randn(ROWS, 5)
    first, second = find_groups(model, x)
    assert (first.name, second.name) == ("a", "b")
    reference, pruned = copy.deepcopy(model), copy.deepcopy(model)
    zero_consumers(reference, first, [1, 4, 6])
    apply_changes(pruned, slice_members(named_tensors(pruned), [(first, [0, 2, 3, 5, 7])]))
    assert pruned.a.weight.shape[0] == 5
    assert torch.allclose(pruned(x), reference(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", HELD)
def test_channels_that_are_mixed_or_meet_others_stay(name: str) -> None:
    assert [group.name for group in find_groups(Net(HELD[name]), torch.randn(ROWS, 5))] == ["b"]


class SharedZeros(nn.Module):
    """Two layers that add the same zeros, as the attention layers of T5 do: what one loses the other has to lose."""

    def __init__(self, *, plus_rows: bool) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (
            nn.Linear(5, WIDTH),
            nn.Linear(5, WIDTH),
            nn.Linear(WIDTH, 3),
            nn.Linear(WIDTH, 3),
        )
        self.plus_rows = plus_rows

    def forward(self, x: Tensor) -> Tensor:
        zeros = torch.zeros(1, self.a.out_features)
        if self.plus_rows:
            first, second = zeros + torch.arange(ROWS)[:, None].cos(), zeros.mul(2)
        else:
            first = second = zeros
        return self.c((self.a(x) + first).relu()) + self.d((self.b(x) + second).relu())


@pytest.mark.parametrize("plus_rows", [False, True])
def test_equal_elements_keep_one_size_for_all_that_they_meet(plus_rows: bool) -> None:
    model, x = SharedZeros(plus_rows=plus_rows), torch.randn(ROWS, 5)
    [group] = find_groups(model, x)
    assert {member.name for member in group.members if member.role == "producer"} >= {"a.weight", "b.weight"}
    reference, pruned = copy.deepcopy(model), copy.deepcopy(model)
    zero_consumers(reference, group, [1, 4, 6])
    apply_changes(pruned, slice_members(named_tensors(pruned), [(group, [0, 2, 3, 5, 7])]))
    assert torch.allclose(pruned(x), reference(x), rtol=1e-12, atol=1e-12)
