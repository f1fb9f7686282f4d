"""Which groups lose how much: ladders, orders of steps, and what comes of several events."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from breadth import crossed
from networks import NETWORKS, make, structure_of
from torch import Tensor, nn

from lightning_coreset.methods import Magnitude, Method, Random, Reconstruction, Sensitivity
from lightning_coreset.planning import CostModel, ModelCost, PruningProblem, Request, Unit, make_plan, measure, prunable
from lightning_coreset.planning.allocation import error_steps, ranked_steps, uniform_steps
from lightning_coreset.planning.allowed_sizes import AllowedSizes
from lightning_coreset.structure import ChannelGroup, Member, analyse
from lightning_coreset.surgery import apply_changes, named_tensors

ALLOCATIONS: list[tuple[str, Method]] = [
    ("uniform", Magnitude()),
    ("error", Reconstruction()),
    ("error", Sensitivity()),
    ("global", Magnitude()),
    ("global", Random()),
]
UNITS: tuple[Unit, ...] = ("params", "macs", "channels")


def group_of(classes: int, *widths: int) -> ChannelGroup:
    """A group whose classes are so many channels in each layer that makes them."""
    members = [
        Member(f"{number}.weight", 0, "producer", tuple(tuple(range(c * w, c * w + w)) for c in range(classes)))
        for number, w in enumerate(widths)
    ]
    return ChannelGroup("0", (*members, Member("last.weight", 1, "consumer", members[0].index)))


# ---- ladders


@pytest.mark.parametrize(
    ("group", "options", "original", "rungs"),
    [
        (group_of(5, 1), {}, 5, (5, 4, 3, 2, 1)),
        (group_of(20, 1), {"round_to": 8}, 20, (20, 16, 8)),
        (group_of(16, 1), {"round_to": 8}, 20, (16, 8)),  # the second event
        (group_of(6, 1), {"round_to": 8}, 6, (6,)),  # too small for it
        (group_of(8, 1), {"round_to": 8}, 8, (8,)),
        (group_of(5, 8), {"round_to": 8}, 5, (5, 4, 3, 2, 1)),  # heads of 8 channels
        (group_of(5, 12), {"round_to": 8}, 5, (5, 4, 2)),  # heads of 12
        (group_of(5, 3), {"round_to": 8}, 5, (5,)),
        (group_of(6, 4, 2), {"round_to": 8}, 6, (6, 4)),  # several heads of queries for one of keys
        (group_of(13, 4, 6), {"round_to": 12}, 13, (13, 12, 6)),
        (group_of(10, 1), {"min_channels": 7}, 10, (10, 9, 8, 7)),
        (group_of(10, 4), {"min_channels": 30}, 10, (10, 9, 8)),
        (group_of(4, 4, 1), {"min_channels": 3}, 4, (4, 3)),  # in the narrowest layer
        (group_of(3, 1), {"min_channels": 7}, 10, (3,)),
        (group_of(10, 1), {"max_layer_ratio": 0.7}, 10, (10, 9, 8, 7, 6, 5, 4, 3)),  # 10 * (1 - 0.7) > 3 in floats
        (group_of(6, 1), {"max_layer_ratio": 0.5}, 10, (6, 5)),
        (group_of(3, 1), {"max_layer_ratio": 0.5}, 10, (3,)),
        (group_of(20, 1), {"round_to": 4, "min_channels": 5, "max_layer_ratio": 0.5}, 20, (20, 16, 12)),
    ],
)
def test_sizes_that_a_group_may_have(group, options, original, rungs):
    ladder = AllowedSizes.of(group, Request(0.5, **options), original)
    assert ladder.sizes == rungs
    assert ladder.smallest == rungs[-1]
    assert ladder.longest_step == max((a - b for a, b in itertools.pairwise(rungs)), default=0)


def test_classes_of_different_widths_go_one_by_one():
    member = Member("0.weight", 0, "producer", ((0,), (1, 2), (3, 4, 5)))
    ladder = AllowedSizes.of(ChannelGroup("0", (member,)), Request(0.5, round_to=8), 3)
    assert ladder.sizes == (3, 2, 1)


@pytest.mark.parametrize(("size", "rung"), [(20.0, 20), (18.1, 20), (18.0, 20), (17.9, 16), (3.0, 8), (12.0, 16)])
def test_the_nearest_rung(size, rung):
    assert AllowedSizes("0", 20, (20, 16, 8)).nearest(size) == rung


# ---- orders


class Step(NamedTuple):
    """One removal: a group goes down to the next smaller size that it may have."""

    group: str
    size: int


def steps(ladders: list[AllowedSizes], order: Tensor) -> list[Step]:
    """An order, with the sizes to which its steps lead."""
    left = [list(ladder.sizes[1:]) for ladder in ladders]
    return [Step(ladders[number].name, left[number].pop(0)) for number in order.tolist()]


def test_uniform_steps_keep_pace_with_the_original():
    ladders = [AllowedSizes("a", 4, (4, 3, 2, 1)), AllowedSizes("b", 2, (2, 1))]
    order = [Step("a", 3), Step("b", 1), Step("a", 2), Step("a", 1)]  # half-way at 1/8, 1/4, 3/8 and 5/8
    assert steps(ladders, uniform_steps(ladders)) == order
    # Some of it done, the rest goes in the same order.
    later = [AllowedSizes("a", 4, (3, 2, 1)), ladders[1]]
    assert steps(later, uniform_steps(later)) == order[1:]
    assert steps(later[:1], uniform_steps(later[:1])) == [order[2], order[3]]


def test_ranked_steps_take_the_least_important_of_all():
    ladders = [AllowedSizes("a", 4, (4, 3, 2, 1)), AllowedSizes("b", 3, (3, 2, 1)), AllowedSizes("c", 4, (4, 2))]
    scores = {"a": torch.tensor([0.3, 0.9, 0.1, 0.8]), "b": torch.tensor([0.2, 0.95, 0.85])}
    scores["c"] = torch.tensor([9.0, 0.0, 0.5, 9.0])  # two at a time, of 0.25 on average
    order = [Step("a", 3), Step("b", 2), Step("c", 2), Step("a", 2), Step("a", 1), Step("b", 1)]
    assert steps(ladders, ranked_steps(ladders, scores)) == order


class Naive:
    """The same greedy choice, all prices looked up anew at every step."""

    @staticmethod
    def steps(
        ladders: list[AllowedSizes],
        slopes: Mapping[str, list[float]],
        meter: CostModel,
        unit: Unit,
        sizes: dict[str, int],
    ) -> list[Step]:
        left = {ladder.name: list(zip(ladder.steps(), slopes[ladder.name], strict=True)) for ladder in ladders}
        order = []
        while any(left.values()):
            prices = {
                name: todo[0][1] / meter.saved(name, todo[0][0][1], sizes, unit) for name, todo in left.items() if todo
            }
            name = min(prices, key=lambda name: prices[name])
            sizes[name] = left[name].pop(0)[0][1]
            order.append(Step(name, sizes[name]))
        return order


@pytest.mark.parametrize(("name", "round_to", "unit"), crossed(["mlp", "lenet", "vgg", "unet"], [1, 2], UNITS))
def test_error_steps_are_the_greedy_ones(name, round_to, unit):
    structure = structure_of(name)
    meter = CostModel(named_tensors(make(name)[0]), structure.groups, structure.macs)
    ladders = [AllowedSizes.of(group, Request(0.5, round_to=round_to), group.size) for group in structure.groups]
    generator = torch.Generator().manual_seed(0)
    curves, slopes = {}, {}
    for ladder in ladders:
        added = torch.rand(ladder.original, generator=generator, dtype=torch.float64).sort().values
        added[0] = 0.0
        curves[ladder.name] = added.cumsum(0)
        at = {size: curves[ladder.name][ladder.original - size] for size in ladder.sizes}
        slopes[ladder.name] = [float(at[below] - at[above]) for above, below in ladder.steps()]
    sizes = {ladder.name: ladder.original for ladder in ladders}
    order = Naive.steps(ladders, slopes, meter, unit, sizes)
    assert steps(ladders, error_steps(ladders, curves, meter, unit)) == order


def two_groups(*sizes: int) -> tuple[list[AllowedSizes], CostModel]:
    """Groups side by side, of one parameter a channel."""
    tensors, groups = {}, []
    for number, size in enumerate(sizes):
        tensors[str(number)] = nn.Parameter(torch.zeros(size))
        groups.append(
            ChannelGroup(str(number), (Member(str(number), 0, "producer", tuple((i,) for i in range(size))),))
        )
    return [AllowedSizes.of(group, Request(0.5), group.size) for group in groups], CostModel(tensors, groups, {})


def test_a_dear_channel_before_a_cheap_one_is_dear_for_both():
    """What comes only together is priced together, or the cheap one would never be seen."""
    ladders, meter = two_groups(3, 3)
    curves = {"0": torch.tensor([0.0, 1.0, 1.0]), "1": torch.tensor([0.0, 0.6, 1.2])}
    order = [Step("0", 2), Step("0", 1), Step("1", 2), Step("1", 1)]
    assert steps(ladders, error_steps(ladders, curves, meter, "params")) == order


def test_groups_without_a_curve_go_along_with_the_others():
    ladders, meter = two_groups(8, 8, 4)
    curves = {"0": torch.zeros(8), "1": torch.arange(8.0)}
    order = steps(ladders, error_steps(ladders, curves, meter, "params"))
    assert len(order) == 7 + 7 + 3
    places = [order.index(Step("2", size)) for size in (3, 2, 1)]
    for taken, place in zip((1, 2, 3), places, strict=True):
        others = place - taken + 1  # of the 14 steps that have prices
        assert abs(others / 14 - (taken - 0.5) / 4) <= 1 / 14
    assert torch.equal(error_steps(ladders, {}, meter, "params"), uniform_steps(ladders))


# ---- in a plan


def overcomplete() -> nn.Sequential:
    """The second layer's channels are two, over and over; the first layer's are all different."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5)).double()
    with torch.no_grad():
        model[2].weight.copy_(model[2].weight[:2].repeat(12, 1))
        model[2].bias.copy_(model[2].bias[:2].repeat(12))
    return model


def test_error_takes_what_the_others_can_stand_in_for():
    model = overcomplete()
    structure = analyse(model, torch.randn(2, 6).double())
    uniform, error = (
        make_plan(model, structure, Request(0.45, unit="channels", allocation=allocation))
        for allocation in ("uniform", "error")
    )
    assert [group.channels_after for group in uniform.groups] == [13, 13]
    first, second = error.groups
    assert second.channels_after <= 4 < 20 <= first.channels_after
    worst = [max(float(group.expected_error or 0) for group in plan.groups) for plan in (uniform, error)]
    assert worst[1] < worst[0] / 10


def test_error_does_not_depend_on_the_scale_of_a_layer():
    """The law of a layer's input is not always known, so that its errors are right up to a factor only."""
    model, structure = make("mlp")[0], structure_of("mlp")
    request = Request(0.6, allocation="error")
    before = PruningProblem.of(model, structure, request).sizes()
    with torch.no_grad():
        model[4].weight *= 1000
        model[4].bias *= 1000
    assert PruningProblem.of(model, structure, request).sizes() == before


def test_global_lets_the_weaker_layer_lose_more():
    model, structure = make("mlp")[0], structure_of("mlp")
    with torch.no_grad():
        model[0].weight[2:] *= 0.01
        model[0].bias[2:] *= 0.01
    plan = make_plan(model, structure, Request(0.5, unit="channels", method=Magnitude(), allocation="global"))
    assert plan.groups[0].kept == (0, 1)
    assert [group.channels_after for group in plan.groups] == [2, 12]


def test_global_does_not_depend_on_the_scale_of_a_layer():
    model, structure = make("mlp")[0], structure_of("mlp")
    request = Request(0.5, method=Magnitude(), allocation="global")
    before = PruningProblem.of(model, structure, request).sizes()
    with torch.no_grad():
        model[2].weight *= 100
    assert PruningProblem.of(model, structure, request).sizes() == before


def test_the_random_ranking_follows_the_seed():
    model, structure = make("vgg")[0], structure_of("vgg")
    requests = [Request(0.5, method=Random(), allocation="global", seed=seed) for seed in (0, 0, *range(1, 6))]
    first, again, *others = (PruningProblem.of(model, structure, request).sizes() for request in requests)
    assert first == again
    assert any(first != other for other in others)


@pytest.mark.parametrize(("name", "unit", "allocated"), crossed(NETWORKS, UNITS, ALLOCATIONS))
def test_the_target_is_met_by_every_allocation(name, unit, allocated):
    allocation, method = allocated
    structure = structure_of(name)
    for ratio in (0.2, 0.6):
        request = Request(ratio, unit=unit, method=method, allocation=allocation, include_residual=True)
        survey = PruningProblem.of(make(name)[0], structure, request)
        whole, most = getattr(survey.original, unit), survey.gone(survey.smallest())
        widths = survey.original.widths
        channel = max(survey.cost_model.saved(group, size - 1, widths, unit) for group, size in widths.items()) / whole
        assert abs(survey.gone(survey.sizes()) - min(ratio, most)) <= channel / 2 + 1e-9


# ---- one event after another


def sizes_after(name: str, ratios: list[float], request: Request) -> tuple[dict[str, int], ModelCost]:
    model, x = make(name)
    original = measure(model, analyse(model, x), request)
    for ratio in ratios:
        structure = analyse(model, x)
        if prunable(model, structure, request)[0]:  # later events may find all groups down to one channel
            plan = make_plan(model, structure, request.scaled(ratio), original=original, strict=False)
            apply_changes(model, plan.changes, plan.attributes)
    left = {group.name: group.size for group in analyse(model, x).groups if group.name in original.widths}
    return {name: left.get(name, 1) for name in original.widths}, original


EVENTS = [
    Request(0.8, unit="params"),
    Request(0.8, unit="macs"),
    Request(0.8, unit="channels"),
    Request(0.6, round_to=2, max_layer_ratio=0.7),
    Request({"*": 0.7}),
    Request({"*": 0.9}, unit="channels"),
]


@pytest.mark.parametrize(("name", "request_"), crossed(["mlp", "lenet", "vgg", "unet", "densenet", "siblings"], EVENTS))
def test_several_events_end_where_one_does(name, request_):
    request_ = Request(**{**vars(request_), "method": Magnitude()})
    at_once, _ = sizes_after(name, [1.0], request_)
    assert sizes_after(name, [0.3, 0.7, 1.0], request_)[0] == at_once
    assert sizes_after(name, [0.1, 0.1, 0.5, 0.9, 1.0, 1.0], request_)[0] == at_once


def test_max_ratio_is_of_the_original():
    request = Request(0.5, method=Magnitude(), max_layer_ratio=0.5, unit="channels")
    assert sizes_after("vgg", [0.5, 1.0, 1.0], request)[0] == {"0": 3, "3": 4, "6": 5}


def test_a_group_down_to_one_channel_still_counts():
    """It is no group any more, but its last channel was one of the original's."""
    model, x = make("mlp")
    request = Request(0.99, unit="channels", method=Magnitude())
    original = measure(model, analyse(model, x), request)
    plan = make_plan(model, analyse(model, x), request, original=original, sizes={"0": 1})
    apply_changes(model, plan.changes)
    plan = make_plan(model, analyse(model, x), Request(0.75, unit="channels"), original=original)
    assert [group.name for group in plan.groups] == ["2"]
    assert plan.groups[0].channels_after == 6
    assert plan.reached == pytest.approx(1 - 7 / 28)


# ---- what each group's cut comes to


@pytest.mark.parametrize(("name", "method"), crossed(NETWORKS, [Reconstruction(), Sensitivity("draws"), Magnitude()]))
def test_what_goes_group_by_group_adds_up(name, method):
    plan = make_plan(make(name)[0], structure_of(name), Request(0.4, method=method, include_residual=True))
    assert sum(group.params_removed for group in plan.groups) == plan.params_before - plan.params_after
    assert sum(group.macs_removed for group in plan.groups) == plan.macs_before - plan.macs_after
    for group in plan.groups:
        cut = group.channels_after < group.channels_before
        assert (group.params_removed > 0) == cut
        assert group.macs_removed >= 0
        assert cut or group.macs_removed == 0


def test_classes_of_different_widths_add_up():
    """The meter goes by their average; what goes is told exactly."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    structure = analyse(model, torch.randn(1, 4))
    classes = ((0,), (1, 2), (3, 4, 5))
    group = ChannelGroup("0", tuple(replace(member, index=classes) for member in structure.groups[0].members))
    plan = make_plan(model, replace(structure, groups=(group,)), Request(0.5, method=Magnitude()), sizes={"0": 1})
    (kept,) = plan.groups[0].kept
    assert plan.groups[0].params_removed == plan.params_before - plan.params_after == (5 - kept) * (4 + 1 + 2)


def test_what_goes_with_a_group_by_hand():
    """From the bottom up: the second group's rows are shorter by what the first one lost."""
    model, structure = make("mlp")[0], structure_of("mlp")  # 6 - 16 - 12 - 3
    plan = make_plan(model, structure, Request(0.5), sizes={"0": 10, "2": 4})
    first, second = plan.groups
    assert (first.params_removed, first.macs_removed) == (6 * (6 + 1 + 12), 6 * (6 + 12))
    assert (second.params_removed, second.macs_removed) == (8 * (10 + 1 + 3), 8 * (10 + 3))


def test_a_layer_of_zeros_is_ranked():
    model, structure = make("mlp")[0], structure_of("mlp")
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.zero_()
    for allocation, method in ALLOCATIONS:
        survey = PruningProblem.of(model, structure, Request(0.5, allocation=allocation, method=method))
        assert survey.gone(survey.sizes()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(("ratio", "left"), [(0.374, 3), (0.375, 3), (0.376, 2), (0.625, 2), (0.626, 1)])
def test_of_two_sizes_equally_near_the_larger_stays(ratio, left):
    """Four channels: 0.375 lies half-way between one and two of them."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    plan = make_plan(model, analyse(model, torch.randn(1, 3)), Request(ratio, "channels"))
    assert plan.groups[0].channels_after == left
