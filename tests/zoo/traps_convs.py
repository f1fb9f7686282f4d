"""Traps in convolutions, per-channel parameters and computed kernels, and in number formats."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import SMALL, Net, network


@network(SMALL, must=("first",))
def channel_buffers() -> nn.Module:
    """A float buffer scales, a boolean one switches channels off, a scalar one shifts."""
    return Net(
        lambda net, x: net.last((net.first(x) * net.scale).masked_fill(net.dead, 0.0) + net.shift),
        first=nn.Conv2d(3, 12, 3), last=nn.Conv2d(12, 5, 3), scale=torch.rand(12, 1, 1) + 0.5,
        dead=(torch.arange(12) % 5 == 2)[None, :, None, None], shift=torch.tensor(0.3),
    )  # fmt: skip


@network(SMALL, must=("first.0", "first.3"))
def frozen_layers() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 20, 3), nn.ReLU())
    net.requires_grad_(False)
    return Net(lambda self, x: self.last(self.first(x).mean((2, 3))), first=net, last=nn.Linear(20, 3))


@network(SMALL, must=("first",))
def layer_scale() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        x = net.first(x)
        return net.last(x + net.gamma[:, None, None] * net.middle(x))

    parts = {"first": nn.Conv2d(3, 12, 3), "middle": nn.Conv2d(12, 12, 1), "last": nn.Conv2d(12, 5, 1)}
    return Net(forward, **parts, gamma=nn.Parameter(torch.full((12,), 1e-5)))


@network(SMALL, must=("0",))
def prelu_per_channel() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 12, 3), nn.PReLU(12), nn.Conv2d(12, 5, 3))


@network(SMALL, must=("0",))
def prelu_shared() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 12, 3), nn.PReLU(), nn.Conv2d(12, 5, 3))


@network(SMALL, must=("0",))
def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 18, 3, groups=3), nn.ReLU(), nn.Conv2d(18, 5, 1))


@network(SMALL, must=("first",))
def transposed_of_channels_last() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        return net.last(net.up(net.first(x).contiguous(memory_format=torch.channels_last)).relu())

    return Net(
        forward, first=nn.Conv2d(3, 12, 3), up=nn.ConvTranspose2d(12, 8, 2, 2), last=nn.Conv2d(8, 5, 1)
    )  # fmt: skip


@network(SMALL, must=("0",))
def depthwise() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3, groups=12), nn.ReLU(), nn.Conv2d(12, 5, 1))


@network(SMALL)
def depthwise_multiplier() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 10, 3), nn.Conv2d(10, 30, 3, groups=10), nn.ReLU(), nn.Conv2d(30, 5, 1))


@network(SMALL, expect="any", hard=("*",), why="the groups of F.conv2d are a number in the code")
def functional_depthwise() -> nn.Module:
    return Net(
        lambda net, x: net.last(F.conv2d(net.first(x), net.kernel, groups=12)),
        first=nn.Conv2d(3, 12, 3), kernel=nn.Parameter(torch.randn(12, 1, 3, 3)), last=nn.Conv2d(12, 5, 1),
    )  # fmt: skip


@network(SMALL, expect="any", why="whether the group count is a number nobody can know")
def fixed_blur() -> nn.Module:
    """Anti-aliasing with a buffer as kernel, one copy per channel."""
    blur = torch.tensor([1.0, 2.0, 1.0])
    return Net(
        lambda net, x: net.last(F.conv2d(net.first(x), net.blur, groups=net.blur.shape[0], stride=2, padding=1)),
        first=nn.Conv2d(3, 12, 3), blur=(blur[:, None] * blur / 16).repeat(12, 1, 1, 1), last=nn.Conv2d(12, 5, 1),
    )  # fmt: skip


@network(SMALL, must=("0", "2"))
def transposed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.ConvTranspose2d(12, 20, 3, 2), nn.ReLU(), nn.Conv2d(20, 5, 1)
    )


@network(SMALL, must=("0",))
def transposed_grouped() -> nn.Module:
    up = nn.ConvTranspose2d(12, 18, 3, 2, groups=3)
    return nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), up, nn.ReLU(), nn.Conv2d(18, 5, 1))


@network(SMALL, must=("0",))
def transposed_depthwise() -> nn.Module:
    up = nn.ConvTranspose2d(12, 12, 4, 2, 1, groups=12)
    return nn.Sequential(nn.Conv2d(3, 12, 3), up, nn.ReLU(), nn.Conv2d(12, 5, 1))


@network(SMALL, normalized=("0",), must=("2",))
def weight_standardisation() -> nn.Module:
    """A weight normalised per output channel: its statistics are those of the inputs that stay."""

    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            mean, var = self.weight.mean((1, 2, 3), keepdim=True), self.weight.var((1, 2, 3), keepdim=True)
            return F.conv2d(x, (self.weight - mean) / (var + 1e-5).sqrt(), self.bias)

    return nn.Sequential(Standardised(3, 12, 3), nn.ReLU(), Standardised(12, 20, 3), nn.ReLU(), nn.Conv2d(20, 5, 1))


@network(SMALL, must=("0",))
def channels_last() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 20, 3), nn.Conv2d(20, 5, 1))
    return net.to(memory_format=torch.channels_last)


@network(lambda g: (torch.randn(2, 3, 8, 8, generator=g).bfloat16(),), must=("0",))
def bf16() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 20, 3), nn.Conv2d(20, 5, 1))
    return net.bfloat16()


@network(SMALL, must=("first",))
def autocast() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y = net.last(net.first(x).relu())
        return y.float()

    return Net(forward, first=nn.Conv2d(3, 12, 3), last=nn.Conv2d(12, 5, 3))


@network(SMALL, expect="any")
def hyper_network() -> nn.Module:
    """A kernel computed from the input: the channels of its other side may still go."""

    def forward(net: Net, x: Tensor) -> Tensor:
        gate = net.router(x.mean((2, 3))).softmax(-1)
        kernel = torch.einsum("be,eoihw->boihw", gate, net.experts)
        y = net.first(x)
        b, c, h, w = y.shape
        y = F.conv2d(y.reshape(1, b * c, h, w), kernel.flatten(0, 1), groups=b)
        return net.last(y.view(b, -1, *y.shape[2:]).relu())

    parts = {"first": nn.Conv2d(3, 12, 3), "router": nn.Linear(3, 4), "last": nn.Conv2d(14, 5, 1)}
    return Net(forward, **parts, experts=nn.Parameter(torch.randn(4, 14, 12, 3, 3) * 0.1))


@network(SMALL, must=("first",))
def unused_parameters() -> nn.Module:
    net = Net(lambda net, x: net.last(net.first(x)), first=nn.Conv2d(3, 12, 3), last=nn.Conv2d(12, 5, 3))
    net.unused, net.list = nn.Linear(12, 12), nn.ParameterList([torch.zeros(12), torch.zeros(3)])
    return net
