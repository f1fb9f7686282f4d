"""Traps where channels are put side by side, cut apart or picked out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import SMALL, Net, floats, network
from .traps_movement import two_convs


@network(SMALL, must=("first",))
def concat_with_input() -> nn.Module:
    return two_convs(lambda net, x: net.last(torch.cat([x, net.first(x)], 1)), 12, 15)


@network(SMALL, must=("first",))
def concat_with_constant() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.first(x)
        ramp = torch.linspace(-1, 1, 8, dtype=y.dtype).expand(y.shape[0], 1, 8, 8)
        return net.last(torch.cat([y, ramp, y.new_zeros(2, 1, 8, 8)], 1))

    return two_convs(forward, 12, 14)


@network(SMALL, must=("first", "second", "third"))
def concat_of_three() -> nn.Module:
    """Siblings under one consumer are groups of their own."""

    def forward(net: Net, x: Tensor) -> Tensor:
        return net.last(torch.cat([net.first(x), net.second(x), net.third(x)], 1))

    net = two_convs(forward, 12, 29)
    net.second, net.third = nn.Conv2d(3, 7, 1), nn.Conv2d(3, 10, 5, padding=2)
    return net


@network(SMALL)
def concat_then_add() -> nn.Module:
    """Two concatenations with other borders are added: classes cross the borders."""

    def forward(net: Net, x: Tensor) -> Tensor:
        return net.last(torch.cat([net.a(x), net.b(x)], 1) + torch.cat([net.c(x), net.d(x)], 1))

    parts = {name: nn.Conv2d(3, out, 3, padding=1) for name, out in (("a", 8), ("b", 12), ("c", 14), ("d", 6))}
    return Net(forward, **parts, last=nn.Conv2d(20, 5, 3))


@network(SMALL, must=("first",))
def concat_with_itself() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.first(x)
        return net.last(torch.cat([y.relu(), -y, y.abs()], 1))

    return two_convs(forward, 8, 24)


@network(SMALL)
def padded_shortcut() -> nn.Module:
    """Eight channels of a shortcut, padded by two and four zeros, meet fourteen."""

    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.first(x)
        return net.last((net.middle(y) + F.pad(y, (0, 0, 0, 0, 2, 4))).relu())

    net = two_convs(forward, 8, 14)
    net.middle = nn.Conv2d(8, 14, 3, padding=1)
    return net


@network(SMALL, expect="any", hard=("*",), why="the slice names a width")
def shortcut_of_part() -> nn.Module:
    """A residual for the first eight of fourteen channels only, as in partial residual networks."""

    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.first(x)
        z = net.middle(y)
        return net.last(torch.cat([z[:, :8] + y, z[:, 8:]], 1))

    net = two_convs(forward, 8, 14)
    net.middle = nn.Conv2d(8, 14, 3, padding=1)
    return net


@network(SMALL, expect="any", hard=("*",), why="the slice names a width")
def hard_slice() -> nn.Module:
    return two_convs(lambda net, x: net.last(net.first(x)[:, :5]), 12, 5)


@network(SMALL, expect="any", hard=("*",), why="which channels a stride meets depends on their number")
def strided_slice() -> nn.Module:
    return two_convs(lambda net, x: net.last(net.first(x)[:, ::2]), 12, 6)


@network(SMALL, expect="any", hard=("*",), why="the split names widths")
def hard_split() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        a, b = net.first(x).split([8, 12], 1)
        return net.last(torch.cat([b, a], 1))

    return two_convs(forward, 20, 20)


@network(SMALL, expect="any", hard=("*",), why="the view names a width")
def hard_view() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.fc(net.conv(x).mean((2, 3)).view(-1, 20))

    return Net(forward, conv=nn.Conv2d(3, 20, 3), fc=nn.Linear(20, 5))


@network(floats((3, 6)), expect="any", hard=("*",), why="the view names a width, and with fewer channels still fits")
def hard_view_that_fits() -> nn.Module:
    """With 12 channels cut to 8 the view gives 2 rows where 3 were; only the next layer notices."""
    return Net(lambda net, x: net.b(net.a(x).view(-1, 12)).sum(0), a=nn.Linear(6, 12), b=nn.Linear(12, 5))


@network(SMALL, must=("first",))
def chunk_and_swap() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        a, b = net.first(x).chunk(2, 1)
        return net.last(torch.cat([b, a], 1))

    return two_convs(forward)


@network(SMALL, must=("first",))
def chunk_of_three_in_turn() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        a, b, c = net.first(x).chunk(3, 1)
        return net.last(a * b + c)

    return two_convs(forward, 18, 6)


@network(SMALL, must=("first",))
def stack_and_unbind() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.first(x)
        a, b = torch.stack([y, y * 2], 2).unbind(2)
        return net.last(a + b.relu())

    return two_convs(forward)


@network(SMALL, must=("first",))
def slice_assignment() -> nn.Module:
    """Channels are written into a buffer made for them, next to the input."""

    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.first(x)
        room = x.new_zeros(x.shape[0], y.shape[1] + 3, 8, 8)
        room[:, :3] = x
        room[:, 3:] = y
        return net.last(room)

    return two_convs(forward, 12, 15)


@network(SMALL, expect="any")
def slice_add_in_place() -> nn.Module:
    """The input is added into the first three channels: those are fixed, the others are not."""

    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.first(x).clone()
        y[:, :3] += x
        y[:, :, 0] = 0
        return net.last(y)

    return two_convs(forward)


@network(floats((2, 9, 6)), must=("fc",))
def expand_and_concat_positions() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.fc(x)
        pooled = y.mean(1, keepdim=True).expand_as(y)
        place = torch.linspace(0, 1, 9, dtype=y.dtype)[None, :, None].expand(2, -1, 3)
        return net.last(torch.cat([y, place, pooled, net.table.expand(2, -1, -1)], -1))

    return Net(forward, fc=nn.Linear(6, 12), table=nn.Parameter(torch.randn(1, 9, 4)), last=nn.Linear(31, 5))
