"""Convolutional classics of concatenated or exchanged branches: DenseNet to HRNet; and other dimensions than two."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .classic_cnn import conv_bn, head
from .entry import floats, image, network


class DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 20, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(20), nn.Conv2d(20, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return torch.cat([x, y], 1)


@network(image(), must=("0", "1.conv1", "1.conv2", "2.conv1"))
def densenet() -> nn.Module:
    transition = [nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 14, 1, bias=False), nn.AvgPool2d(2)]
    first = [nn.Conv2d(3, 12, 3, padding=1, bias=False), DenseLayer(12, 6), DenseLayer(18, 6)]
    return nn.Sequential(*first, *transition, DenseLayer(14, 8), nn.BatchNorm2d(22), nn.ReLU(), head(22))


class Inception(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = conv_bn(channels, 8, 1)
        self.three = nn.Sequential(conv_bn(channels, 6, 1), conv_bn(6, 12))
        self.five = nn.Sequential(conv_bn(channels, 4, 1), conv_bn(4, 6, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(channels, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


@network(image(), must=("0.0", "1.three.0.0", "1.one.0"))
def inception() -> nn.Module:
    return nn.Sequential(conv_bn(3, 12), Inception(12), nn.MaxPool2d(2), Inception(31), head(31))


class Fire(nn.Module):
    def __init__(self, channels: int, squeeze: int, out: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeeze, 1)
        self.one, self.three = nn.Conv2d(squeeze, out, 1), nn.Conv2d(squeeze, out + 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


@network(image(), must=("1.squeeze", "2.squeeze"))
def squeezenet() -> nn.Module:
    classifier = [nn.Dropout(), nn.Conv2d(30, 7, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(nn.Conv2d(3, 12, 3, 2), Fire(12, 6, 10), Fire(22, 8, 14), *classifier)


class Res2(nn.Module):
    """Channels in four slices, each convolved after the one before it was added."""

    def __init__(self, channels: int, middle: int) -> None:
        super().__init__()
        self.reduce = conv_bn(channels, middle, 1)
        self.convs = nn.ModuleList(conv_bn(middle // 4, middle // 4) for _ in range(3))
        self.expand = nn.Conv2d(middle, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = self.reduce(x).chunk(4, 1)
        found, last = [first], None
        for part, conv in zip(rest, self.convs, strict=True):
            last = conv(part if last is None else part + last)
            found.append(last)
        return F.relu(x + self.expand(torch.cat(found, 1)))


@network(image(), must=("0.0",))
def res2net() -> nn.Module:
    return nn.Sequential(conv_bn(3, 12), Res2(12, 24), Res2(12, 20), head(12))


class Exchange(nn.Module):
    """HRNet's two resolutions, each of which receives the other."""

    def __init__(self, high: int, low: int) -> None:
        super().__init__()
        self.high, self.low = conv_bn(high, high), conv_bn(low, low)
        self.down, self.up = nn.Conv2d(high, low, 3, 2, 1), nn.Conv2d(low, high, 1)

    def forward(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        high, low = self.high(pair[0]), self.low(pair[1])
        up = F.interpolate(self.up(low), scale_factor=2, mode="nearest")
        return F.relu(high + up), F.relu(low + self.down(high))


class Hrnet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.split = conv_bn(3, 12), conv_bn(12, 20, 3, 2)
        self.stages = nn.Sequential(Exchange(12, 20), Exchange(12, 20))
        self.last = nn.Conv2d(32, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        high, low = self.stages((x, self.split(x)))
        return self.last(torch.cat([high, F.interpolate(low, size=high.shape[2:], mode="bilinear")], 1))


network(image())(Hrnet)


@network(floats((2, 2, 40)), must=("0", "3"))
def cnn_1d() -> nn.Module:
    layers = [nn.Conv1d(2, 12, 5), nn.BatchNorm1d(12), nn.ReLU(), nn.Conv1d(12, 20, 3), nn.ELU(), nn.MaxPool1d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(20 * 17, 5))


@network(floats((2, 2, 8, 8, 8)), must=("0", "3"))
def cnn_3d() -> nn.Module:
    layers = [nn.Conv3d(2, 12, 3), nn.BatchNorm3d(12), nn.ReLU(), nn.Conv3d(12, 20, 3), nn.ReLU(), nn.MaxPool3d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(20 * 8, 5))


class Causal(nn.Module):
    """A dilated causal residual block, as in temporal convolutional networks."""

    def __init__(self, channels: int, out: int, dilation: int) -> None:
        super().__init__()
        self.pad = 2 * dilation
        self.conv1 = nn.Conv1d(channels, out, 3, padding=self.pad, dilation=dilation)
        self.conv2 = nn.Conv1d(out, out, 3, padding=self.pad, dilation=dilation)
        self.project = nn.Conv1d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x)[..., : -self.pad])
        return F.relu(F.relu(self.conv2(y)[..., : -self.pad]) + self.project(x))


@network(floats((2, 2, 20)), must=("0.conv1", "1.conv1"))
def tcn() -> nn.Module:
    return nn.Sequential(Causal(2, 12, 1), Causal(12, 20, 2), Causal(20, 20, 4), nn.Conv1d(20, 3, 1))
