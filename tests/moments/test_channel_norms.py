"""Norms over channels are told by what they do, and make what their law says whatever the probes are."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_coreset.moments import MeasuringRuns, has_channel_norms
from lightning_coreset.structure import Example


class WrittenOut(nn.Module):
    """An RMSNorm as many networks have it, in single precision."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        single = x.float()
        return self.scale * (single * torch.rsqrt(single.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class ChannelsFirst(nn.Module):
    """A LayerNorm over the second dimension, as ConvNeXt writes it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(1, keepdim=True)
        x = x / (x.pow(2).mean(1, keepdim=True) + 1e-6).sqrt()
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class Functional(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.gain)


class LayerScale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.RMSNorm(6), WrittenOut(6), ChannelsFirst(6), Functional(6)])
def test_norms_are_told_by_what_they_do(norm):
    assert has_channel_norms(nn.Sequential(nn.Linear(4, 6), norm))


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm1d(6),
        nn.BatchNorm1d(6).eval(),
        nn.InstanceNorm2d(6, affine=True),
        nn.GroupNorm(2, 6),
        nn.GroupNorm(1, 6),
        nn.LayerNorm((3, 6)),
        nn.PReLU(6),
        nn.Linear(6, 6),
        LayerScale(6),
        nn.Softmax(-1),
    ],
    ids=repr,
)
def test_others_are_none(module):
    assert not has_channel_norms(nn.Sequential(nn.Linear(4, 6), module))


class Counting(nn.Module):
    """Writes into itself whenever it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.calls = nn.Parameter(torch.ones(6)), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.scale


@pytest.mark.parametrize("module", [nn.BatchNorm1d(6), nn.BatchNorm2d(6), Counting()], ids=repr)
def test_to_ask_changes_nothing(module):
    before, calls = copy.deepcopy(module.state_dict()), getattr(module, "calls", 0)
    random = torch.get_rng_state()
    assert not has_channel_norms(module.train())
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert getattr(module, "calls", 0) == calls
    assert torch.equal(torch.get_rng_state(), random)


def rows_behind(norm: nn.Module, x: Tensor, last: nn.Module, *, by_law: bool = True) -> Tensor:
    model = nn.Sequential(norm, last)
    runs = MeasuringRuns(model.eval(), [[Example.of(x)]], True, "probes", norms_by_law=by_law)
    return runs.measure({"1.weight": (1, 10**6)}).layers["1.weight"].rows[:, :, 0]


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.RMSNorm(6), WrittenOut(6), Functional(6)], ids=repr)
def test_what_they_make_has_independent_channels(norm):
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    gain, *bias = norm.parameters()
    x = torch.randn(5000, 1, 1) * torch.ones(4, 6) + 0.1 * torch.randn(5000, 4, 6)  # all channels are nearly one
    rows = rows_behind(norm, x, nn.Linear(6, 2))
    expected = torch.diag(gain.detach() ** 2)
    if isinstance(norm, nn.LayerNorm | Functional):  # which take the mean away
        expected = gain.detach()[:, None] * (torch.eye(6) * 6 / 5 - 1 / 5) * gain.detach()
    torch.testing.assert_close(torch.cov(rows.T), expected, atol=0.08, rtol=0)
    torch.testing.assert_close(rows.mean(0), bias[0].detach() if bias else torch.zeros(6), atol=0.05, rtol=0)
    assert torch.corrcoef(rows_behind(norm, x, nn.Linear(6, 2), by_law=False).T)[0, 1].abs() > 0.1  # as it really is


def test_channels_may_come_first():
    norm = ChannelsFirst(6)
    x = torch.randn(400, 1, 1, 1) * torch.ones(6, 4, 4)
    rows = rows_behind(norm, x, nn.Conv2d(6, 2, 1))
    expected = (norm.weight[:, None] * (torch.eye(6) * 6 / 5 - 1 / 5) * norm.weight).detach()
    torch.testing.assert_close(torch.cov(rows.T), expected, atol=0.15, rtol=0)


def test_runs_are_alike_and_disturb_nothing():
    norm, x = WrittenOut(6), torch.randn(50, 4, 6)
    last = nn.Linear(6, 2)
    torch.manual_seed(5)
    once = rows_behind(norm, x, last)
    assert torch.equal(torch.get_rng_state(), torch.manual_seed(5).get_state())
    assert torch.equal(rows_behind(norm, x, last), once)
    torch.testing.assert_close(rows_behind(norm, x, last, by_law=False), norm(x).flatten(0, 1).detach())


def test_norms_of_whole_maps_are_as_they_are():
    norm, x = nn.GroupNorm(1, 6), torch.randn(3, 6, 4, 4) + 2
    rows = rows_behind(norm, x, nn.Conv2d(6, 2, 1))
    torch.testing.assert_close(rows, norm(x).movedim(1, -1).flatten(0, 2).detach())
