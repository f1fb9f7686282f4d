"""Ten events in a row, in one process: where they end, and that nothing grows from one to the next."""

from __future__ import annotations

import copy
import gc
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO
from zoo.oracle import build
from zoo.running import call, results

from lightning_coreset import prune
from lightning_coreset.methods import Importance
from lightning_coreset.planning import Request, make_plan, measure_original
from lightning_coreset.structure import ChannelGroup, analyse
from lightning_coreset.surgery import apply_changes

NETWORKS = ("classic/resnet_option_b", "hf/vit", "hf/llama")
EVENTS, RATIO = 10, 0.5


def made(name: str) -> tuple[nn.Module, object]:
    if name.startswith("hf/"):
        pytest.importorskip("transformers")
    return build(ZOO[name]).eval(), ZOO[name].inputs(torch.Generator().manual_seed(0))


def constants(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
    """What each channel has of biases and norms: no other channel's removal changes that."""
    score = torch.zeros(group.size, dtype=torch.float64)
    for member in group.by_role("channelwise"):
        if tensors[member.name].dim() == 1:
            score += member.by_class(tensors[member.name].double()).abs().sum(1)
    return score


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_ten_events_end_where_one_does(name):
    """By scores that do not change when other channels go, the same channels stay; sizes are the same by any."""
    many, inputs = made(name)
    generator = torch.Generator().manual_seed(0)
    for parameter in many.parameters():
        if parameter.dim() == 1:  # no two are alike
            parameter.data += torch.randn(parameter.shape, generator=generator)
    one = copy.deepcopy(many)
    method = Importance(constants)
    plan = make_plan(one, analyse(one, inputs), Request(RATIO, method=method, include_residual=True))
    apply_changes(one, plan.changes, plan.attributes)
    for event in range(1, EVENTS + 1):
        structure = analyse(many, inputs)
        request = Request(RATIO * event / EVENTS, method=method, include_residual=True)
        original = measure_original(many, structure, request)
        plan = make_plan(many, structure, request, original=original)
        apply_changes(many, plan.changes, plan.attributes)
    shapes = [{name: tuple(p.shape) for name, p in model.named_parameters()} for model in (many, one)]
    assert shapes[0] == shapes[1]
    if name == "hf/llama":  # without biases
        return
    for own, other in zip(many.parameters(), one.parameters(), strict=True):
        assert torch.equal(own, other)
    with torch.no_grad():
        found, expected = (results(call(model, inputs)) for model in (many, one))
    assert all(map(torch.equal, found, expected))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_no_event_leaves_anything_behind(name):
    """Neither tensors nor other objects: with the self-check, and all that is recorded for checkpoints."""
    model, inputs = made(name)
    tensors, objects = [], []
    for _ in range(EVENTS):
        prune(model, inputs, 0.06, include_residual=True)
        gc.collect()
        held = gc.get_objects()
        tensors.append(sum(issubclass(type(one), Tensor) for one in held))  # isinstance would follow dead proxies
        objects.append(len(held))
        del held
    assert len(set(tensors[1:])) == 1, tensors
    assert max(objects[2:]) <= 1.01 * objects[1], objects


@pytest.mark.slow
def test_a_trial_is_let_go_of_without_a_garbage_collection():
    """Large networks would else be there several times until one comes. Only a trial is in double precision."""
    model, inputs = made("hf/vit")
    prune(model, inputs, 0.06, include_residual=True)
    gc.collect()
    before = _numbers_of_double_precision()
    gc.disable()
    try:
        prune(model, inputs, 0.06, include_residual=True)
        left = _numbers_of_double_precision() - before
    finally:
        gc.enable()
    assert left < 0.1 * sum(parameter.numel() for parameter in model.parameters())


def _numbers_of_double_precision() -> int:
    held = [one for one in gc.get_objects() if issubclass(type(one), Tensor) and one.dtype == torch.float64]
    return sum(one.numel() for one in held)
