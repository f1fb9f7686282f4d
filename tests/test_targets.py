"""Plans reach the ratio that was asked for, on all kinds of networks, and no request leaves a network broken."""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import NETWORKS, assert_untouched, make, snapshot, structure_of
from torch import Generator, nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import FAST, THIRD_PARTY, ZOO, Entry
from zoo.oracle import build
from zoo.running import call

from lightning_coreset import Magnitude, PruningPlan, plan_pruning, prune
from lightning_coreset.planning import PruningProblem, Request, Rule, Unit, make_plan
from lightning_coreset.structure import ChannelGroup, Example, Structure, analyse
from lightning_coreset.surgery import apply_changes

UNITS: tuple[Unit, ...] = ("params", "macs", "channels")
# Warnings of the networks: about old-style weight_norm, and about nested tensors in torch's Transformer.
SAMPLE = {
    name
    for family in ("classic/", "traps/")
    for name in random.Random(0).sample([name for name in FAST if name.startswith(family)], 12)
}
ENTRIES = [
    pytest.param(entry, id=name, marks=[] if name in SAMPLE else pytest.mark.slow) for name, entry in ZOO.items()
]


def network(entry: Entry) -> tuple[nn.Module, Any, Structure]:
    if entry.name.startswith("hf/"):
        pytest.importorskip("transformers")
    model, inputs = build(entry).eval(), entry.inputs(Generator().manual_seed(1))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        call(model, inputs)  # some networks put their own hooks in place when they first run
    return model, inputs, analyse(model, inputs)


def step_of(survey: PruningProblem) -> float:
    """The share of one channel, or of one ``round_to``, of the largest group."""
    unit, sizes = survey.request.unit, survey.original.widths
    steps = [
        survey.cost_model.saved(ladder.name, ladder.sizes[0] - ladder.longest_step, sizes, unit)
        for ladder in survey.allowed
    ]
    return max(steps) / getattr(survey.original, unit)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.filterwarnings(
    *THIRD_PARTY, "ignore:The multiply-accumulates of aten.(_fft_.2c|_cdist_forward|linalg_).*are not counted"
)
def test_the_ratio_asked_for_is_reached(entry):
    model, _, structure = network(entry)
    if not structure.groups:
        pytest.skip("nothing in it can be pruned")
    for unit in UNITS:
        for round_to in (1, 4):
            base = Request(0.5, unit=unit, method=Magnitude(), include_residual=True, round_to=round_to)
            survey = PruningProblem.of(model, structure, base)
            most = survey.gone(survey.smallest())
            for part in (0.2, 0.5, 0.8):
                request = Request(**{**vars(base), "pruning_ratio": part * most})
                plan = make_plan(model, structure, request)
                assert abs(plan.reached - plan.requested) <= step_of(survey) + 1e-9, (unit, round_to, part)
                assert sum(group.params_removed for group in plan.groups) == plan.params_before - plan.params_after
                assert sum(group.macs_removed for group in plan.groups) == plan.macs_before - plan.macs_after


# ---- multiply-accumulates


# Without networks whose layers run along tokens: the plan counts those as before the pruning.
COUNTED = (
    "lenet5 alexnet vgg_bn resnet_bottleneck resnext se_resnet densenet inception squeezenet shufflenet_v2 "
    "mobilenet_v2 efficientnet repvgg unet gan_generator cnn_1d cnn_3d swiglu_mlp"
).split()


ATTENTION = ("classic/Vit", "hf/bert", "hf/gpt2", "hf/llama", "hf/vit")


def multiply_accumulates(model: nn.Module, inputs: Any, batch: int) -> float:
    """MACs of one sample: torch counts two operations for each."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call(model.eval(), inputs)
    return counter.get_total_flops() / 2 / batch


@pytest.mark.parametrize("name", COUNTED)
def test_multiply_accumulates_are_those_of_torch(name):
    model, inputs, structure = network(ZOO[f"classic/{name}"])
    batch = Example.of(inputs).batch_size
    request = Request(0.3, unit="macs", method=Magnitude(), include_residual=True)
    plan = make_plan(model, structure, request)
    assert plan.macs_before == pytest.approx(multiply_accumulates(model, inputs, batch), abs=1)
    apply_changes(model, plan.changes, plan.attributes)
    assert plan.macs_after == pytest.approx(multiply_accumulates(model, inputs, batch), abs=1)


@pytest.mark.parametrize("name", ATTENTION)
def test_products_of_activations_cost_less_where_heads_go(name):
    model, inputs, structure = network(ZOO[name])
    request = Request(0.3, unit="channels", method=Magnitude(), include_residual=True)
    plan = make_plan(model, structure, request)
    apply_changes(model, plan.changes, plan.attributes)
    left = analyse(model, inputs).macs
    assert left[""] < structure.macs[""]
    assert plan.macs_after == pytest.approx(sum(left.values()), abs=1)


# ---- random requests

METHODS = ["reconstruction", "sensitivity", "magnitude", "random"]
TYPES: list[type[nn.Module]] = [nn.Linear, nn.Conv2d, nn.modules.conv._ConvNd, nn.BatchNorm2d, nn.ConvTranspose2d]


@st.composite
def rules(draw: st.DrawFn, names: list[str]) -> Rule:
    """A whole name, part of a name with a wildcard, or a type; some of them match nothing."""
    name = draw(st.sampled_from(names))
    cut = draw(st.integers(0, len(name)))
    pattern = st.sampled_from([name, name[:cut] + "*", "*" + name[cut:], "?" + name[1:], f"[!{name[:1]}]*", "nothing"])
    regex = st.builds(re.compile, st.sampled_from([re.escape(name), ".*" + re.escape(name[cut:]), ".*"]))
    return draw(st.one_of(pattern, pattern, regex, st.sampled_from(TYPES)))


@st.composite
def questions(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A small network, and arguments for it."""
    network = draw(st.sampled_from(sorted(NETWORKS)))
    rule = rules([name for name, _ in make(network)[0].named_modules() if name])
    ratios = st.floats(0, 0.99)
    return network, {
        "pruning_ratio": draw(st.one_of(ratios, ratios, st.dictionaries(rule, ratios, min_size=1, max_size=3))),
        "unit": draw(st.sampled_from(UNITS)),
        "method": draw(st.sampled_from(METHODS)),
        "allocation": draw(st.sampled_from(["uniform", "uniform", "error", "global"])),
        "ignore": draw(st.lists(rule, max_size=1)),
        "only": draw(st.lists(rule, max_size=2)),
        "include_residual": draw(st.booleans()),
        "round_to": draw(st.sampled_from([1, 1, 2, 3, 4])),
        "min_channels": draw(st.sampled_from([1, 1, 2, 5])),
        "max_layer_ratio": draw(st.sampled_from([1.0, 1.0, 0.8, 0.3])),
    }


@settings(max_examples=40)
@given(question=questions())
def test_a_request_is_met_or_refused(question):
    check_request(question)


@pytest.mark.slow
@settings(max_examples=500)
@given(question=questions())
def test_many_requests_are_met_or_refused(question):
    check_request(question)


def check_request(question):
    name, asked = question
    model, x = make(name)
    before = snapshot(model)
    expected, refusal = outcome(plan_pruning, model, x, asked)
    assert_untouched(model, before)
    plan, same_refusal = outcome(prune, model, x, asked)
    assert refusal == same_refusal
    if plan is None or expected is None:
        assert refusal.startswith("Expected")
        assert_untouched(model, before)
        return
    assert str(plan) == str(expected)
    assert model(x).isfinite().all()
    assert plan.params_after == sum(parameter.numel() for parameter in model.parameters())
    assert sum(group.params_removed for group in plan.groups) == plan.params_before - plan.params_after
    widths = {group.name: min(channels_per_class(group)) for group in structure_of(name).groups}
    for group in plan.groups:
        if group.channels_after < group.channels_before:
            channels = group.channels_after * widths[group.name]
            assert channels >= asked["min_channels"]
            assert group.channels_after >= group.channels_before * (1 - asked["max_layer_ratio"]) - 1e-9
            assert channels % asked["round_to"] == 0


def outcome(
    ask: Callable[..., PruningPlan], model: nn.Module, x: Any, asked: dict[str, Any]
) -> tuple[PruningPlan | None, str]:
    """The plan, or the message of the error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of rules that change nothing
        try:
            return ask(model, x, **asked, self_check=False), ""
        except ValueError as error:
            return None, str(error)


def channels_per_class(group: ChannelGroup) -> list[int]:
    makers = group.by_role("producer") or group.by_role("consumer")
    return [len(places) for member in makers for places in member.index]
