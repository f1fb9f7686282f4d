"""The convolutional classics: LeNet to HRNet, small."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import image, network


def conv_bn(channels: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias, BatchNorm, ReLU."""
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU(inplace=True))


def head(channels: int, classes: int = 7) -> nn.Sequential:
    """Global average pooling and a Linear."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


@network(image(1, 28), must=("1", "3"))
def lenet300() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10)
    )  # fmt: skip


@network(image(1, 28), must=("0", "3", "7", "9"))
def lenet5() -> nn.Module:
    features = [nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)]
    head = [nn.Flatten(), nn.Linear(256, 40), nn.Tanh(), nn.Linear(40, 28), nn.Tanh(), nn.Linear(28, 10)]
    return nn.Sequential(*features, *head)


def vgg(norm: bool) -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for out in (12, "pool", 20, "pool", 24, 28, "pool"):
        if out == "pool":
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, out, 3, padding=1), *([nn.BatchNorm2d(out)] if norm else []), nn.ReLU(True)]
        channels = out
    classifier = [nn.Linear(28 * 4, 36), nn.ReLU(True), nn.Dropout(), nn.Linear(36, 10)]
    return nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Sequential(*classifier))


@network(image(), must=("0.0", "0.3", "0.6", "0.8", "3.0"))
def vgg_plain() -> nn.Module:
    return vgg(norm=False)


@network(image(), must=("0.0", "0.4", "0.8", "0.11", "3.0"))
def vgg_bn() -> nn.Module:
    return vgg(norm=True)


@network(image(3, 32))
def alexnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 7, 2, 3), nn.ReLU(), nn.LocalResponseNorm(3), nn.MaxPool2d(3, 2),
        nn.Conv2d(12, 20, 5, padding=2, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(20, 28, 3, padding=1), nn.ReLU(), nn.Conv2d(28, 24, 3, padding=1, groups=2), nn.ReLU(),
        nn.Flatten(), nn.Dropout(), nn.Linear(24 * 9, 40), nn.ReLU(), nn.Dropout(), nn.Linear(40, 36), nn.ReLU(),
        nn.Linear(36, 10),
    )  # fmt: skip


class Basic(nn.Module):
    """ResNet's basic block; option A pads the shortcut with zeros, option B projects it."""

    def __init__(self, channels: int, out: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride, self.more = stride, out - channels
        self.project = None
        if option == "B" and (stride > 1 or self.more):
            self.project = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.project is not None:
            x = self.project(x)
        elif self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        return F.relu(y + x)


class Bottleneck(nn.Module):
    """ResNet's bottleneck; with groups ResNeXt's, with a gate SE-ResNet's."""

    def __init__(self, channels: int, middle: int, out: int, stride: int, groups: int = 1, gate: int = 0) -> None:
        super().__init__()
        self.conv1 = conv_bn(channels, middle, 1)
        self.conv2 = conv_bn(middle, middle, 3, stride, groups)
        self.conv3 = nn.Conv2d(middle, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.squeeze = nn.Linear(out, gate) if gate else None
        self.excite = nn.Linear(gate, out) if gate else None
        self.project = nn.Conv2d(channels, out, 1, stride) if stride > 1 or channels != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn3(self.conv3(self.conv2(self.conv1(x))))
        if self.squeeze is not None:
            gate = self.excite(F.relu(self.squeeze(y.mean((2, 3)))))
            y = y * torch.sigmoid(gate)[:, :, None, None]
        return F.relu(y + self.project(x))


def resnet_basic(option: str) -> nn.Module:
    blocks = [Basic(12, 12, 1, option), Basic(12, 20, 2, option), Basic(20, 20, 1, option), Basic(20, 28, 2, option)]
    return nn.Sequential(conv_bn(3, 12), *blocks, head(28))


@network(image(), must=("1.conv1", "2.conv1", "3.conv1", "4.conv1"))
def resnet_option_a() -> nn.Module:
    return resnet_basic("A")


@network(image(), must=("0.0", "1.conv1", "2.conv1", "3.conv1", "4.conv1"))
def resnet_option_b() -> nn.Module:
    return resnet_basic("B")


@network(image(), must=("1.conv1.0", "1.conv2.0"))
def resnet_bottleneck() -> nn.Module:
    return nn.Sequential(conv_bn(3, 12), Bottleneck(12, 10, 24, 1), Bottleneck(24, 14, 28, 2), head(28))


@network(image(), must=("1.conv1.0",))
def resnext() -> nn.Module:
    return nn.Sequential(conv_bn(3, 12), Bottleneck(12, 20, 24, 1, 4), Bottleneck(24, 28, 36, 2, 4), head(36))


@network(image(), must=("1.squeeze", "1.conv1.0"))
def se_resnet() -> nn.Module:
    return nn.Sequential(conv_bn(3, 12), Bottleneck(12, 10, 24, 1, 1, 6), Bottleneck(24, 14, 28, 2, 1, 8), head(28))


class PreActivation(nn.Module):
    """BatchNorm and ReLU before each convolution, the shortcut from after the first ReLU where it projects."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(out), nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.project = nn.Conv2d(channels, out, 1, stride, bias=False) if stride > 1 or channels != out else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(x))
        shortcut = x if self.project is None else self.project(y)
        return self.conv2(F.dropout(F.relu(self.bn2(self.conv1(y))), 0.1, self.training)) + shortcut


@network(image(), must=("0", "1.conv1", "2.conv1"))
def preact_resnet() -> nn.Module:
    blocks = [PreActivation(12, 12, 1), PreActivation(12, 20, 2)]
    return nn.Sequential(nn.Conv2d(3, 12, 3, 1, 1), *blocks, nn.BatchNorm2d(20), nn.ReLU(), head(20))


@network(image(), must=("1.conv1", "2.conv1", "3.conv1"))
def wide_resnet() -> nn.Module:
    blocks = [PreActivation(8, 24, 1), PreActivation(24, 24, 1), PreActivation(24, 44, 2)]
    return nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), *blocks, nn.BatchNorm2d(44), nn.ReLU(), head(44))
