"""Weights that ``weight_norm`` makes carry channels as parameters do."""

from __future__ import annotations

import pytest
import torch
from breadth import crossed
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from weight_norms import DIMS, NETWORKS, STYLES, baked, old_style

from lightning_coreset.structure import Example, WeightNorm, analyse
from lightning_coreset.verification.check import failing_groups

THE_REST = "is parametrized (remove the parametrization first: torch.nn.utils.parametrize.remove_parametrizations)"


@pytest.mark.parametrize(("network", "style", "dim"), crossed(NETWORKS, STYLES, DIMS))
def test_the_groups_are_those_of_the_network_without_weight_norm(network, style, dim):
    model, inputs = NETWORKS[network](STYLES[style], dim)
    structure = analyse(model, inputs)
    assert failing_groups(model, structure.groups, Example.of(inputs)) == {}
    before = [(group.name, group.size) for group in structure.groups], dict(structure.refused)
    macs = {
        name.partition(".parametrizations")[0].removesuffix(".weight_v"): own for name, own in structure.macs.items()
    }
    without = analyse(baked(model), inputs)
    assert before == ([(group.name, group.size) for group in without.groups], dict(without.refused))
    assert macs == {name.removesuffix(".weight"): own for name, own in without.macs.items()}


@pytest.mark.parametrize("style", STYLES)
def test_the_magnitude_goes_with_what_it_lies_along(style):
    norm = STYLES[style]
    model = nn.Sequential(norm(nn.Linear(4, 6), 0), norm(nn.Linear(6, 5), 1), norm(nn.Linear(5, 2), None))
    g, v = ("weight_g", "weight_v") if style == "old" else [f"parametrizations.weight.original{n}" for n in range(2)]
    first, second = analyse(model, torch.randn(3, 4)).groups
    assert [(one.name, one.dim, one.role) for one in first.members] == [
        (f"0.{v}", 0, "producer"),
        ("0.bias", 0, "channelwise"),
        (f"0.{g}", 0, "channelwise"),
        (f"1.{g}", 1, "channelwise"),
        (f"1.{v}", 1, "consumer"),
    ]
    assert [(one.name, one.dim, one.role) for one in second.members] == [
        (f"1.{v}", 0, "producer"),
        ("1.bias", 0, "channelwise"),
        (f"2.{v}", 1, "consumer"),
    ]
    assert second.weight_norms == (
        WeightNorm("1.weight", f"1.{g}", f"1.{v}", 1),
        WeightNorm("2.weight", f"2.{g}", f"2.{v}", None),
    )


def test_a_weight_norm_that_is_written_by_hand_is_followed():
    class ByHand(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.scale, self.way = nn.Parameter(torch.randn(outputs, 1)), nn.Parameter(torch.randn(outputs, inputs))

        def forward(self, x: Tensor) -> Tensor:
            return x @ torch._weight_norm(self.way, self.scale).T

    model, inputs = nn.Sequential(ByHand(4, 6), ByHand(6, 2)), torch.randn(3, 4)
    (group,) = analyse(model, inputs).groups
    assert (group.name, group.size) == ("0.way", 6)
    assert failing_groups(model, [group], Example.of(inputs)) == {}


class Shared(nn.Module):
    """Two weights of one direction, or of one magnitude."""

    def __init__(self, part: str) -> None:
        super().__init__()
        self.first, self.one, self.other = nn.Linear(4, 6), old_style(nn.Linear(6, 6)), old_style(nn.Linear(6, 6))
        self.last = nn.Linear(6, 2)
        setattr(self.other, part, getattr(self.one, part))

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.first(x).relu())
        return self.last(self.other(x.relu()).relu())


@pytest.mark.parametrize("part", ["weight_g", "weight_v"])
def test_shared_parts_are_refused(part):
    structure = analyse(Shared(part), torch.randn(3, 4))
    assert structure.groups == ()
    assert "shares magnitude or direction" in structure.refused["one"]


@pytest.mark.parametrize(
    "other", [parametrizations.spectral_norm, parametrizations.orthogonal], ids=["spectral_norm", "orthogonal"]
)
def test_other_parametrizations_stay(other):
    model = nn.Sequential(nn.Linear(4, 6), other(nn.Linear(6, 5)), nn.Linear(5, 2))
    assert THE_REST in analyse(model, torch.randn(3, 4)).refused["1"]


def test_a_weight_norm_with_another_parametrization_stays():
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    model = nn.Sequential(nn.Linear(4, 6), STYLES["new"](nn.Linear(6, 5)), nn.Linear(5, 2))
    parametrize.register_parametrization(model[1], "weight", Doubled())
    structure = analyse(model, torch.randn(3, 4))
    assert structure.groups == ()
    assert structure.refused["1"] == THE_REST


def test_old_spectral_norm_stays():
    model = nn.Sequential(nn.Linear(4, 6), nn.utils.spectral_norm(nn.Linear(6, 5)), nn.Linear(5, 2))
    structure = analyse(model, torch.randn(3, 4))
    assert structure.groups == ()
    assert "old-style spectral_norm" in structure.refused["1"]
