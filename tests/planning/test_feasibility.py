"""What cannot be had is refused before anything is done, with what holds it and the ways out."""

from __future__ import annotations

import re

import pytest
import torch
from networks import NETWORKS, make, structure_of
from torch import nn

from lightning_coreset.methods import Magnitude, Sensitivity
from lightning_coreset.planning import (
    PruningProblem,
    Request,
    Unit,
    check_reachable,
    final_sizes,
    make_plan,
    measure,
    why_nothing_goes,
)
from lightning_coreset.structure import analyse
from lightning_coreset.surgery import apply_changes

UNITS: tuple[Unit, ...] = ("params", "macs", "channels")


def most_of(name: str, **options: object) -> tuple[float, float]:
    """The most that can go, and the largest step, from the sizes of the parts."""
    survey = PruningProblem.of(make(name)[0], structure_of(name), Request(0.5, **options))
    unit, whole = survey.request.unit, getattr(survey.original, survey.request.unit)
    sizes = {ladder.name: ladder.sizes[0] for ladder in survey.allowed}
    steps = [
        survey.cost_model.saved(ladder.name, sizes[ladder.name] - ladder.longest_step, sizes, unit)
        for ladder in survey.allowed
    ]
    return survey.gone(survey.smallest()), max(steps) / whole


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {}),
        ("vgg", {"round_to": 4}),
        ("vgg", {"max_layer_ratio": 0.5}),
        ("lenet", {"min_channels": 3}),
        ("resnet", {}),
        ("resnet", {"include_residual": True, "ignore": ["stem"]}),
        ("attention", {"only": ["[qkv]"]}),
    ],
    ids=str,
)
def test_more_than_can_go_by_more_than_a_step_is_refused(name, options, unit):
    model, structure = make(name)[0], structure_of(name)
    most, step = most_of(name, unit=unit, **options)
    allowed = Request(min(most + 0.9 * step, 0.999), unit=unit, **options)
    check_reachable(model, structure, allowed)
    assert final_sizes(model, structure, allowed) == PruningProblem.of(model, structure, allowed).smallest()
    refused = Request(min(most + 1.1 * step, 0.9999), unit=unit, **options)
    if refused.target > most + step:
        with pytest.raises(ValueError, match=f"Expected pruning_ratio to be at most {most:.4f} "):
            make_plan(model, structure, refused)
        plan = make_plan(model, structure, refused, strict=False)
        assert plan.requested == refused.target
        assert plan.reached == pytest.approx(most, abs=1e-4)
        make_plan(model, structure, refused, sizes={})


def test_what_holds_the_rest_and_the_ways_out_are_named():
    model, structure = make("resnet")[0], structure_of("resnet")
    request = Request(0.9, ignore=["stem"], max_layer_ratio=0.75, min_channels=1)
    with pytest.raises(ValueError, match="at most") as caught:
        check_reachable(model, structure, request)
    text = str(caught.value)
    assert "but got 0.9" in text
    assert "of the original params stay" in text
    lines = text.splitlines()
    assert re.fullmatch(r"  conv2 \(\d+\.\d%\), which is coupled with other layers by a residual addition .*", lines[1])
    assert any(re.fullmatch(r"  conv1 \(\d+\.\d%\), which is down to 2 channels", line) for line in lines)
    assert any("is ignored by 'stem'" in line for line in lines) or len(lines) == 6
    for way, other in [
        ("include_residual=True", {"include_residual": True}),
        ("ignore=()", {"ignore": ()}),
        ("max_layer_ratio=1.0", {"max_layer_ratio": 1.0}),
    ]:
        most, _ = most_of("resnet", **{"ignore": ["stem"], "max_layer_ratio": 0.75} | other)
        assert f"{way} (up to {most:.4f})" in lines[-1]
    assert "round_to" not in text
    assert "only" not in lines[-1]


def test_where_no_limit_holds_there_is_no_way_out():
    model = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 20))
    structure = analyse(model, torch.randn(1, 20))
    with pytest.raises(ValueError, match=r"2 \(.*\), which makes outputs of the network(.|\n)*Ask for less\.$"):
        check_reachable(model, structure, Request(0.999))


def test_products_of_activations_are_named():
    model, structure = make("attention")[0], structure_of("attention")
    with pytest.raises(ValueError, match=r"products of activations \(\d+\.\d%\)"):
        check_reachable(model, structure, Request(0.99, unit="macs", max_layer_ratio=0.5))


@pytest.mark.parametrize("options", [{"max_layer_ratio": 0.5}, {"min_channels": 6}, {"round_to": 5}])
def test_a_rule_that_a_limit_contradicts_is_refused(options):
    model, structure = make("mlp")[0], structure_of("mlp")
    check_reachable(model, structure, Request({"0": 0.4, "2": 0.4}, **options))
    (limit,) = (f"{name}={value}" for name, value in options.items())
    smallest = PruningProblem.of(model, structure, Request(0.1, **options)).smallest()["0"]
    if "round_to" in options:  # within one multiple of what is asked
        check_reachable(model, structure, Request({"0": 0.9}, **options))
    else:
        with pytest.raises(ValueError, match=f"group '0' but got 0.9: {limit} leaves it {smallest} of 16 channels"):
            check_reachable(model, structure, Request({"0": 0.9}, **options))


def test_a_layer_too_small_for_a_multiple_may_have_a_rule():
    model, structure = make("vgg")[0], structure_of("vgg")  # 6, 8 and 10 channels
    plan = make_plan(model, structure, Request({"*": 0.5}, round_to=8))
    assert [group.channels_after for group in plan.groups] == [6, 8, 8]


def test_against_the_original():
    """What is gone already counts."""
    model, x = make("vgg")
    request = Request(0.6, method=Magnitude(), max_layer_ratio=0.5)
    original = measure(model, analyse(model, x), request)
    apply_changes(model, make_plan(model, analyse(model, x), request, original=original).changes)
    structure = analyse(model, x)
    check_reachable(model, structure, Request(0.6, max_layer_ratio=0.5), original=original)
    with pytest.raises(ValueError, match=r"at most 0\.71"):
        check_reachable(model, structure, Request(0.85, max_layer_ratio=0.5), original=original)


def test_methods_that_choose_sizes_ask_for_no_ratio():
    check_reachable(make("mlp")[0], structure_of("mlp"), Request(0.999, method=Sensitivity(epsilon=1.0)))


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Request(0.001), r"0.10% of 355 params is 0.4, and the smallest step, one channel of 0, is 19\."),
        (
            Request(0.02, unit="channels"),
            r"2.00% of 28 channels is 0.6, and the smallest step, one channel of 0, is 1\.",
        ),
        (Request(0.05, round_to=8), r"5.00% of 355 params is 17.8, and the smallest step, round_to=8 of 2, is 80\."),
        (Request({"*": 0.01}), r"1.53% of 355 params is 5.4"),
        (Request(0.05, min_channels=16), r"no group can become smaller with min_channels=16\."),
    ],
    ids=str,
)
def test_why_nothing_goes(request_, expected):
    model, structure = make("mlp")[0], structure_of("mlp")
    message = why_nothing_goes(model, structure, request_)
    assert message.startswith("No channel is removed: ")
    assert re.search(expected, message), message


@pytest.mark.parametrize("name", NETWORKS)
def test_zero_is_always_reachable(name):
    model, structure = make(name)[0], structure_of(name)
    for ratio in (0.0, {"*": 0.0}):
        assert (
            make_plan(model, structure, Request(ratio, max_layer_ratio=0.01, include_residual=True)).channels_removed
            == 0
        )


def test_a_model_without_multiply_accumulates():
    """Of nothing, nothing can go."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    structure = analyse(model, torch.randn(1, 4))
    free = type(structure)(structure.groups, structure.refused, {})
    with pytest.raises(ValueError, match=r"at most 0\.0000 for this model"):
        make_plan(model, free, Request(0.5, unit="macs"))
