"""Traps in norms and other functions that see all channels at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import ROWS, SMALL, Net, add, network


def normed(norm: nn.Module) -> nn.Module:
    """A norm between two convolutions of 12 channels, then a group that nothing disturbs."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), norm, nn.ReLU(), nn.Conv2d(12, 20, 3), nn.ReLU(), nn.Conv2d(20, 5, 1)
    )  # fmt: skip


@network(SMALL, must=("0", "3"))
def batch_norm_without_affine() -> nn.Module:
    return normed(nn.BatchNorm2d(12, affine=False))


@network(SMALL, must=("0", "3"))
def batch_norm_without_statistics() -> nn.Module:
    return normed(nn.BatchNorm2d(12, track_running_stats=False))


@network(SMALL, must=("0", "3"))
def batch_norm_after_activation() -> nn.Module:
    return normed(nn.Sequential(nn.GELU(), nn.BatchNorm2d(12), nn.Hardtanh()))


@network(ROWS, must=("1",))
def batch_norm_alone_first() -> nn.Module:
    """A BatchNorm on the input: its channels are the input's."""
    return nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))


@network(SMALL, must=("3",))
def instance_norm() -> nn.Module:
    return normed(nn.InstanceNorm2d(12))


@network(SMALL, must=("3",))
def instance_norm_affine() -> nn.Module:
    return normed(nn.InstanceNorm2d(12, affine=True, track_running_stats=True))


@network(SMALL, must=("3",))
def group_norm() -> nn.Module:
    return normed(nn.GroupNorm(3, 12))


@network(SMALL, must=("3",), normalized=("0",))
def group_norm_of_one_group() -> nn.Module:
    """Its statistics run over all channels and places, which go together."""
    return normed(nn.GroupNorm(1, 12))


@network(SMALL, must=("3",))
def group_norm_per_channel() -> nn.Module:
    return normed(nn.GroupNorm(12, 12))


@network(SMALL, must=("3",), never=("0",), why="its weights lie along places as well")
def layer_norm_over_everything() -> nn.Module:
    return normed(nn.LayerNorm([12, 6, 6]))


@network(SMALL, must=("0", "3"))
def layer_norm_over_space() -> nn.Module:
    """The statistics are taken over the places of each channel: channels may go."""
    return normed(nn.LayerNorm([6, 6]))


@network(SMALL, must=("3",))
def local_response_norm() -> nn.Module:
    return normed(nn.LocalResponseNorm(3))


@network(ROWS, must=("4",), normalized=("0",))
def layer_norm() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 12), nn.ReLU(), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3)
    )


@network(ROWS, must=("4",), normalized=("0",))
def rms_norm() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 12), nn.ReLU(), nn.RMSNorm(12), nn.ReLU(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3)
    )


class Between(nn.Module):
    """A function as a module."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def over_channels(function: object) -> nn.Module:
    """Something that looks at all of 12 channels at once, then a group that nothing disturbs."""
    return normed(Between(function))


OVER = {
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(1),
    "subtract_mean": lambda x: x - x.mean(1, keepdim=True),
    "divide_by_max": lambda x: x / (1 + x.abs().amax(1, keepdim=True)),
    "cumsum": lambda x: x.cumsum(1),
    "sort": lambda x: x.sort(1).values,
    "l2_normalise": lambda x: F.normalize(x, dim=1),
    "whole_norm": lambda x: x / x.flatten(1).norm(dim=1)[:, None, None, None],
    "whole_mean": lambda x: x - x.mean(),
    "hand_made_rms": lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-6),
    "fft_over_channels": lambda x: torch.fft.fft(x, dim=1).real,
    "diff_over_channels": lambda x: torch.cat([x[:, :1], x.diff(dim=1)], 1),
    "glu_of_copies": lambda x: F.glu(torch.cat([x, x.flip(1)], 1), 1),
    "cumprod": lambda x: torch.cumprod(x.sigmoid(), 1),
    "logsumexp": lambda x: x - x.logsumexp(1, keepdim=True),
    "variance": lambda x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt(),
    "channel_is_index": lambda x: x * torch.arange(x.shape[1], dtype=x.dtype)[:, None, None],
    "divided_by_width": lambda x: x / x.shape[1],
    "pool_over_channels": lambda x: F.avg_pool3d(x[:, None], (3, 1, 1), 1, (1, 0, 0))[:, 0],
}
NORMALISING = ("subtract_mean", "l2_normalise", "hand_made_rms", "variance", "whole_norm", "whole_mean")
for name, function in OVER.items():
    of_width = name in ("channel_is_index", "divided_by_width")
    add(
        f"traps/{name}",
        lambda f=function: over_channels(f),
        SMALL,
        must=("3",),
        normalized=("0",) if name in NORMALISING else (),
        hard=("0",) if of_width else (),
        why="the function depends on the number of channels" if of_width else "",
    )


@network(SMALL, must=("3",))
def fft_over_places() -> nn.Module:
    """An operation over the places leaves channels apart, but only an engine that knows it may say so."""
    return over_channels(lambda x: torch.fft.fft2(x).abs())


@network(SMALL, must=("first",))
def sum_over_channels() -> nn.Module:
    """A sum over channels is a contraction with ones: a channel that is zero adds nothing, one that is gone neither.

    No weight stands there to be zeroed, so the group of the summed channels is not one to prune.
    """
    return Net(
        lambda net, x: net.last(net.middle(net.first(x).relu()).sum(1, keepdim=True)),
        first=nn.Conv2d(3, 12, 3), middle=nn.Conv2d(12, 20, 3), last=nn.Conv2d(1, 5, 3),
    )  # fmt: skip


@network(SMALL, must=("first",))
def topk_over_channels() -> nn.Module:
    return Net(
        lambda net, x: net.last(net.middle(net.first(x).relu()).topk(5, 1).values),
        first=nn.Conv2d(3, 12, 3), middle=nn.Conv2d(12, 20, 3), last=nn.Conv2d(5, 4, 3),
    )  # fmt: skip


@network(SMALL, must=("first",))
def argmax_over_channels() -> nn.Module:
    def forward(net: Net, x: Tensor) -> Tensor:
        y = net.middle(net.first(x).relu())
        return net.table(y.argmax(1)).sum((1, 2)) + y.amax(1).mean()

    return Net(forward, first=nn.Conv2d(3, 12, 3), middle=nn.Conv2d(12, 20, 3), table=nn.Embedding(20, 4))


@network(ROWS, must=("0",))
def maxout() -> nn.Module:
    """Each unit is the maximum of three neighbours, which go together."""
    last = Between(lambda x: x.view(x.shape[0], -1, 3).amax(2))
    return nn.Sequential(nn.Linear(6, 36), last, nn.Linear(12, 3))


@network(ROWS, must=("0",))
def complex_pairs() -> nn.Module:
    """Neighbours are real and imaginary part of one number, as in rotary positions."""

    def rotate(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.view(x.shape[0], -1, 2).contiguous())
        return torch.view_as_real(pairs * (0.6 + 0.8j)).flatten(1)

    return nn.Sequential(
        nn.Linear(6, 14), nn.ReLU(), nn.Linear(14, 12), Between(rotate), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3)
    )
