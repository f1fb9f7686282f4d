"""A pruned model goes on without a record of the callback's events: ratios count from what its metadata says."""

from __future__ import annotations

import copy

import pytest
import torch
from breadth import thinned
from fitting import Classifier, convnet, count_params, make_loader, make_trainer, mlp
from torch import nn

from lightning_coreset import CoresetPruningCallback, make_resizable
from lightning_coreset.planning import Request, measure, measure_original
from lightning_coreset.structure import analyse
from lightning_coreset.surgery import remove_channels

SHAPES = {"mlp": (8,), "convnet": (1, 6, 6)}


def build(name):
    torch.manual_seed(0)
    return make_resizable(Classifier(mlp(8, 32, 24, 3) if name == "mlp" else convnet()))


def pruning(ratio, **options):
    return CoresetPruningCallback(ratio, verbose=False, self_check=False, eval_batches=0, **options)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize(
    ("name", "unit", "order"),
    thinned(
        [
            ("convnet", "params", "bottom_up"),
            ("mlp", "params", "together"),
            ("convnet", "macs", "together"),
            ("mlp", "channels", "together"),
        ],
        4,
    ),
)
def test_a_run_in_between_without_the_callback(tmp_path, name, unit, order):
    loader = make_loader(*SHAPES[name])
    first = make_trainer(pruning(0.4, schedule={1: 0.4}, unit=unit), max_epochs=2)
    first.fit(build(name), loader)
    first.save_checkpoint(tmp_path / "pruned.ckpt")
    between = make_trainer(max_epochs=3)
    between.fit(build(name), loader, ckpt_path=tmp_path / "pruned.ckpt")
    between.save_checkpoint(tmp_path / "between.ckpt")
    module, callback = build(name), pruning(0.7, schedule={1: 0.2, 4: 0.7}, unit=unit, order=order)

    make_trainer(callback, max_epochs=5).fit(module, loader, ckpt_path=tmp_path / "between.ckpt")

    whole = count_params(build(name))
    assert callback.history[-1].params_original == whole
    assert (callback.plans[0].channels_removed == 0) == (order == "together")  # more than that is gone
    assert callback.plans[-1].reached == pytest.approx(0.7, abs=0.05)
    if unit == "params":
        assert 1 - count_params(module) / whole == pytest.approx(0.7, abs=0.05)


@pytest.mark.slow
def test_a_new_run_counts_from_the_model_as_it_is():
    loader, module = make_loader(8), build("mlp")
    make_trainer(pruning(0.5, schedule={1: 0.5}), max_epochs=2).fit(module, loader)
    before, callback = count_params(module), pruning(0.5, schedule={1: 0.5})

    make_trainer(callback, max_epochs=2).fit(module, loader)

    assert callback.history[0].params_original == before
    assert count_params(module) == pytest.approx(before / 2, rel=0.1)


@pytest.mark.parametrize("name", SHAPES)
def test_the_original_cost_is_that_before_surgery(name):
    model, example = build(name).net, torch.randn(2, *SHAPES[name])
    request = Request(0.5, "params")
    before = measure(model, analyse(model, example), request)
    for group in analyse(model, example).groups:
        remove_channels(model, group, range(group.size // 3))
    pruned = analyse(model, example)

    assert measure(model, pruned, request).params < before.params
    assert measure_original(model, pruned, request) == before
    fresh = copy.deepcopy(build(name).net)
    assert measure_original(fresh, analyse(fresh, example), request) == before


def test_groups_side_by_side_in_one_dimension():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.last = nn.Linear(4, 9), nn.Linear(4, 6), nn.Linear(15, 2)

        def forward(self, x):
            return self.last(torch.cat([self.one(x), self.two(x)], 1).relu())

    model, example, request = Joined(), torch.randn(2, 4), Request(0.5, "params")
    before = measure(model, analyse(model, example), request)
    remove_channels(model, analyse(model, example).groups[1], [0, 3])

    assert measure_original(model, analyse(model, example), request) == before
