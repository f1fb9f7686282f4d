"""Normalised channels: statistics over channels may only meet the channels that they were taken over."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_coreset.structure import analyse


class Net(nn.Module):
    """A normalisation, or what looks like one, between two layers."""

    def __init__(self, between, first: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first, self.last, self.between = first, last, between
        self.scale = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, self.first(x)))


def linear(between) -> tuple[nn.Module, Tensor]:
    return Net(between, nn.Linear(4, 6), nn.Linear(6, 2)), torch.randn(3, 5, 4)


def convolutional(between) -> tuple[nn.Module, Tensor]:
    return Net(between, nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)), torch.randn(2, 3, 4, 4)


def by_hand(net, x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).pow(2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * net.scale


def raw_moments(net, x: Tensor) -> Tensor:
    mean, square = x.mean(-1, keepdim=True), x.square().mean(-1, keepdim=True)
    return (x - mean) * torch.rsqrt(square - mean**2 + 1e-5)


def global_response(net, x: Tensor) -> Tensor:
    norm = x.norm(p=2, dim=(2, 3), keepdim=True)
    return x + x * (norm / (norm.mean(1, keepdim=True) + 1e-6)) * net.scale.view(1, -1, 1, 1)


NORMS = {
    "layer norm": linear(lambda net, x: F.layer_norm(x, x.shape[-1:], net.scale)),
    "rms norm": linear(lambda net, x: F.rms_norm(x, x.shape[-1:], net.scale)),
    "by hand": linear(by_hand),
    "raw moments": linear(raw_moments),
    "in half precision": linear(
        lambda net, x: x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6).to(x.dtype)
    ),
    "var_mean": linear(lambda net, x: (x - torch.var_mean(x, -1, keepdim=True)[1]) / x.std(-1, keepdim=True)),
    "normalize": linear(lambda net, x: F.normalize(x, dim=-1) * net.scale),
    "without keepdim": linear(lambda net, x: x / x.norm(dim=-1).unsqueeze(-1)),
    "masked": linear(lambda net, x: x / torch.where(x.norm(dim=-1, keepdim=True) > 1, 1.0, 2.0)),
    "one group": convolutional(lambda net, x: F.group_norm(x, 1, net.scale)),
    "channels first": convolutional(lambda net, x: x / x.pow(2).mean(1, keepdim=True).sqrt()),
    "channels last": convolutional(
        lambda net, x: F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2], net.scale).permute(0, 3, 1, 2)
    ),
    "global response": convolutional(global_response),
}


@pytest.mark.parametrize("name", NORMS)
def test_normalised_channels_are_a_group_of_their_own(name):
    (group,) = analyse(*NORMS[name]).groups
    assert (group.size, group.normalized) == (6, True)


def spatial_attention(net, x: Tensor) -> Tensor:
    return x * F.conv2d(x.mean(1, keepdim=True), torch.ones(1, 1, 1, 1)).sigmoid()


FEATURES = {
    "into a convolution": (
        convolutional(spatial_attention),
        "and the result enters another computation (aten.convolution)",
    ),
    "into a softmax": (
        linear(lambda net, x: x * x.mean(-1, keepdim=True).softmax(1)),
        "is reduced across channels (aten.mean), and the result enters another computation (aten._softmax)",
    ),
    "over other positions": (linear(lambda net, x: x / x.norm(dim=-1, keepdim=True).sum(1, keepdim=True)), "enters"),
    "into a number": (linear(lambda net, x: x / float(x.std())), "and the result is read as a number of Python"),
    "largest": (linear(lambda net, x: x / x.amax(-1, keepdim=True)), "is reduced across channels (aten.amax)"),
    "over two dimensions": (
        linear(lambda net, x: F.layer_norm(x, x.shape[1:])),
        "is normalised across more than its channels (aten",
    ),
    "into a write": (linear(lambda net, x: torch.zeros_like(x).copy_(x.mean(-1, keepdim=True)) + x), "and the result"),
}


@pytest.mark.parametrize("name", FEATURES)
def test_a_statistic_that_goes_elsewhere_holds_its_channels(name):
    (model, inputs), reason = FEATURES[name]
    structure = analyse(model, inputs)
    assert structure.groups == ()
    assert reason in structure.refused["first"]


def test_a_statistic_of_other_channels_holds_them():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.last = nn.Linear(4, 6), nn.Linear(4, 5), nn.Linear(6, 2)
            self.end = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            one, other = self.one(x), self.other(x)
            return self.last(one / other.norm(dim=-1, keepdim=True)) + self.end(other)

    structure = analyse(Two(), torch.randn(3, 4))
    assert [group.name for group in structure.groups] == ["one"]
    assert "is reduced across channels (aten.linalg_vector_norm)" in structure.refused["other"]


def test_a_mean_over_channels_that_is_returned_holds_them():
    class Returned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.first(x)
            return self.last(y), y.mean(-1)

    structure = analyse(Returned(), torch.randn(3, 4))
    assert (
        structure.refused["first"]
        == "is reduced across channels (aten.mean), and the result makes outputs of the network"
    )


def standardised(weight: Callable[[Tensor], Tensor]) -> nn.Module:
    class Standardised(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, weight(self.weight), self.bias)

    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), Standardised(6, 5), nn.ReLU(), nn.Linear(5, 2))


def test_what_a_standardised_weight_reads_is_normalised():
    model = standardised(lambda weight: weight - weight.mean(1, keepdim=True))
    groups = analyse(model, torch.randn(3, 4)).groups
    assert [(group.name, group.normalized, group.standardised) for group in groups] == [
        ("0", True, True),
        ("2", False, False),
    ]


@pytest.mark.parametrize(
    "weight",
    [
        lambda weight: weight - weight.amax(1, keepdim=True),
        lambda weight: weight.abs().mean(1, keepdim=True) * torch.ones(5, 6),  # has met nothing that it is taken over
    ],
)
def test_other_statistics_of_weights_hold_what_they_are_taken_over(weight):
    model = standardised(weight)
    names = {group.name for group in analyse(model, torch.randn(3, 4)).groups}
    assert names < {"0", "2"}


@pytest.mark.parametrize("used", [True, False])
def test_a_statistic_that_nothing_uses_normalises_nothing(used):
    def between(net, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        return x - mean if used else x

    (group,) = analyse(*linear(between)).groups
    assert group.normalized == used


class Selects(nn.Module):
    """Looks at one channel, and uses it or not."""

    def __init__(self, uses: bool) -> None:
        super().__init__()
        self.first, self.last, self.uses = nn.Linear(4, 6), nn.Linear(6, 2), uses

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        one = y.select(-1, 0)
        return self.last(y * one.unsqueeze(-1) if self.uses else y)


@pytest.mark.parametrize("uses", [False, True])
def test_a_channel_that_is_selected_holds_the_others_only_if_it_is_used(uses):
    structure = analyse(Selects(uses), torch.randn(3, 4))
    assert [group.name for group in structure.groups] == ([] if uses else ["first"])
    if uses:
        assert "is taken apart at fixed positions (aten.select), and the result" in structure.refused["first"]


def by_sums(net, x: Tensor) -> Tensor:
    return x - x.sum(-1, keepdim=True) / 6


def by_sums_of_squares(net, x: Tensor) -> Tensor:
    return x * (x.square().sum(-1, keepdim=True) * (1 / x.shape[-1])).rsqrt()


@pytest.mark.parametrize("between", [by_sums, by_sums_of_squares])
def test_a_sum_divided_by_the_number_of_channels_holds_them(between):
    """That number stays in the code: what is left would be divided by the old one."""
    structure = analyse(*linear(between))
    assert (
        structure.refused["first"]
        == "is reduced across channels (aten.sum) and divided by how many there are (use mean or var)"
    )


def test_a_sum_of_squares_is_a_norm():
    (group,) = analyse(*linear(lambda net, x: x / x.square().sum(-1, keepdim=True).sqrt())).groups
    assert group.normalized
