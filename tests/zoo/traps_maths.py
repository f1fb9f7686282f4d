"""Traps in the arithmetic: norms, gates, reductions over channels, unknown operations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import ROWS, SMALL, Net, floats, network
from .traps_movement import two_convs


@network(floats((4, 6), (4, 6)), must=("first", "third"))
def cosine_similarity() -> nn.Module:
    def forward(net: Net, x: Tensor, y: Tensor) -> Tensor:
        a, b = net.second(net.first(x).relu()), net.second(net.first(y).relu())
        return net.last(net.third(F.cosine_similarity(a, b)[:, None]).relu())

    return Net(forward, first=nn.Linear(6, 12), second=nn.Linear(12, 20), third=nn.Linear(1, 10), last=nn.Linear(10, 3))


@network(floats((4, 6), (5, 6)), expect="none", why="no weight consumes the features")
def scores_of_pairs() -> nn.Module:
    """Two towers whose output is the product of their features: both widths go together, up to the product."""

    def forward(net: Net, x: Tensor, y: Tensor) -> Tensor:
        return net.a(x).relu() @ net.b(y).relu().t() / 3

    return Net(forward, a=nn.Linear(6, 12), b=nn.Linear(6, 12))


@network(SMALL, must=("first",))
def style_of_products() -> nn.Module:
    """A Gram matrix over the channels is seen outside."""

    def forward(net: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        y = net.second(net.first(x).relu()).flatten(2)
        return net.last(y.mean(2)), y @ y.transpose(1, 2)

    return Net(forward, first=nn.Conv2d(3, 12, 3), second=nn.Conv2d(12, 10, 3), last=nn.Linear(10, 3))


@network(SMALL, must=("first",))
def glu_over_channels() -> nn.Module:
    return two_convs(lambda net, x: net.last(F.glu(net.first(x), 1)), 24, 12)


@network(SMALL, must=("first",))
def chunk_gate() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        value, gate = net.first(x).chunk(2, 1)
        return net.last(value * F.silu(gate))

    return two_convs(forward, 24, 12)


@network(SMALL, expect="any", hard=("*",), why="the split names widths")
def uneven_split_gate() -> nn.Module:
    """Twelve values, a gate each for eight of them, one gate for all."""

    def forward(net: Net, x: Tensor) -> Tensor:
        value, gates, single = net.first(x).split([12, 8, 1], 1)
        value = torch.cat([value[:, :4], value[:, 4:] * gates.sigmoid()], 1)
        return net.last(value * single.sigmoid())

    return two_convs(forward, 21, 12)


@network(SMALL, must=("first", "squeeze"))
def channel_attention() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.first(x)
        return net.last(y * net.excite(net.squeeze(y.mean((2, 3))).relu()).sigmoid()[..., None, None])

    net = two_convs(forward, 14, 14)
    net.squeeze, net.excite = nn.Linear(14, 8), nn.Linear(8, 14)
    return net


@network(SMALL, must=("first", "narrow"))
def linear_along_places() -> nn.Module:
    """A Linear on the spatial axis, whose width is not a channel of the convolution."""

    def forward(net: Net, x: Tensor) -> Tensor:
        return net.last(net.wide(net.narrow(net.first(x)).relu()))

    net = two_convs(forward)
    net.narrow, net.wide = nn.Linear(8, 20), nn.Linear(20, 6)
    return net


@network(floats((2, 9, 6)), must=("first",))
def linear_along_tokens() -> nn.Module:
    """A Linear across the tokens, as in Linformer, then back."""

    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.first(x).relu()
        return net.last(net.back(net.across(y.transpose(1, 2)).relu()).transpose(1, 2))

    return Net(forward, first=nn.Linear(6, 12), across=nn.Linear(9, 20), back=nn.Linear(20, 9), last=nn.Linear(12, 3))


@network(SMALL, must=("first",))
def where() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        y, z = net.first(x), net.second(x)
        return net.last(torch.where(y > z, y, z * 0.5))

    net = two_convs(forward)
    net.second = nn.Conv2d(3, 12, 1)
    return net


@network(SMALL, must=("first",))
def masked_fill() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.first(x)
        y = y.masked_fill(x.sum(1, keepdim=True) > 0, 1.5)
        return net.last(y.masked_fill(y < -0.3, -0.3))

    return two_convs(forward)


@network(SMALL, must=("first",))
def constant_of_channels() -> nn.Module:
    """A buffer that differs by channel is added; it joins the channels."""
    net = two_convs(lambda net, x: net.last(net.first(x) + net.ramp))
    net.register_buffer("ramp", torch.linspace(-1, 1, 12)[:, None, None])
    return net


@network(SMALL, must=("first",))
def upsampling() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.first(x)
        up = F.interpolate(y, size=(9, 9), mode="bicubic") + F.interpolate(y, size=9, mode="nearest")
        return net.last(F.adaptive_max_pool2d(up, 5) + F.lp_pool2d(up.abs(), 2, 2)[..., 0:1, 0:1])

    return two_convs(forward)


@network(SMALL, expect="any")
def grid_sampling() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.first(x)
        grid = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 6), torch.linspace(-1, 1, 6), indexing="ij"), -1)
        return net.last(F.grid_sample(y, grid.to(y.dtype).expand(y.shape[0], -1, -1, -1), align_corners=False))

    return two_convs(forward)


@network(SMALL, expect="any")
def max_unpooling() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        y, index = F.max_pool2d(net.first(x), 2, return_indices=True)
        return net.last(F.max_unpool2d(y * 2, index, 2))

    return two_convs(forward)


ACTIVATIONS = (
    nn.Sigmoid, nn.Tanh, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign, nn.Hardtanh,
    nn.Hardswish, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.LeakyReLU, nn.RReLU,
)  # fmt: skip


@network(ROWS, must=tuple(f"branches.{i}.0" for i in range(len(ACTIVATIONS))))
def every_activation() -> nn.Module:
    branches = [nn.Sequential(nn.Linear(6, 10 + i), act(), nn.Linear(10 + i, 3)) for i, act in enumerate(ACTIVATIONS)]
    return Net(lambda net, x: sum(branch(x) for branch in net.branches), branches=nn.ModuleList(branches))
