"""Traps where channels move: views, slices, concatenations, permutations. One seam each, so that a miss shows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import SMALL, Net, floats, network


def two_convs(forward: object, middle: int = 12, inside: int = 12, out: int = 5) -> Net:
    """A convolution, something in between, another convolution."""
    return Net(forward, first=nn.Conv2d(3, middle, 3, padding=1), last=nn.Conv2d(inside, out, 3))


@network(SMALL, must=("conv",))
def flatten_after_permute() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.fc(net.conv(x).relu().permute(0, 2, 3, 1).flatten(1))

    return Net(forward, conv=nn.Conv2d(3, 12, 3), fc=nn.Linear(12 * 36, 5))


@network(SMALL, must=("conv",))
def flatten_plain() -> nn.Module:
    return Net(lambda net, x: net.fc(torch.flatten(net.conv(x), 1)), conv=nn.Conv2d(3, 12, 3), fc=nn.Linear(12 * 36, 5))


@network(SMALL, must=("conv",))
def channels_by_width_rows() -> nn.Module:
    """Rows of the picture become the tokens, channels times width their features."""

    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.conv(x)
        return net.fc(y.permute(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], -1))

    return Net(forward, conv=nn.Conv2d(3, 12, 3), fc=nn.Linear(12 * 6, 5))


@network(SMALL, must=("first",))
def pixel_shuffle() -> nn.Module:
    return two_convs(lambda net, x: net.last(F.pixel_shuffle(net.first(x), 2).relu()), 20, 5)


@network(SMALL, must=("first",))
def pixel_unshuffle() -> nn.Module:
    return two_convs(lambda net, x: net.last(F.pixel_unshuffle(net.first(x), 2)), 6, 24)


@network(SMALL, must=("first",))
def space_to_depth() -> nn.Module:
    """Swin's and YOLO's focus layer: four strided copies side by side."""

    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.first(x)
        return net.last(torch.cat([y[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1))

    return two_convs(forward, 7, 28)


@network(SMALL, must=("first",))
def flip_channels() -> nn.Module:
    return two_convs(lambda net, x: net.last(net.first(x).flip(1)))


@network(SMALL)
def flip_and_add() -> nn.Module:
    """Channel i is added to channel 11 - i: pairs live and die together."""

    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.first(x)
        return net.last(y + y.flip(1))

    return two_convs(forward)


@network(SMALL, expect="any", hard=("*",), why="five channels are rolled, however many there are")
def roll_channels() -> nn.Module:
    return two_convs(lambda net, x: net.last(net.first(x).roll(5, 1)))


@network(SMALL, expect="none", why="every channel is added to its neighbour, so all are one class")
def roll_and_add() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.first(x)
        return net.last(y + y.roll(1, 1))

    return two_convs(forward)


@network(SMALL, expect="any", hard=("*",), why="the index has as many entries as channels")
def fixed_permutation() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.last(net.first(x)[:, net.order])

    net = two_convs(forward)
    net.register_buffer("order", torch.randperm(12, generator=torch.Generator().manual_seed(3)))
    return net


@network(SMALL, expect="any", hard=("*",), why="the index names channels by number")
def gathered_subset() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.last(torch.index_select(net.first(x), 1, net.order))

    net = two_convs(forward, 12, 6)
    net.register_buffer("order", torch.tensor([7, 0, 3, 11, 3, 5]))
    return net


@network(SMALL, must=("first",))
def repeat_interleave() -> nn.Module:
    return two_convs(lambda net, x: net.last(net.first(x).repeat_interleave(2, 1)), 7, 14)


@network(SMALL, must=("first",))
def tiled_channels() -> nn.Module:
    return two_convs(lambda net, x: net.last(net.first(x).repeat(1, 2, 1, 1)), 7, 14)


@network(SMALL, must=("first",))
def temporal_shift() -> nn.Module:
    """Half of the channels move one row up, half one row down."""

    def forward(net: Net, x: Tensor) -> Tensor:
        up, down = net.first(x).chunk(2, 1)
        return net.last(torch.cat([F.pad(up[:, :, 1:], (0, 0, 0, 1)), F.pad(down[:, :, :-1], (0, 0, 1, 0))], 1))

    return two_convs(forward)


@network(SMALL, expect="any")
def unfold_patches() -> nn.Module:
    """im2col, then a Linear as convolution."""

    def forward(net: Net, x: Tensor) -> Tensor:
        return net.fc(F.unfold(net.first(x), 3).transpose(1, 2))

    return Net(forward, first=nn.Conv2d(3, 7, 3, padding=1), fc=nn.Linear(63, 5))


@network(SMALL, expect="any")
def fold_patches() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.last(F.fold(F.unfold(net.first(x), 3, padding=1), (8, 8), 3, padding=1))

    return two_convs(forward)


@network(SMALL, must=("first",))
def tensor_unfold() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        patches = net.first(x).unfold(2, 4, 4).unfold(3, 4, 4)
        return net.fc(patches.permute(0, 2, 3, 1, 4, 5).flatten(3))

    return Net(forward, first=nn.Conv2d(3, 7, 3, padding=1), fc=nn.Linear(7 * 16, 5))


@network(SMALL, must=("first",))
def windows() -> nn.Module:
    """Swin's partition into windows and back, through channels last."""

    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.first(x).permute(0, 2, 3, 1)
        b, h, w, c = y.shape
        y = y.view(b, 2, 4, 2, 4, c).transpose(2, 3).reshape(-1, 16, c).relu()
        y = y.view(b, 2, 2, 4, 4, c).transpose(2, 3).reshape(b, h, w, c)
        return net.last(torch.roll(y, (2, 2), (1, 2)).permute(0, 3, 1, 2))

    return two_convs(forward)


@network(floats((2, 5, 6)), must=("first",))
def tokens_into_features() -> nn.Module:
    """All tokens' features side by side."""
    return Net(lambda net, x: net.last(net.first(x).tanh().flatten(1)), first=nn.Linear(6, 12), last=nn.Linear(60, 4))


@network(SMALL, must=("first",))
def expand_map() -> nn.Module:
    """A residual map of one channel is added to all of twelve."""

    def forward(net: Net, x: Tensor) -> Tensor:
        return net.last(net.first(x) + net.single(x))

    net = two_convs(forward)
    net.single = nn.Conv2d(3, 1, 1)
    return net


@network(SMALL, expect="any")
def diagonal_and_tril() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.first(x)
        return net.last(y.tril()) + net.fc(y.diagonal(dim1=2, dim2=3).transpose(1, 2)).mean()

    net = two_convs(forward)
    net.fc = nn.Linear(12, 5)
    return net
