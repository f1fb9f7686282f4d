"""How many channels stay: the target is met to the channel, and the meter counts what is really there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, make, structure_of
from torch import nn

from lightning_coreset.planning import CostModel, ModelCost, Request, Unit, make_plan, measure, reached
from lightning_coreset.planning.allocation import uniform_steps
from lightning_coreset.planning.allowed_sizes import AllowedSizes
from lightning_coreset.pruning import count_macs
from lightning_coreset.structure import ChannelGroup, Structure, analyse, find_groups
from lightning_coreset.surgery import apply_changes, named_tensors

UNITS: tuple[Unit, ...] = ("params", "macs", "channels")
# Products of two activations, as in attention, cost what they did: nobody counts how many of them a head has.
COUNTED = [name for name in NETWORKS if name != "attention"]


def meter_of(name: str) -> tuple[CostModel, Structure]:
    structure = structure_of(name)
    return CostModel(named_tensors(make(name)[0]), structure.groups, structure.macs), structure


def uniform_sizes(
    groups: Sequence[ChannelGroup], meter: CostModel, ratio: float, unit: Unit, original: ModelCost
) -> dict[str, int]:
    ladders = [AllowedSizes.of(group, Request(ratio), group.size) for group in groups]
    return meter.sizes_at_ratio(uniform_steps(ladders), ladders, ratio, unit, original)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_target_is_met_to_the_channel(name, unit):
    meter, structure = meter_of(name)
    original = meter.totals()
    most = reached(meter.totals({group.name: 1 for group in structure.groups}), original, unit)
    channel = max(
        reached(meter.totals({group.name: group.size - 1}), original, unit) for group in structure.groups
    )  # nothing costs more than a channel of the whole network
    for ratio in (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999):
        sizes = uniform_sizes(structure.groups, meter, ratio, unit, original)
        gone = reached(meter.totals(sizes), original, unit)
        assert abs(gone - min(ratio, most)) <= channel / 2 + 1e-9
        assert all(1 <= sizes[group.name] <= group.size for group in structure.groups)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_neighbour_is_nearer(name):
    """Of all sizes on the way from everything to one channel in each group, the nearest is taken."""
    meter, structure = meter_of(name)
    original = meter.totals()
    whole = sum(group.size for group in structure.groups)
    ladder = {}
    for count in range(whole):
        sizes = uniform_sizes(structure.groups, meter, count / whole, "channels", original)
        ladder[tuple(sizes.values())] = reached(meter.totals(sizes), original, "params")
    for ratio in (0.2, 0.5, 0.8):
        sizes = uniform_sizes(structure.groups, meter, ratio, "params", original)
        found = abs(ladder[tuple(sizes.values())] - ratio)
        assert found == pytest.approx(min(abs(gone - ratio) for gone in ladder.values()))


@settings(max_examples=40)
@given(name=st.sampled_from(sorted(NETWORKS)), unit=st.sampled_from(UNITS), ratios=st.tuples(*[st.floats(0, 0.99)] * 2))
def test_a_larger_ratio_never_keeps_more(name, unit, ratios):
    meter, structure = meter_of(name)
    less, more = (uniform_sizes(structure.groups, meter, r, unit, meter.totals()) for r in sorted(ratios))
    assert all(more[group] <= less[group] for group in less)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_asked_nothing_taken(name, unit):
    meter, structure = meter_of(name)
    sizes = uniform_sizes(structure.groups, meter, 0.0, unit, meter.totals())
    assert sizes == {group.name: group.size for group in structure.groups}


def test_every_group_keeps_the_same_share():
    model = nn.Sequential(nn.Linear(5, 100), nn.ReLU(), nn.Linear(100, 40), nn.ReLU(), nn.Linear(40, 20), nn.ReLU())
    model.append(nn.Linear(20, 2))
    structure = analyse(model, torch.randn(1, 5))
    meter = CostModel(named_tensors(model), structure.groups, structure.macs)
    for ratio in (0.1, 0.35, 0.6, 0.85):
        sizes = uniform_sizes(structure.groups, meter, ratio, "params", meter.totals())
        shares = [sizes[group.name] / group.size for group in structure.groups]
        for (one, group), (other, sibling) in itertools.combinations(zip(shares, structure.groups, strict=True), 2):
            assert abs(one - other) <= 0.5 / group.size + 0.5 / sibling.size + 0.01 + 1e-9


@pytest.mark.parametrize("ratio", [0.3, 0.7])
@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_of_the_plan_are_those_of_the_pruned_model(name, ratio):
    model, x = make(name)
    whole = sum(parameter.numel() for parameter in model.parameters())
    plan = make_plan(model, structure_of(name), Request(ratio, include_residual=True))
    assert plan.params_before == plan.params_original == whole
    assert plan.macs_before == count_macs(model, x)
    apply_changes(model, plan.changes, plan.attributes)
    left = sum(parameter.numel() for parameter in model.parameters())
    assert plan.params_after == left < whole
    assert plan.sparsity == pytest.approx(1 - left / whole)
    assert plan.reached == pytest.approx(plan.sparsity)
    if name in COUNTED:
        assert plan.macs_after == count_macs(model, x) < plan.macs_before
    for group in find_groups(model, x):
        (planned,) = [one for one in plan.groups if one.name == group.name]
        assert group.size == planned.channels_after == len(planned.kept)


@pytest.mark.parametrize("unit", UNITS)
def test_a_second_pruning_counts_against_the_original(unit):
    model, x = make("vgg")
    request = Request(0.3, unit=unit)
    structure = analyse(model, x)
    original = measure(model, structure, request)
    plan = make_plan(model, structure, request, original=original)
    apply_changes(model, plan.changes, plan.attributes)
    later = make_plan(model, analyse(model, x), Request(0.6, unit=unit), original=original)
    assert later.params_original == original.params > later.params_before == plan.params_after
    assert later.reached == pytest.approx(0.6, abs=0.08)
    apply_changes(model, later.changes, later.attributes)
    assert later.sparsity == pytest.approx(1 - sum(p.numel() for p in model.parameters()) / original.params)
    # Asked for what is there already, nothing goes.
    again = make_plan(model, analyse(model, x), Request(later.reached, unit=unit), original=original)
    assert again.channels_removed == 0
    assert again.reached == pytest.approx(later.reached)


def test_buffers_are_no_parameters():
    model, x = make("vgg")
    structure = analyse(model, x)
    meter = CostModel(named_tensors(model), structure.groups, structure.macs)
    assert meter.totals().params == sum(parameter.numel() for parameter in model.parameters())
    assert meter.totals().channels == 6 + 8 + 10


def test_tied_parameters_count_once():
    model, x = make("autoencoder")
    structure = analyse(model, x)
    totals = CostModel(named_tensors(model), structure.groups, structure.macs).totals({"encoder": 4})
    assert totals == ModelCost(params=4 * 6 + 4, macs=2 * 4 * 6, channels=4, widths={"encoder": 4})


def test_multiply_accumulates_by_hand():
    model, x = make("mobilenet")
    layers = {"expand": 2 * 6 * 64, "depthwise": 12 * 9 * 64, "squeeze": 12 * 4, "excite": 4 * 12}
    layers |= {"project": 12 * 8 * 64, "head": 8 * 3}
    macs = analyse(model, x).macs
    assert {name: macs[f"{name}.weight"] for name in layers} == layers
    assert count_macs(model, x) == sum(layers.values())


class Standardised(nn.Conv2d):
    """A convolution whose weight is standardised at every call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, self.bias)


def test_the_cost_of_a_layer_with_a_computed_weight_shrinks():
    model = nn.Sequential(Standardised(2, 8, 3), nn.ReLU(), Standardised(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1))
    x = torch.randn(1, 2, 8, 8)
    plan = make_plan(model, analyse(model, x), Request(0.5))
    apply_changes(model, plan.changes, plan.attributes)
    assert plan.macs_after == count_macs(model, x)


@pytest.mark.parametrize(("whole", "now", "expected"), [(10, 5, 0.5), (10, 10, 0.0), (0, 0, 0.0)])
def test_reached(whole, now, expected):
    assert reached(ModelCost(1, now, 1), ModelCost(1, whole, 1), "macs") == expected
