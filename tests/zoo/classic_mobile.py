"""Networks for small devices: depthwise convolutions, squeeze-excite, channel shuffle, ghosts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .classic_cnn import conv_bn, head
from .entry import image, network


@network(image(), must=("0.0", "1.1.0", "2.1.0"))
def mobilenet_v1() -> nn.Module:
    def block(channels: int, out: int, stride: int) -> nn.Module:
        return nn.Sequential(conv_bn(channels, channels, 3, stride, channels), conv_bn(channels, out, 1))

    return nn.Sequential(conv_bn(3, 12), block(12, 20, 1), block(20, 28, 2), head(28))


class Inverted(nn.Module):
    """MobileNet's inverted residual: expand, depthwise, (squeeze-excite,) project."""

    def __init__(
        self, channels: int, middle: int, out: int, stride: int, squeeze: int = 0, act: type[nn.Module] = nn.ReLU6
    ) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(channels, middle, 1, bias=False), nn.BatchNorm2d(middle), act())
        deep = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.deep = nn.Sequential(deep, nn.BatchNorm2d(middle), act())
        self.gate = None
        if squeeze:
            last = nn.Sigmoid() if act is nn.SiLU else nn.Hardsigmoid()
            layers = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(middle, squeeze, 1), act(), nn.Conv2d(squeeze, middle, 1)]
            self.gate = nn.Sequential(*layers, last)
        self.project = nn.Sequential(nn.Conv2d(middle, out, 1, bias=False), nn.BatchNorm2d(out))
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.deep(self.expand(x))
        if self.gate is not None:
            y = y * self.gate(y)
        y = self.project(y)
        return x + y if self.residual else y


@network(image(), must=("1.expand.0", "2.expand.0", "3.expand.0"))
def mobilenet_v2() -> nn.Module:
    blocks = [Inverted(12, 28, 12, 1), Inverted(12, 36, 20, 2), Inverted(20, 44, 20, 1)]
    return nn.Sequential(conv_bn(3, 12), *blocks, conv_bn(20, 40, 1), head(40))


@network(image(), must=("3.expand.0", "3.gate.1", "4.expand.0", "5.gate.1"))
def mobilenet_v3() -> nn.Module:
    act = nn.Hardswish
    blocks = [Inverted(12, 28, 12, 1, 8, act), Inverted(12, 36, 20, 2, 0, act), Inverted(20, 44, 20, 1, 12, act)]
    stem = [nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), act()]
    tail = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(20, 40, 1), act(), nn.Flatten(), nn.Linear(40, 7)]
    return nn.Sequential(*stem, *blocks, *tail)


@network(image(), must=("3.expand.0", "3.gate.1"))
def efficientnet() -> nn.Module:
    stem = [nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.SiLU()]
    blocks = [Inverted(12, 28, 12, 1, 4, nn.SiLU), Inverted(12, 36, 20, 2, 6, nn.SiLU)]
    return nn.Sequential(*stem, *blocks, nn.Conv2d(20, 40, 1), nn.BatchNorm2d(40), nn.SiLU(), head(40))


@network(image(), must=("1.expand.0",))
def mnasnet() -> nn.Module:
    stem = [nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 12, 3, 1, 1, groups=12), nn.ReLU(), nn.Conv2d(12, 10, 1)]
    return nn.Sequential(nn.Sequential(*stem), Inverted(10, 30, 10, 1), Inverted(10, 28, 14, 2), head(14))


def shuffle(x: Tensor, groups: int) -> Tensor:
    """ShuffleNet's interleaving of the channels of the conv groups."""
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class Shuffle1(nn.Module):
    """ShuffleNet V1: grouped pointwise convolutions with a shuffle between."""

    def __init__(self, channels: int, middle: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.squeeze = conv_bn(channels, middle, 1, groups=groups)
        self.deep = nn.Sequential(nn.Conv2d(middle, middle, 3, 1, 1, groups=middle), nn.BatchNorm2d(middle))
        self.expand = nn.Sequential(nn.Conv2d(middle, channels, 1, groups=groups), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.expand(self.deep(shuffle(self.squeeze(x), self.groups))))


@network(image())
def shufflenet_v1() -> nn.Module:
    return nn.Sequential(conv_bn(3, 24), Shuffle1(24, 18, 3), Shuffle1(24, 12, 3), head(24))


class Shuffle2(nn.Module):
    """ShuffleNet V2: half of the channels pass, the other half is convolved, then both are shuffled."""

    def __init__(self, channels: int, down: bool) -> None:
        super().__init__()
        width, inside = channels // 2, channels if down else channels // 2
        stride = 2 if down else 1
        self.left = None
        if down:
            deep = nn.Conv2d(channels, channels, 3, 2, 1, groups=channels, bias=False)
            self.left = nn.Sequential(deep, nn.BatchNorm2d(channels), conv_bn(channels, channels, 1))
        out = channels if down else width
        deep = nn.Conv2d(out, out, 3, stride, 1, groups=out, bias=False)
        self.right = nn.Sequential(conv_bn(inside, out, 1), deep, nn.BatchNorm2d(out), conv_bn(out, out, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = (self.left(x), x) if self.left is not None else x.chunk(2, 1)
        return shuffle(torch.cat([left, self.right(right)], 1), 2)


@network(image(), must=("1.right.0.0", "2.right.0.0"))
def shufflenet_v2() -> nn.Module:
    units = [Shuffle2(12, True), Shuffle2(24, False), Shuffle2(24, False)]
    return nn.Sequential(conv_bn(3, 12), *units, conv_bn(24, 28, 1), head(28))


class Ghost(nn.Module):
    """Half of the channels from a convolution, the other half from a cheap depthwise one, cut to the width asked."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.out, half = out, (out + 1) // 2
        self.primary = conv_bn(channels, half, 1)
        self.cheap = conv_bn(half, half, 3, groups=half)

    def forward(self, x: Tensor) -> Tensor:
        first = self.primary(x)
        return torch.cat([first, self.cheap(first)], 1)[:, : self.out]


@network(image(), must=("0.0", "1.primary.0"))
def ghostnet() -> nn.Module:
    return nn.Sequential(conv_bn(3, 10), Ghost(10, 20), conv_bn(20, 20, 3, 2, 20), Ghost(20, 24), head(24))


@network(image(), must=("0.0",), hard=("1.primary.0",), why="the slice's width is a number in the code")
def ghostnet_odd() -> nn.Module:
    return nn.Sequential(conv_bn(3, 10), Ghost(10, 21), conv_bn(21, 14, 3, 2), head(14))


class Attend(nn.Module):
    """CBAM: a gate for the channels, then one for the places."""

    def __init__(self, channels: int, middle: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(channels, middle), nn.ReLU(), nn.Linear(middle, channels))
        self.place = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3))))
        x = x * gate[:, :, None, None]
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * torch.sigmoid(self.place(pooled))


@network(image(), must=("1.mlp.0",))
def cbam() -> nn.Module:
    return nn.Sequential(conv_bn(3, 12), Attend(12, 6), conv_bn(12, 20), Attend(20, 8), head(20))


class Eca(nn.Module):
    """A gate from a 1-D convolution ALONG the channels, which makes each depend on its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.conv(x.mean((2, 3))[:, None])
        return x * torch.sigmoid(gate)[:, 0, :, None, None]


@network(image(), must=("2.0",))
def eca_net() -> nn.Module:
    return nn.Sequential(conv_bn(3, 12), Eca(), conv_bn(12, 20), conv_bn(20, 14), Eca(), head(14))


class Selective(nn.Module):
    """SKNet: two kernels, softmax across the two branches for each channel."""

    def __init__(self, channels: int, out: int, middle: int) -> None:
        super().__init__()
        self.three, self.five = conv_bn(channels, out), conv_bn(channels, out, 5)
        self.squeeze = nn.Linear(out, middle)
        self.excite = nn.ModuleList([nn.Linear(middle, out), nn.Linear(middle, out)])

    def forward(self, x: Tensor) -> Tensor:
        both = torch.stack([self.three(x), self.five(x)], 1)
        small = F.relu(self.squeeze(both.sum(1).mean((2, 3))))
        gates = torch.stack([layer(small) for layer in self.excite], 1).softmax(1)
        return (both * gates[..., None, None]).sum(1)


@network(image(), must=("0.0", "1.squeeze", "1.three.0"))
def sknet() -> nn.Module:
    return nn.Sequential(conv_bn(3, 12), Selective(12, 20, 8), conv_bn(20, 14), head(14))


class Reparametrised(nn.Module):
    """RepVGG in training: a 3 x 3, a 1 x 1 and the identity, each with its BatchNorm."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.three, self.bn3 = nn.Conv2d(channels, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.one, self.bn1 = nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out)
        self.bn0 = nn.BatchNorm2d(channels) if channels == out else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn3(self.three(x)) + self.bn1(self.one(x))
        return F.relu(y if self.bn0 is None else y + self.bn0(x))


@network(image(), must=("0.three", "2.three"))
def repvgg() -> nn.Module:
    return nn.Sequential(Reparametrised(3, 12), Reparametrised(12, 12), Reparametrised(12, 20), head(20))
