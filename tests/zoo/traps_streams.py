"""Traps in norms over the channels of a stream: what they reduce over goes with the channels."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import SMALL, Net, add, floats, network
from .traps_norms import Between

SEQUENCES = floats((2, 5, 6))


def stream(*norm: nn.Module) -> nn.Module:
    """Twelve channels under a norm, then a group that nothing disturbs."""
    return nn.Sequential(nn.Linear(6, 12), *norm, nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3))


def streams(norms: dict[str, Callable[[], nn.Module]]) -> None:
    """Adds one network for each norm, whose channels must be found."""
    for name, norm in norms.items():
        add(f"traps/stream_{name}", lambda made=norm: stream(made()), SEQUENCES, must=("0",), normalized=("0",))


class Gained(nn.Module):
    """A norm written out, with weights."""

    def __init__(self, norm: Callable[[Tensor], Tensor], *shape: int, shift: bool = True) -> None:
        super().__init__()
        self.norm, self.g = norm, nn.Parameter(torch.ones(shape))
        self.b = nn.Parameter(torch.zeros(shape)) if shift else 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) * self.g + self.b


def rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def single(x: Tensor) -> Tensor:
    """Statistics in single precision, as Llama and T5 have them."""
    wide = x.to(torch.float32)
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def standard(x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x - mean).pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()


def at_once(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=-1, unbiased=False, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5)


def deviation(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)


def squeezed(x: Tensor) -> Tensor:
    """The statistics lose their dimension and get it back."""
    return (x - x.mean(-1)[..., None]) / x.var(-1, unbiased=False).add(1e-5).sqrt().unsqueeze(-1)


def in_place(x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x.div_(x.norm(dim=-1, keepdim=True).clamp_min(1e-6))


def dot_product(x: Tensor) -> Tensor:
    """A root mean square by an einsum, which is a product of the channels with themselves."""
    return x * torch.rsqrt(torch.einsum("...d,...d->...", x, x)[..., None] + 1e-6)


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "computed_shape": lambda x: F.layer_norm(x, x.shape[-1:]),
    "functional_rms": lambda x: F.rms_norm(x, x.shape[-1:]),
    "unit_vectors": lambda x: x / x.norm(dim=-1, keepdim=True),
    "unit_vectors_of_the_library": lambda x: F.normalize(x, dim=-1),
    "vector_norm": lambda x: x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) * 12**-0.5 + 1e-6),
    "absolute_norm": lambda x: x / (x.norm(p=1, dim=-1, keepdim=True) + 1e-6),
    "root_of_a_sum": lambda x: x / ((x * x).sum(-1, keepdim=True) + 1e-6).sqrt(),
    "rms_by_hand": rms,
    "single_precision": single,
    "layer_norm_by_hand": standard,
    "var_mean": at_once,
    "deviation": deviation,
    "squeezed_statistics": squeezed,
    "in_place": in_place,
    "normed_twice": lambda x: rms(standard(x).relu()),
    "behind_relu": lambda x: standard(x.relu()),
    "and_mean_over_places": lambda x: rms(x).mean(1),
    "and_mean_over_places_before": lambda x: rms(x.mean(1)),
}
streams({name: lambda f=function: Between(f) for name, function in FUNCTIONS.items()})
streams({
    "layer_norm": lambda: nn.LayerNorm(12),
    "layer_norm_without_bias": lambda: nn.LayerNorm(12, bias=False),
    "rms_norm": lambda: nn.RMSNorm(12),
    "gained": lambda: Gained(rms, 12),
    "gained_and_scaled": lambda: Gained(lambda x: F.normalize(x, dim=-1) * 12**0.5, 12, shift=False),
    "scale_of_one": lambda: Gained(lambda x: F.normalize(x, dim=-1), 1, shift=False),
    "plus_one": lambda: Gained(lambda x: standard(x) * 0.5, 1, 12),
    "activated": lambda: nn.Sequential(nn.GELU(), nn.LayerNorm(12), nn.SiLU(), nn.Dropout(0.1)),
})  # fmt: skip
for kind in (nn.LayerNorm, nn.RMSNorm):
    add(
        f"traps/stream_{kind.__name__}_without_weights", lambda made=kind: stream(made(12, elementwise_affine=False)),
        SEQUENCES, must=("2",), normalized=("0",), hard=("0",),
        why="no tensor tells the norm's shape, so that only a search for numbers changes it",
    )  # fmt: skip
add(
    "traps/stream_dot_product", lambda: stream(Between(dot_product)), SEQUENCES, must=("2",),
    why="a product of the channels with themselves is no reduction to the analysis",
)  # fmt: skip


@network(SEQUENCES, must=("last.0",), hard=("first",), why="the norm's shape is a number in the code")
def stream_literal_shape() -> nn.Module:
    return Net(
        lambda net, x: net.last(F.layer_norm(net.first(x), (24,))),
        first=nn.Linear(6, 24),
        last=nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 3)),
    )


class Remembered(nn.Module):
    """A norm whose width is an attribute."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.weight = dim, nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.dim,), self.weight)


@network(SEQUENCES, must=("2",), hard=("0",), why="the norm's shape is an attribute, which only a search can find")
def stream_remembered_shape() -> nn.Module:
    return stream(Remembered(12))


@network(SEQUENCES, must=("2",), hard=("0",), why="the mean is a sum divided by the width as a number")
def stream_divided_by_width() -> nn.Module:
    return stream(Between(lambda x: x - x.sum(-1, keepdim=True) / x.shape[-1]))


class ChannelsFirst(nn.Module):
    """ConvNeXt's LayerNorm over dimension 1, and the one of the library around a permutation."""

    def __init__(self, width: int, permuted: bool) -> None:
        super().__init__()
        self.permuted = permuted
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        if self.permuted:
            x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
            return x.permute(0, 3, 1, 2)
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ChannelNorm(nn.Module):
    """vit-pytorch's LayerNorm of images, with weights of shape (1, width, 1, 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.g, self.b = nn.Parameter(torch.ones(1, width, 1, 1)), nn.Parameter(torch.zeros(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        variance = torch.var(x, dim=1, unbiased=False, keepdim=True)
        return (x - torch.mean(x, dim=1, keepdim=True)) / (variance + 1e-5).sqrt() * self.g + self.b


class Response(nn.Module):
    """ConvNeXt V2's global response normalisation, channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, width))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        size = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return self.gamma * (x * (size / (size.mean(dim=-1, keepdim=True) + 1e-6))) + self.beta + x


class Next(nn.Module):
    """A block of ConvNeXt (V2 with a response norm) on a stream of images."""

    def __init__(self, width: int, middle: int, response: bool) -> None:
        super().__init__()
        self.deep, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, middle), nn.Linear(middle, width)
        self.grn = Response(middle) if response else nn.Identity()
        self.scale = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.deep(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(self.grn(F.gelu(self.up(y))))
        return x + y.permute(0, 3, 1, 2)


def images(norm: Callable[[int], nn.Module], response: bool = False) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 12, 2, 2), norm(12), Next(12, 20, response), norm(12), nn.Conv2d(12, 16, 2, 2),
        Next(16, 28, response), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.LayerNorm(16), nn.Linear(16, 7),
    )  # fmt: skip


add("traps/convnext_channels_first", lambda: images(lambda width: ChannelsFirst(width, False)), SMALL,
    must=("2.up", "5.up"), normalized=("0", "4"))  # fmt: skip
add("traps/convnext_permuted", lambda: images(lambda width: ChannelsFirst(width, True)), SMALL,
    must=("2.up", "5.up"), normalized=("0", "4"))  # fmt: skip
add("traps/convnext_channel_norm", lambda: images(ChannelNorm), SMALL,
    must=("2.up", "5.up"), normalized=("0", "4"))  # fmt: skip
add("traps/convnext_response", lambda: images(ChannelNorm, response=True), SMALL,
    must=("0", "4"), normalized=("0", "2.up", "4", "5.up"))  # fmt: skip
