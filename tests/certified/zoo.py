"""Tiny networks, one for each operator that is covered: name, builder, shape of a sample."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Computed(nn.Module):
    """Applies a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Residual(nn.Module):
    """Adds what its layers make of the input, in place."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        out += x
        return F.relu(out, inplace=True)


class Scaled(nn.Module):
    """Has tensors of its own that are no parameters, one of them in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.factor = nn.Linear(3, 4), torch.tensor([1.5, -0.5, 2.0])
        self.register_buffer("mean", torch.tensor([0.1, 0.2, -0.3]))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / 2 * self.factor
        return 1 - torch.relu(self.inner(x)).clone()


def mlp(activation: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(3, 7), activation(), nn.Linear(7, 5), activation(), nn.Linear(5, 2))


def dense(*layers: Callable[[], nn.Module], out: int) -> Callable[[], nn.Module]:
    """Layers between a first one of 6 numbers and a last one."""
    return lambda: nn.Sequential(nn.Linear(3, 6), *(one() for one in layers), nn.Linear(out, 2))


def conv(*layers: Callable[[], nn.Module], out: int) -> Callable[[], nn.Module]:
    """Layers behind a convolution with 2 channels of 6 x 6 and a ReLU, and a last one."""
    return lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), *(one() for one in layers), nn.Flatten(), nn.Linear(out, 2)
    )


def function(run: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Computed(run)


ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.3),
    "leaky_relu, falling": lambda: nn.LeakyReLU(-0.5),
    "relu6": nn.ReLU6,
    "hardtanh": lambda: nn.Hardtanh(-0.5, 0.7),
    "softshrink": lambda: nn.Softshrink(0.2),
    "prelu": lambda: nn.PReLU(init=0.4),
    "abs": function(torch.abs),
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "gelu": nn.GELU,
    "gelu, tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "log_sigmoid": nn.LogSigmoid,
    "clamp": function(lambda x: x.clamp(max=0.5)),
    "relu, in place": lambda: nn.ReLU(inplace=True),
}

VECTORS: dict[str, Callable[[], nn.Module]] = {
    **{name: mlp(one) for name, one in ACTIVATIONS.items()},
    "batch norm": dense(lambda: nn.BatchNorm1d(6), nn.ReLU, out=6),
    "batch norm without affine": dense(lambda: nn.BatchNorm1d(6, affine=False), nn.ReLU, out=6),
    "dropout": dense(nn.ReLU, nn.Dropout, out=6),
    "residual": dense(lambda: Residual(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)), out=6),
    "chunk and cat": dense(
        nn.ReLU, function(lambda x: torch.cat([x.chunk(2, 1)[1] - x.chunk(2, 1)[0], x[:, [0, 3]]], 1)), out=5
    ),
    "maximum": dense(function(lambda x: torch.maximum(x[:, :3], x[:, 3:])), out=3),
    "minimum": dense(function(lambda x: torch.minimum(x[:, :3], x[:, 3:])), out=3),
    "amax": dense(function(lambda x: x.unflatten(1, (2, 3)).amax(2)), out=2),
    "amax over several": dense(
        function(lambda x: x.unflatten(1, (1, 2, 3)).amax((1, 3), keepdim=True).flatten(1)), out=2
    ),
    "stack, transpose, sum": dense(
        nn.ReLU, function(lambda x: torch.stack([x, -2 * x.roll(1, 1)], 2).transpose(1, 2).sum(1) / 3), out=6
    ),
    "matmul": dense(nn.ReLU, function(lambda x: x @ torch.linspace(-1, 1, 24).view(6, 4).to(x)), out=4),
    "einsum": dense(
        nn.ReLU,
        function(lambda x: torch.einsum("bij,jk->bki", x.unflatten(1, (2, 3)), torch.eye(3, 2).to(x)).flatten(1)),
        out=4,
    ),
    "scaled": lambda: nn.Sequential(Scaled(), nn.Linear(4, 2)),
    "cumsum and flip": dense(nn.ReLU, function(lambda x: x.cumsum(1).flip(1) - x.mean(1, keepdim=True)), out=6),
    "on rows": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 1)), nn.Linear(1, 4), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
    ),
}

IMAGES: dict[str, Callable[[], nn.Module]] = {
    "max pool": conv(lambda: nn.MaxPool2d(2), out=18),
    "max pool, padded": conv(lambda: nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), out=32),
    "max pool, dilated": conv(lambda: nn.MaxPool2d((2, 1), stride=1, dilation=2), out=48),
    "adaptive max pool": conv(lambda: nn.AdaptiveMaxPool2d(4), out=32),
    "max pool 1d": lambda: nn.Sequential(
        nn.Flatten(2), nn.Conv1d(1, 2, 3, stride=3), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(12, 2)
    ),
    "avg pool": conv(lambda: nn.AvgPool2d(2, padding=1), out=32),
    "adaptive avg pool": conv(lambda: nn.AdaptiveAvgPool2d(4), out=32),
    "global avg pool": conv(lambda: nn.AdaptiveAvgPool2d(1), out=2),
    "convolution with norm": conv(
        lambda: nn.Conv2d(2, 4, 3, groups=2, bias=False), lambda: nn.BatchNorm2d(4), nn.ReLU, out=64
    ),
    "dilated convolution": conv(lambda: nn.Conv2d(2, 3, 3, dilation=2, stride=2), nn.ReLU, out=3),
    "transposed convolution": conv(lambda: nn.ConvTranspose2d(2, 1, 2), nn.ReLU, out=49),
    "upsampling": conv(lambda: nn.Upsample(scale_factor=2), out=288),
    "bilinear upsampling": conv(lambda: nn.Upsample(scale_factor=1.5, mode="bilinear"), out=162),
    "padding": conv(lambda: nn.ReflectionPad2d(1), lambda: nn.ConstantPad2d(1, -0.5), out=200),
    "pixel shuffle": conv(lambda: nn.PixelUnshuffle(2), lambda: nn.PixelShuffle(2), out=72),
    "residual block": conv(
        lambda: Residual(nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2)), lambda: nn.AvgPool2d(3), out=8
    ),
}
NETWORKS = {**{n: (b, (3,)) for n, b in VECTORS.items()}, **{n: (b, (1, 6, 6)) for n, b in IMAGES.items()}}


def network(name: str, seed: int = 0, noise: float = 0.1) -> tuple[nn.Module, nn.Module, Tensor]:
    """A network, another one whose weights are a little different, and two samples."""
    build, shape = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first, second, x = build(), build(), torch.randn(2, *shape)
        with torch.no_grad():
            for norm in (one for one in first.modules() if hasattr(one, "running_var")):
                norm.running_mean.normal_(std=0.3)
                norm.running_var.uniform_(0.5, 2)
        second.load_state_dict(first.state_dict())
        with torch.no_grad():
            for weight in second.parameters():
                weight += noise * weight.abs().mean() * torch.randn_like(weight)
    return first.eval(), second.eval(), x
