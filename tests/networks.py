"""Small networks of every kind, with weights and statistics at no special value."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_coreset.structure import ChannelGroup, Structure, analyse
from lightning_coreset.surgery import named_tensors


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def lenet() -> nn.Module:
    features = [nn.Conv2d(1, 6, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.Tanh(), nn.Flatten()]
    return nn.Sequential(*features, nn.Linear(8 * 4, 10), nn.ReLU(), nn.Linear(10, 3))


def vgg() -> nn.Module:
    layers: list[nn.Module] = []
    for channels, out in ((2, 6), (6, 8), (8, 10)):
        layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 3))


class Resnet(nn.Module):
    """One basic block; its shortcut projects."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv1, self.bn1 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.shortcut, self.head = nn.Conv2d(6, 10, 1), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_norm(self.stem(x)).relu()
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return self.head((y + self.shortcut(x)).relu().mean((2, 3)))


class Mobilenet(nn.Module):
    """An inverted residual with squeeze and excitation, its depthwise convolution with a multiplier."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.bn1 = nn.Conv2d(2, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.depthwise, self.bn2 = nn.Conv2d(6, 12, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(12)
        self.squeeze, self.excite = nn.Conv2d(12, 4, 1), nn.Conv2d(4, 12, 1)
        self.project, self.head = nn.Conv2d(12, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu6(self.bn1(self.expand(x)))
        x = functional.hardswish(self.bn2(self.depthwise(x)))
        x = x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return self.head(self.project(x).mean((2, 3)))


class Densenet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 3, padding=1)
        self.bn1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(10), nn.Conv2d(10, 4, 3, padding=1)
        self.bn3, self.head = nn.BatchNorm2d(14), nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(self.bn1(x).relu())], 1)
        x = torch.cat([x, self.conv2(self.bn2(x).relu())], 1)
        return self.head(self.bn3(x).relu().mean((2, 3)))


class Unet(nn.Module):
    """Down by a stride, up by a transposed convolution, a skip connection by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 8, 3, 2, 1)
        self.up, self.merge = nn.ConvTranspose2d(8, 5, 2, 2), nn.Conv2d(11, 7, 3, padding=1)
        self.leave = nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.enter(x).relu()
        up = self.up(self.down(skip).relu()).relu()
        return self.leave(self.merge(torch.cat([up, skip], 1)).relu())


class Grouped(nn.Module):
    """Grouped convolutions, also transposed, and a GroupNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 12, 1), nn.GroupNorm(4, 12)
        self.second = nn.Conv2d(12, 9, 3, groups=3, padding=1)
        self.third = nn.ConvTranspose2d(9, 6, 2, groups=3)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.norm(self.first(x)).relu()).relu()
        return self.last(self.third(x).relu())


class Normed(nn.Module):
    """GroupNorm, InstanceNorm, PReLU and a one-dimensional convolution, each with channels of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.group_norm = nn.Conv1d(2, 8, 3), nn.GroupNorm(4, 8)
        self.b, self.instance_norm = nn.Conv1d(8, 6, 3), nn.InstanceNorm1d(6, affine=True)
        self.c, self.prelu = nn.Conv1d(6, 5, 3), nn.PReLU(5)
        self.d = nn.Conv1d(5, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group_norm(self.a(x)).relu()
        x = self.instance_norm(self.b(x)).relu()
        return self.d(self.prelu(self.c(x)))


class Attention(nn.Module):
    """Heads over embedded tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.embed = nn.Embedding(11, 10)
        self.q, self.k, self.v, self.out = (nn.Linear(10, 12), nn.Linear(10, 12), nn.Linear(10, 12), nn.Linear(12, 3))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        q, k, v = (layer(x).view(*x.shape[:2], self.num_heads, 3).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(6, 10), nn.Linear(6, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x) * functional.silu(self.gate(x)))


class Siblings(nn.Module):
    """Two layers side by side, through one BatchNorm into one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm, self.head = nn.Linear(6, 5), nn.Linear(6, 7), nn.BatchNorm1d(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.cat([self.a(x), self.b(x)], 1)).relu())


class Autoencoder(nn.Module):
    """Encoder and decoder share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 9)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.encoder(x).relu(), self.encoder.weight.t())


@dataclass(frozen=True)
class Network:
    """How to make a network, and the shape of its input (``None``: tokens)."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] | None


IMAGE = (2, 2, 8, 8)
NETWORKS: Mapping[str, Network] = {
    "mlp": Network(mlp, (4, 6)),
    "lenet": Network(lenet, (2, 1, 10, 10)),
    "vgg": Network(vgg, IMAGE),
    "resnet": Network(Resnet, IMAGE),
    "mobilenet": Network(Mobilenet, IMAGE),
    "densenet": Network(Densenet, IMAGE),
    "unet": Network(Unet, IMAGE),
    "grouped": Network(Grouped, IMAGE),
    "normed": Network(Normed, (2, 2, 12)),
    "attention": Network(Attention, None),
    "gated": Network(Gated, (4, 6)),
    "siblings": Network(Siblings, (4, 6)),
    "autoencoder": Network(Autoencoder, (4, 6)),
}


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """A network in evaluation mode and an input for it, the same in every test."""
    network = NETWORKS[name]
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = randomised(network.build().eval(), generator).to(dtype)
    if network.shape is None:
        return model, torch.randint(0, 11, (2, 5), generator=generator)
    return model, torch.randn(network.shape, generator=generator, dtype=torch.float64).to(dtype)


@functools.cache
def structure_of(name: str) -> Structure:
    """What is found in a network as ``make`` makes it."""
    return analyse(*make(name))


@torch.no_grad()
def randomised(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Move what stands at 0 or 1, so that a wrong index shows."""
    for name, tensor in named_tensors(model).items():
        if tensor.is_floating_point() and tensor.dim() == 1:
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor.mul_((0.5 * noise).exp())
            else:
                tensor.add_(0.3 * noise)
    return model


@torch.no_grad()
def zero_consumers(model: nn.Module, group: ChannelGroup, channels: Any) -> None:
    """Set what reads these channels of a group to zero."""
    tensors = named_tensors(model)
    for member in group.by_role("consumer"):
        places = [place for channel in channels for place in member.index[channel]]
        tensors[member.name].index_fill_(member.dim, torch.tensor(places, dtype=torch.int64), 0.0)


def random_states() -> tuple[Any, Tensor]:
    """The states of the global generators, at a place where nobody would set them by a seed."""
    random.random(), torch.rand(3)
    return random.getstate(), torch.get_rng_state()


def assert_same_random(before: tuple[Any, Tensor]) -> None:
    """Nobody drew a random number, or set a seed, since ``before`` was taken."""
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that has to be left alone when a call fails: tensors, their objects, sizes and flags."""
    tensors = named_tensors(model)
    found: dict[str, Any] = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    found["objects"] = {name: id(tensor) for name, tensor in tensors.items()}
    found["frozen"] = {name: tensor.requires_grad for name, tensor in tensors.items()}
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, int | str | tuple)}
        found[f"attributes of {name}"] = plain
    return found


def assert_untouched(model: nn.Module, before: Mapping[str, Any]) -> None:
    """The model is bit for bit what it was when ``before`` was taken."""
    now = snapshot(model)
    assert now.keys() == before.keys()
    for name, value in before.items():
        if isinstance(value, Tensor):
            assert now[name].dtype == value.dtype, name
            torch.testing.assert_close(now[name], value, rtol=0, atol=0, equal_nan=True, msg=name)
        else:
            assert now[name] == value, name
