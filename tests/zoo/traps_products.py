"""Traps in what weights are made of: adapters beside them, products, masks, norms; and layers in several parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import ROWS, SMALL, Net, network


class LoraLinear(nn.Module):
    """A frozen layer with adapters beside it, as peft writes it."""

    def __init__(self, inputs: int, outputs: int, rank: int = 4, adapters: Iterable[str] = ("default",)) -> None:
        super().__init__()
        self.base_layer = nn.Linear(inputs, outputs).requires_grad_(False)
        ranks = {name: rank + number for number, name in enumerate(adapters)}
        self.lora_A = nn.ModuleDict({name: nn.Linear(inputs, r, bias=False) for name, r in ranks.items()})
        self.lora_B = nn.ModuleDict({name: nn.Linear(r, outputs, bias=False) for name, r in ranks.items()})
        self.lora_dropout = nn.ModuleDict({name: nn.Dropout(0.1) for name in ranks})
        self.scaling = {name: 8 / r for name, r in ranks.items()}

    def forward(self, x: Tensor) -> Tensor:
        result = self.base_layer(x)
        for name in self.lora_A:
            result = result + self.lora_B[name](self.lora_A[name](self.lora_dropout[name](x))) * self.scaling[name]
        return result


class DoraLinear(LoraLinear):
    """Each output is scaled to a magnitude of its own, by the norm of all weights that make it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.magnitude = nn.Parameter(0.5 + torch.rand(outputs))

    def forward(self, x: Tensor) -> Tensor:
        down, up, scaling = self.lora_A["default"], self.lora_B["default"], self.scaling["default"]
        result = self.base_layer(x)
        added = up(down(torch.eye(down.weight.shape[1], dtype=x.dtype))).T
        norm = torch.linalg.norm(self.base_layer.weight + scaling * added.detach(), dim=1).detach()
        scale = (self.magnitude / norm).view(1, -1)
        return result + ((scale - 1) * (result - self.base_layer.bias) + scale * up(down(x)) * scaling)


def three(layer: Callable[[int, int], nn.Module]) -> nn.Module:
    return nn.Sequential(layer(6, 20), nn.ReLU(), layer(20, 14), nn.ReLU(), layer(14, 3))


@network(ROWS, must=("0.base_layer", "2.base_layer", "0.lora_A.default", "2.lora_A.default", "4.lora_A.default"))
def lora() -> nn.Module:
    return three(LoraLinear)


@network(ROWS, must=("0.base_layer", "2.base_layer", "2.lora_A.default", "2.lora_A.other"))
def two_adapters() -> nn.Module:
    return three(lambda *widths: LoraLinear(*widths, adapters=("default", "other")))


@network(ROWS, normalized=("0.base_layer", "2.base_layer"), must=("2.lora_A.default",))
def dora() -> nn.Module:
    return three(DoraLinear)


@network(ROWS, must=("first", "up", "middle"))
def product_of_two_weights() -> nn.Module:
    return Net(
        lambda net, x: net.last(F.linear(F.linear(net.first(x).relu(), net.up @ net.down).relu(), net.middle).relu()),
        first=nn.Linear(6, 20), up=nn.Parameter(torch.randn(14, 4)), down=nn.Parameter(torch.randn(4, 20)),
        middle=nn.Parameter(torch.randn(12, 14)), last=nn.Linear(12, 3),
    )  # fmt: skip


@network(ROWS, must=("first", "a", "a#2", "b"))
def product_of_three_weights() -> nn.Module:
    """Two ranks; the weight is used transposed."""
    return Net(
        lambda net, x: net.last((net.first(x).relu() @ (net.a @ net.b @ net.c).t()).relu()),
        first=nn.Linear(6, 20), a=nn.Parameter(torch.randn(14, 4)), b=nn.Parameter(torch.randn(4, 5)),
        c=nn.Parameter(torch.randn(5, 20)), last=nn.Linear(14, 3),
    )  # fmt: skip


@network(ROWS, must=("first", "mask"))
def masked_weight() -> nn.Module:
    return Net(
        lambda net, x: net.last(F.linear(net.first(x).relu(), net.middle.weight * net.mask, net.middle.bias).relu()),
        first=nn.Linear(6, 20), middle=nn.Linear(20, 14), mask=(torch.rand(14, 20) > 0.3).float(),
        last=nn.Linear(14, 3),
    )  # fmt: skip


class EqualisedLinear(nn.Linear):
    """The learning rate is equalised by a factor of the weight, a number that was computed once."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.factor = (2 / inputs) ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.factor, self.bias)


@network(ROWS, must=("0", "2"))
def equalised_learning_rate() -> nn.Module:
    return three(EqualisedLinear)


@network(ROWS, expect="any", why="the norm of a part of a weight is a number that meets something else")
def norm_of_another_weight() -> nn.Module:
    """No norm of the weights that make what is scaled: what is left of them would be scaled otherwise."""
    return Net(
        lambda net, x: net.last(net.second(net.first(x).relu()).relu() * net.second.weight.norm()),
        first=nn.Linear(6, 20), second=nn.Linear(20, 14), last=nn.Linear(14, 3),
    )  # fmt: skip


class ScaledStandardConv(nn.Conv2d):
    """Weight standardisation by the function of a BatchNorm, as in NFNets and BiT; with a gain for every row."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.full((self.out_channels, 1, 1, 1), 0.8))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, weight=(self.gain * 0.3).view(-1), training=True, momentum=0.0)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias)


@network(SMALL, normalized=("0", "2"), must=("4",))
def scaled_weight_standardisation() -> nn.Module:
    convs = [nn.Conv2d(3, 12, 3), ScaledStandardConv(12, 14, 3), ScaledStandardConv(14, 10, 1)]
    layers = [layer for conv in convs for layer in (conv, nn.ReLU())]
    return nn.Sequential(*layers, nn.Conv2d(10, 4, 1))


class Parts(nn.Module):
    """A convolution in several parts, as RepVGG and MobileOne train it: 3x3, 1x1, and the identity with a norm."""

    def __init__(self, inputs: int, outputs: int, *, branches: int = 1, identity: bool = False) -> None:
        super().__init__()
        sizes = [3] * branches + [1]
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(inputs, outputs, k, padding=k // 2, bias=False), nn.BatchNorm2d(outputs))
            for k in sizes
        )
        self.identity = nn.BatchNorm2d(outputs) if identity else None

    def forward(self, x: Tensor) -> Tensor:
        y = sum(conv(x) for conv in self.convs)
        return (y if self.identity is None else y + self.identity(x)).relu()


@network(SMALL, must=("0.convs.0.0", "1.convs.0.0", "3.convs.0.0"))
def repvgg_with_identities() -> nn.Module:
    parts = [Parts(3, 8), Parts(8, 12), Parts(12, 12, identity=True), Parts(12, 10)]
    return nn.Sequential(*parts, nn.Conv2d(10, 4, 1))


@network(SMALL, must=("0.convs.0.0", "1.convs.0.0"))
def mobileone() -> nn.Module:
    return nn.Sequential(Parts(3, 8, branches=3), Parts(8, 12, branches=3), nn.Conv2d(12, 4, 1))


class Kan(nn.Module):
    """A layer of a Kolmogorov-Arnold network: a base, and functions of every input that are added to it."""

    def __init__(self, inputs: int, outputs: int, knots: int = 5) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.randn(outputs, inputs))
        self.spline = nn.Parameter(torch.randn(outputs, inputs, knots))
        self.register_buffer("grid", torch.linspace(-1, 1, knots))

    def forward(self, x: Tensor) -> Tensor:
        values = torch.exp(-((x[..., None] - self.grid) ** 2))
        return F.silu(x) @ self.base.t() + values.flatten(1) @ self.spline.flatten(1).t()


@network(ROWS, must=("0.base", "1.base"))
def kan() -> nn.Module:
    return nn.Sequential(Kan(6, 20), Kan(20, 14), Kan(14, 3))


@network(SMALL, must=("backbone.0", "level.0", "deeper.0"))
def weighted_sums_of_levels() -> nn.Module:
    """As in BiFPN: levels meet by weights that are normalised, once more with what they were before."""

    def forward(net: Net, x: Tensor) -> Tensor:
        high = net.backbone(x)
        low = net.deeper(high)
        weights = net.weights.relu() / (net.weights.relu().sum() + 1e-4)
        a, b = net.level(high), net.other(low)
        middle = net.mix(F.silu(weights[0] * a + weights[1] * F.interpolate(b, scale_factor=2)))
        return net.last(weights[0] * a + weights[2] * middle)

    def conv(*widths: int, stride: int = 1) -> nn.Module:
        return nn.Sequential(nn.Conv2d(*widths, 3, stride, 1), nn.ReLU())

    return Net(
        forward, backbone=conv(3, 8), deeper=conv(8, 12, stride=2), level=conv(8, 10), other=nn.Conv2d(12, 10, 1),
        mix=nn.Conv2d(10, 10, 3, 1, 1), last=nn.Conv2d(10, 4, 1), weights=nn.Parameter(torch.rand(3) + 0.5),
    )  # fmt: skip
