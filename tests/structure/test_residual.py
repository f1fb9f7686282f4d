"""Which additions are residual: streams are left out of the default, layers in several parts are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_coreset.planning import is_residual
from lightning_coreset.structure import analyse, residual

WIDTH = 8


class Sum(nn.Module):
    """Reads ``x`` in a layer, adds something up, and reads the sum in a last layer."""

    def __init__(self, add: Callable[[Sum, Tensor], Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.first, self.last, self.add = nn.Linear(5, 6), nn.Linear(WIDTH, 3), add
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.add(self, self.first(x).relu()))


def _made(*, read: int = 6, **more: nn.Module) -> dict[str, nn.Module]:
    return {"a": nn.Linear(read, WIDTH), "b": nn.Linear(6, WIDTH)} | more


HIDDEN = {"down": nn.Linear(6, 4, bias=False), "up": nn.Linear(4, WIDTH, bias=False)}
PARTS = {
    "two products": Sum(lambda net, x: net.a(x) + net.b(x), **_made()),
    "of functions of one tensor": Sum(lambda net, x: net.a(x.sin()) + net.b(F.silu(x)), **_made()),
    "written in place": Sum(lambda net, x: net.a(x).add_(net.b(x)), **_made()),
    "weighted": Sum(lambda net, x: torch.lerp(net.a(x), net.b(x), 0.3), **_made()),
    "with a BatchNorm each": Sum(
        lambda net, x: net.c(net.a(x)) + net.d(net.b(x)), **_made(c=nn.BatchNorm1d(WIDTH), d=nn.BatchNorm1d(WIDTH))
    ),
    "with factors of low rank": Sum(
        lambda net, x: net.a(x) + 0.5 * net.up(F.dropout(net.down(x), 0.1, net.training)), a=nn.Linear(6, 8), **HIDDEN
    ),
    "as the bias of a product": Sum(lambda net, x: torch.addmm(net.a(x), x, net.b.weight.t()), **_made()),
    "gated by what reads it": Sum(
        lambda net, x: (y := net.a(x)) * net.c(y).sigmoid() + y * 2, **_made(c=nn.Linear(WIDTH, WIDTH))
    ),
    "of different inputs": Sum(
        lambda net, x: net.a(net.e.sin()) + net.b(x), **_made(e=nn.Parameter(torch.randn(4, 6)))
    ),
}  # fmt: skip
STREAMS = {
    "identity": Sum(lambda net, x: (y := net.a(x)) + net.c(y.relu()), **_made(c=nn.Linear(WIDTH, WIDTH))),
    "identity with a norm": Sum(
        lambda net, x: net.c(y := net.a(x)) + net.d(y), **_made(c=nn.BatchNorm1d(WIDTH), d=nn.Linear(WIDTH, WIDTH))
    ),
    "projection": Sum(lambda net, x: net.b(x) + net.c(net.a(x).relu()), **_made(c=nn.Linear(WIDTH, WIDTH))),
    "behind parts": Sum(
        lambda net, x: (y := net.a(x) + net.b(x)) + net.c(y.relu()), **_made(c=nn.Linear(WIDTH, WIDTH))
    ),
    "as the bias of a product": Sum(
        lambda net, x: torch.addmm(y := net.a(x), y.relu(), net.c.weight.t()), **_made(c=nn.Linear(WIDTH, WIDTH))
    ),
    "projection as the bias of a product": Sum(
        lambda net, x: torch.addmm(net.b(x), net.a(x).relu(), net.c.weight.t()), **_made(c=nn.Linear(WIDTH, WIDTH))
    ),
    "through what cannot be followed": Sum(
        lambda net, x: (y := net.a(x)) + net.c(torch.linalg.pinv(net.d(y)).t()),
        **_made(c=nn.Linear(WIDTH, WIDTH), d=nn.Linear(WIDTH, WIDTH)),
    ),
    "written in place": Sum(
        lambda net, x: (y := net.a(x)).add_(net.c(y.relu())), **_made(c=nn.Linear(WIDTH, WIDTH))
    ),
    "in parts of memory": Sum(
        lambda net, x: _into_a_view(net.a(x), net.c), **_made(c=nn.Linear(WIDTH, WIDTH))
    ),
}  # fmt: skip


def _into_a_view(y: Tensor, layer: nn.Module) -> Tensor:
    read = layer(y.relu())
    y[:2] += read[:2]
    return y


def _coupled(model: nn.Module, x: Tensor) -> dict[str, bool]:
    """For each group that several layers make, whether it is residual."""
    groups = analyse(model.eval(), x).groups
    return {group.name: is_residual(group) for group in groups if len({m.name for m in group.by_role("producer")}) > 1}


@pytest.mark.parametrize("name", PARTS)
def test_a_layer_in_several_parts_is_no_residual_stream(name):
    assert not any(_coupled(PARTS[name], torch.randn(4, 5)).values())


@pytest.mark.parametrize("name", STREAMS)
def test_shortcuts_are_residual_however_they_are_written(name):
    assert [*_coupled(STREAMS[name], torch.randn(4, 5)).values()] == [True]


def test_one_shortcut_makes_a_stream_of_all_that_it_is_added_to():
    """As in a stage of RepVGG: the layers of several parts before and in a block with an identity."""

    def block(net: Sum, x: Tensor) -> Tensor:
        x = (net.a(x) + net.b(x)).relu()
        return net.e((net.c(x) + net.d(x) + x).relu()) + net.f(x)

    parts = {name: nn.Linear(WIDTH, WIDTH) for name in "cdef"}
    parts["e"] = nn.Sequential(nn.Linear(WIDTH, 7), nn.ReLU(), nn.Linear(7, WIDTH))
    coupled = _coupled(Sum(block, **_made(**parts)), torch.randn(4, 5))
    assert coupled == {"a": True, "e.2": True}


def test_cells_in_loops_are_no_shortcuts():
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.u, self.last = nn.Linear(5, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = x.new_zeros(x.shape[0], self.u.weight.shape[1])
            for step in x.unbind(1):
                h = (self.w(step) + self.u(h)).tanh()
            return self.last(h)

    assert _coupled(Cell(), torch.randn(2, 3, 5)) == {"w": False}


def test_more_calls_than_are_told_apart_still_show_streams(monkeypatch):
    monkeypatch.setattr(residual, "_MOST_NUMBERS", 2)
    for name, model in STREAMS.items():
        assert all(_coupled(model, torch.randn(4, 5)).values()), name
