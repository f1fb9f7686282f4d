"""Rules name layers: which groups they mean, what they come to, and what is said where they mean nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from networks import NETWORKS, Resnet, make, structure_of
from torch import Tensor, nn

from lightning_coreset.planning import Request, Rule, idle_rules, make_plan, prunable
from lightning_coreset.structure import ChannelGroup, analyse


def left(name: str, **options: Any) -> list[str]:
    request = Request(0.1, include_residual=True, **options)
    return [group.name for group in prunable(make(name)[0], structure_of(name), request)[0]]


def widths(name: str, **options: Any) -> dict[str, int]:
    request = Request(include_residual=True, **options)
    plan = make_plan(make(name)[0], structure_of(name), request)
    return {group.name: group.channels_after for group in plan.groups}


# ---- which groups a rule names


@pytest.mark.parametrize(
    ("network", "rule", "named"),
    [
        ("resnet", "conv?", ["conv1", "conv2"]),
        ("resnet", "shortcut", ["conv2"]),  # added to what conv2 makes
        ("resnet", re.compile("conv[12]"), ["conv1", "conv2"]),
        ("resnet", re.compile("stem|.*1"), ["stem", "conv1"]),
        ("resnet", re.compile("conv1.*"), ["conv1"]),
        ("resnet", nn.Conv2d, ["stem", "conv1", "conv2"]),
        ("resnet", nn.modules.conv._ConvNd, ["stem", "conv1", "conv2"]),
        ("lenet", nn.Linear, ["6"]),
        ("unet", nn.ConvTranspose2d, ["up"]),
        ("mobilenet", "excite", ["expand"]),  # gates what expand makes
        ("autoencoder", "encoder", ["encoder"]),  # its weight is a consumer, too
        ("autoencoder", nn.Linear, ["encoder"]),
        ("attention", "[kv]", ["q"]),  # heads are of one group
    ],
)
def test_a_rule_names_the_groups_whose_channels_its_layers_make(network, rule, named):
    everything = left(network)
    assert set(named) <= set(everything)
    assert left(network, only=[rule]) == named
    assert left(network, ignore=[rule]) == [name for name in everything if name not in named]
    assert left(network, only=[rule], ignore=[rule]) == []


def test_ignore_is_an_exception_to_other_rules():
    assert left("vgg", only=["*"], ignore=["3"]) == ["0", "6"]
    assert widths("vgg", pruning_ratio={"*": 0.5}, ignore=["3"]) == {"0": 3, "6": 5}


def test_the_plan_tells_why_a_group_stays():
    model, structure = make("resnet")[0], structure_of("resnet")
    request = Request({"stem": 0.5, "conv2": 0.5}, ignore=[re.compile("stem")], only=["stem", "conv2"])
    groups, skipped = prunable(model, structure, request)
    assert groups == []
    assert skipped["stem"] == "is ignored by re.compile('stem')"
    assert skipped["conv1"] == "is named by no rule of only"
    assert skipped["conv2"].startswith("is coupled with other layers by a residual addition")
    assert skipped["head"] == "makes outputs of the network"
    assert prunable(model, structure, Request({"stem": 0.5}))[1]["conv1"] == "is named by no rule of pruning_ratio"


class Own(nn.Module):
    """Parameters without a layer around them: at the root, and in a module that has two."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.weight = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(8, 7))
        self.inner = nn.ParameterDict({"a": torch.randn(7, 5), "b": torch.randn(5, 4)})
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = ((x @ self.enter).relu() @ self.weight).relu()
        return self.head(((x @ self.inner["a"]).relu() @ self.inner["b"]).relu())


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        ("enter", ["enter"]),
        ("weight", ["weight"]),
        ("inner", ["inner.a", "inner.b"]),
        ("inner.b", ["inner.b"]),
        (re.compile(r"inner\.."), ["inner.a", "inner.b"]),
        (nn.ParameterDict, ["inner.a", "inner.b"]),
        (Own, ["enter", "weight"]),
    ],
)
def test_own_parameters_have_names(rule, named):
    model = Own()
    structure = analyse(model, torch.randn(2, 6))
    assert [group.name for group in structure.groups] == ["enter", "weight", "inner.a", "inner.b"]
    plan = make_plan(model, structure, Request({rule: 0.5}))
    assert [group.name for group in plan.groups] == named


class Added(nn.Module):
    """A layer and an own parameter that make the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.extra = nn.Parameter(torch.randn(6, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.fc(x) + x @ self.extra).relu())


@pytest.mark.parametrize("rule", ["fc", "extra", Added, nn.Linear])
def test_coupled_channels_are_named_by_any_that_makes_them(rule):
    model = Added()
    plan = make_plan(model, analyse(model, torch.randn(2, 6)), Request({rule: 0.5}, include_residual=True))
    assert [(group.name, group.channels_after) for group in plan.groups] == [("fc", 4)]


def test_a_group_has_the_name_that_the_table_gives_it():
    """One module may make several groups, which have numbers behind its name."""
    model, structure = make("mlp")[0], structure_of("mlp")
    second, last = replace(structure.groups[0], name="0#2"), structure.groups[1]
    structure = replace(structure, groups=(second, last))
    for rule, named in [("0#2", ["0#2"]), ("0", ["0#2"]), ("[02]*", ["0#2", "2"]), (nn.Linear, ["0#2", "2"])]:
        plan = make_plan(model, structure, Request({rule: 0.5}))
        assert [group.name for group in plan.groups] == named


# ---- a ratio for each rule


def test_every_group_loses_what_its_rule_says():
    rules: dict[Rule, float] = {"0": 0.5, re.compile("[3]"): 0.25, nn.Linear: 0.7}
    assert widths("lenet", pruning_ratio=rules) == {"0": 3, "3": 6, "6": 3}
    assert widths("lenet", pruning_ratio={"3": 0.25}) == {"3": 6}


@pytest.mark.parametrize("unit", ["params", "macs", "channels"])
def test_the_unit_of_rules_is_only_what_is_told(unit):
    model, structure = make("vgg")[0], structure_of("vgg")
    plan = make_plan(model, structure, Request({"*": 0.5}, unit=unit))
    assert [group.channels_after for group in plan.groups] == [3, 4, 5]
    assert plan.requested == pytest.approx(plan.reached)  # halves are whole channels here
    plan = make_plan(model, structure, Request({"*": 0.45}, unit=unit))
    assert [group.channels_after for group in plan.groups] == [3, 4, 6]  # 3.3, 4.4 and 5.5 were asked for
    assert plan.unit == unit
    if unit == "channels":
        assert (plan.requested, plan.reached) == pytest.approx((0.45, 11 / 24))
    assert plan.requested != pytest.approx(plan.reached, abs=1e-3)


def test_a_ratio_of_zero_names_a_group_and_takes_nothing():
    assert widths("vgg", pruning_ratio={"0": 0.0, "3": 0.5}) == {"0": 6, "3": 4}


def test_rules_of_one_ratio_may_overlap():
    assert widths("resnet", pruning_ratio={"conv2": 0.5, "shortcut": 0.5, "conv*": 0.5}) == {"conv1": 4, "conv2": 5}


def test_rules_that_fight_over_a_coupled_group_are_both_named():
    model, structure = make("resnet")[0], structure_of("resnet")
    rules: dict[Rule, float] = {"conv*": 0.5, re.compile("short.*"): 0.3}
    expected = (
        r"one pruning ratio for the channels of 'conv2', which go together, "
        r"but 'conv\*' says 0.5 \(through conv2\) and re.compile\('short\.\*'\) says 0.3 \(through shortcut\)"
    )
    with pytest.raises(ValueError, match=expected):
        make_plan(model, structure, Request(rules, include_residual=True))
    # Of a group that stays anyway there is nothing to fight about.
    assert [group.name for group in make_plan(model, structure, Request(rules)).groups] == ["conv1"]


# ---- rules that mean nothing


@pytest.mark.parametrize("argument", ["ignore", "only", "pruning_ratio"])
@pytest.mark.parametrize(
    ("rule", "close"),
    [
        ("conv3", "'conv1'"),
        ("hed", "'head'"),
        ("stem_nrom", "'stem_norm'"),
        ("head.*", "'head'"),
        (re.compile("conv"), "'conv1'"),
        (nn.Conv3d, "BatchNorm2d, Conv2d, Linear"),
    ],
    ids=str,
)
def test_a_rule_that_matches_nothing_names_what_is_close(argument, rule, close):
    shown = "Conv3d" if isinstance(rule, type) else repr(rule)
    options = {"pruning_ratio": {rule: 0.5}} if argument == "pruning_ratio" else {argument: ["conv1", rule]}
    with pytest.raises(ValueError, match=rf"(?s)rule of {argument}.*{re.escape(shown)}.*{re.escape(close)}"):
        make_plan(Resnet(), structure_of("resnet"), Request(**{"pruning_ratio": 0.1} | options))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"only": ["conv1", "head"]}, "'head' of only .*: head makes outputs of the network"),
        ({"pruning_ratio": {"conv1": 0.5, "conv2": 0.5}}, "'conv2' of pruning_ratio .*: conv2 is coupled"),
        ({"pruning_ratio": {"conv1": 0.5, "stem": 0.5}, "ignore": ["stem"]}, "'stem' of pruning.*: stem is ignored by"),
        ({"ignore": ["bn1"]}, r"'bn1' of ignore .*: bn1 makes no channels itself\.$"),
        ({"only": ["conv1", nn.BatchNorm2d]}, "BatchNorm2d of only .*: stem_norm, bn1, bn2 makes no channels itself"),
    ],
)
def test_a_rule_that_changes_nothing_is_told_with_the_reason(options, expected):
    request = Request(**{"pruning_ratio": 0.1} | options)
    (message,) = idle_rules(make("resnet")[0], structure_of("resnet"), request)
    assert re.search(expected, message), message


def test_a_rule_for_a_container_is_told_how_to_mean_its_layers():
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.ReLU()), nn.Linear(8, 3))
    structure = analyse(model, torch.randn(2, 6))
    (message,) = idle_rules(model, structure, Request(0.1, ignore=["0"]))
    assert message.endswith("0 makes no channels itself ('0.*' names what is inside).")
    assert idle_rules(model, structure, Request(0.1, ignore=["0.*"])) == []


@pytest.mark.parametrize("ignore", [["head"], ["conv2"], ["stem*"], [nn.Linear], ["*"]])
def test_what_stays_anyway_may_be_ignored(ignore):
    assert idle_rules(make("resnet")[0], structure_of("resnet"), Request(0.1, ignore=ignore)) == []


@pytest.mark.parametrize("name", NETWORKS)
def test_every_group_is_named_by_its_own_name(name):
    groups: list[ChannelGroup] = list(structure_of(name).groups)
    for group in groups:
        assert left(name, only=[group.name]) == [group.name]
