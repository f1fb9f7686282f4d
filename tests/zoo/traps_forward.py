"""Traps in the way the forward pass runs: reuse, control flow, detaching, checkpoints, odd inputs and outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .entry import ROWS, SMALL, Net, floats, mlp, network
from .traps_movement import two_convs


@network(ROWS, must=("body.0", "start"))
def sub_network_twice() -> nn.Module:
    return Net(
        lambda net, x: net.last(net.body(net.body(net.start(x)))),
        start=nn.Linear(6, 14), body=mlp(14, 20, 14), last=nn.Linear(14, 3),
    )  # fmt: skip


@network(ROWS, must=("body.0",), hard=("body.2",), why="the first state's width is a number in the code")
def sub_network_in_a_loop() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 12)
        for _ in range(3):
            h = net.body(torch.cat([x, h], 1))
        return net.last(h)

    return Net(forward, body=mlp(18, 20, 12), last=nn.Linear(12, 3))


@network(ROWS)
def module_of_two_names() -> nn.Module:
    """The same module is registered twice and used under both names."""
    net = Net(lambda net, x: net.last(net.a(x) + net.b(-x)), a=mlp(6, 20, 12), last=nn.Linear(12, 3))
    net.b = net.a
    return net


@network(ROWS, must=("a.0", "b.0"))
def control_flow_of_data() -> nn.Module:
    """One of two branches, by a value; a trace sees one of them."""

    def forward(net: Net, x: Tensor) -> Tensor:
        return net.last(net.a(x) if x[0, 0] > 0 else net.b(x))

    def inputs_differ(net: Net, x: Tensor) -> Tensor:
        return forward(net, x) + forward(net, -x)

    return Net(inputs_differ, a=mlp(6, 20, 12), b=mlp(6, 10, 12), last=nn.Linear(12, 3))


@network(ROWS)
def early_exit() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.a(x)
        confident = y.softmax(1).max(1).values > 0.5
        if confident.all():
            return net.last(y)
        return net.last(net.b(y))

    return Net(forward, a=mlp(6, 20, 12), b=mlp(12, 10, 12), last=nn.Linear(12, 3))


@network(floats((16, 6)))
def routed_rows() -> nn.Module:
    """Two experts, each for the rows that a router sends it."""

    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.first(x).relu()
        chosen = net.router(x).argmax(1)
        y = torch.zeros(x.shape[0], 5, dtype=x.dtype)
        for i, expert in enumerate((net.a, net.b)):
            rows = torch.where(chosen == i)[0]
            y.index_add_(0, rows, expert(x[rows]))
        return y

    return Net(forward, first=nn.Linear(6, 14), router=nn.Linear(14, 2), a=mlp(14, 20, 5), b=mlp(14, 10, 5))


@network(ROWS, must=("first", "side.0"))
def detached_branch() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.first(x).relu()
        return net.last(y) + net.side(y.detach())

    return Net(forward, first=nn.Linear(6, 12), side=mlp(12, 20, 3), last=nn.Linear(12, 3))


@network(ROWS, must=("first",))
def no_grad_branch() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = net.first(x).relu()
        return net.last(net.middle(y.clone().data).relu())

    return Net(forward, first=nn.Linear(6, 12), middle=nn.Linear(12, 20), last=nn.Linear(20, 3))


@network(ROWS, must=("first", "body.0"))
def checkpointed() -> nn.Module:
    return Net(
        lambda net, x: net.last(checkpoint(net.body, net.first(x), use_reentrant=False)),
        first=nn.Linear(6, 12), body=mlp(12, 20, 14), last=nn.Linear(14, 3),
    )  # fmt: skip


@network(ROWS, must=("keys", "values"))
def learned_query() -> nn.Module:
    """A parameter without an input before it makes the channels."""

    def forward(net: Net, x: Tensor) -> Tensor:
        keys, values = net.keys(x), net.values(x)
        weight = (net.query @ keys.t()).softmax(-1)
        return net.last((weight @ values).relu())

    return Net(
        forward, query=nn.Parameter(torch.randn(5, 12)), keys=nn.Linear(6, 12), values=nn.Linear(6, 20),
        last=nn.Linear(20, 3),
    )  # fmt: skip


@network(ROWS, must=("scale.2", "scale.0"))
def modulation() -> nn.Module:
    """FiLM: scale and shift of one branch come from another, in one Linear."""

    def forward(net: Net, x: Tensor) -> Tensor:
        scale, shift = net.scale(x).chunk(2, -1)
        return net.last((net.first(x) * (1 + scale) + shift).relu())

    return Net(forward, first=nn.Linear(6, 12), scale=mlp(6, 20, 24), last=nn.Linear(12, 3))


@network(SMALL, expect="any")
def in_place_slice() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.first(x)
        y[:, :, 1:3] *= 0.5
        y[..., -1].clamp_(min=0)
        return net.last(y)

    return two_convs(forward)


@network(SMALL, must=("first",))
def in_place_everything() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.first(x)
        y.mul_(2).add_(1).clamp_(-2, 2).relu_()
        z = net.second(x)
        z += y
        return net.last(F.dropout(z, 0.0, inplace=True))

    net = two_convs(forward)
    net.second = nn.Conv2d(3, 12, 1)
    return net
