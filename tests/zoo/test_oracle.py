"""The oracle itself: it accepts right groups made by hand, and each kind of mistake gets its name."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Generator, Tensor, nn

from lightning_coreset.structure import ChannelGroup, Member

from .inspection import Verdict, malformed, wrong_attributes
from .oracle import judge
from .running import distance, randomise

Places = Sequence[Sequence[int]]


def one_each(count: int) -> list[list[int]]:
    """Class i at position i."""
    return [[i] for i in range(count)]


def group(*members: tuple[str, int, str, Places]) -> ChannelGroup:
    return ChannelGroup("made by hand", tuple(Member(n, d, r, tuple(map(tuple, at))) for n, d, r, at in members))


def verdict(model: nn.Module, shape: tuple[int, ...], made: ChannelGroup) -> Verdict:
    inputs = [(torch.randn(shape, generator=Generator().manual_seed(seed)),) for seed in range(2)]
    randomise(model, inputs[0], Generator().manual_seed(2))
    return judge(model, inputs, made)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 3))


def conv_net() -> nn.Module:
    """A grouped convolution behind, and a Flatten at the end: one class, several positions."""
    layers = [nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8 * 4, 3))


class Branches(nn.Module):
    """Two consumers of one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b = nn.Linear(5, 12), nn.Linear(12, 3), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).tanh()
        return self.a(y) - self.b(y)


FIRST = (("0.weight", 0, "producer", one_each(12)), ("0.bias", 0, "channelwise", one_each(12)))
LAST = ("2.weight", 1, "consumer", one_each(12))
STATISTICS = [
    (f"1.{name}", 0, "channelwise", one_each(12)) for name in ("weight", "bias", "running_mean", "running_var")
]
SHIFTED = [[(i + 1) % 12] for i in range(12)]
HIDDEN = (("first.weight", 0, "producer", one_each(12)), ("first.bias", 0, "channelwise", one_each(12)))


@pytest.mark.parametrize(
    ("model", "shape", "made"),
    [
        pytest.param(mlp, (4, 5), group(*FIRST, LAST), id="mlp"),
        pytest.param(
            conv_net, (2, 3, 6, 6), group(*FIRST, *STATISTICS, ("3.weight", 1, "consumer", one_each(12))), id="norm"
        ),
        pytest.param(
            conv_net,
            (2, 3, 6, 6),
            group(
                ("3.weight", 0, "producer", one_each(8)),
                ("3.bias", 0, "channelwise", one_each(8)),
                ("6.weight", 1, "consumer", [range(4 * i, 4 * i + 4) for i in range(8)]),
            ),
            id="flatten",
        ),
    ],
)
def test_accepts_right_groups(model, shape, made):
    assert verdict(model(), shape, made) == Verdict("made by hand", "right")


@pytest.mark.parametrize(
    ("model", "shape", "made", "kind"),
    [
        pytest.param(mlp, (4, 5), group(*FIRST, (*LAST[:3], SHIFTED)), "leak", id="consumer shifted by one"),
        pytest.param(
            mlp, (4, 5), group(FIRST[0], ("0.bias", 0, "channelwise", SHIFTED), LAST), "leak", id="bias shifted by one"
        ),
        pytest.param(mlp, (4, 5), group(FIRST[0], LAST), "exception", id="bias forgotten"),
        pytest.param(mlp, (4, 5), group(*FIRST), "leak", id="no consumer"),
        pytest.param(
            conv_net, (2, 3, 6, 6), group(*FIRST, *STATISTICS[:3], ("3.weight", 1, "consumer", one_each(12))),
            "exception", id="running variance forgotten",
        ),
        pytest.param(
            conv_net,
            (2, 3, 6, 6),
            group(
                *FIRST, *STATISTICS[:2], ("1.running_mean", 0, "channelwise", one_each(12)[::-1]), STATISTICS[3],
                ("3.weight", 1, "consumer", one_each(12)),
            ),
            "leak", id="running mean reversed",
        ),
        pytest.param(
            conv_net,
            (2, 3, 6, 6),
            group(
                ("3.weight", 0, "producer", one_each(8)),
                ("3.bias", 0, "channelwise", one_each(8)),
                ("6.weight", 1, "consumer", [range(i, 32, 8) for i in range(8)]),
            ),
            "leak", id="flatten in channels-last order",
        ),
        pytest.param(
            Branches, (4, 5), group(*HIDDEN, ("a.weight", 1, "consumer", one_each(12))), "leak", id="consumer forgotten"
        ),
    ],
)  # fmt: skip
def test_names_the_mistake(model, shape, made, kind):
    assert verdict(model(), shape, made).kind == kind


def test_reports_wrong_output_where_nothing_leaks():
    class Scaled(nn.Module):
        """Divides by the width: removal changes what stays."""

        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Tensor:
            y = self.net[1](self.net[0](x))
            return self.net[2](y / y.shape[1])

    members = [(f"net.{name}", dim, role, at) for name, dim, role, at in (*FIRST, LAST)]
    assert verdict(Scaled(), (4, 5), group(*members)).kind == "wrong output"


def test_reports_vacuous_where_zeroing_changes_nothing():
    model = mlp()
    nn.init.zeros_(model[2].weight)
    inputs = [(torch.randn(4, 5, generator=Generator().manual_seed(0)),)]
    assert judge(model, inputs, group(*FIRST, LAST)).kind == "vacuous"


def test_judging_leaves_the_network_alone():
    model = mlp()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    judge(model, [(torch.randn(4, 5, generator=Generator().manual_seed(0)),)], group(*FIRST, LAST))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "members",
    [
        pytest.param([*FIRST, ("2.weight", 2, "consumer", one_each(12))], id="no such dimension"),
        pytest.param([*FIRST, ("9.weight", 1, "consumer", one_each(12))], id="no such tensor"),
        pytest.param([*FIRST, ("2.weight", 1, "consumer", one_each(11))], id="too few classes"),
        pytest.param([*FIRST, ("2.weight", 1, "consumer", [[0]] * 12)], id="one position in all classes"),
        pytest.param([*FIRST, ("2.weight", 1, "consumer", [[i + 1] for i in range(12)])], id="out of range"),
        pytest.param([("0.bias", 0, "channelwise", one_each(12))], id="nobody makes or reads the channels"),
    ],
)
def test_malformed_groups(members):
    assert list(malformed(mlp(), [group(*members)]))
    assert not list(malformed(mlp(), [group(*FIRST, LAST)]))


def test_overlapping_groups_are_malformed():
    one, two = group(*FIRST, LAST), group(LAST, FIRST[0])
    assert any("two groups" in fault.detail for fault in malformed(mlp(), [one, two]))


def test_distance():
    a = torch.tensor([1.0, -2.0])
    assert distance([a], [a]) == 0
    assert distance([a + 0.02], [a]) == pytest.approx(0.01)
    assert distance([a[:1]], [a]) == float("inf")
    assert distance([a.isnan()], [a > 5]) == 0
    assert distance([torch.tensor([1, 2])], [torch.tensor([1, 3])]) == float("inf")


def test_attributes_that_do_not_fit_are_found():
    model = conv_net()
    assert not list(wrong_attributes(model))
    model[0].out_channels = 11
    assert list(wrong_attributes(model)) == ["0.out_channels is 11, but the tensors say 12"]
