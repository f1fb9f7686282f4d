"""`sensitivity_scan`: every group alone, the right numbers, and the model as it was."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from breadth import crossed
from networks import NETWORKS, assert_same_random, assert_untouched, make, random_states, snapshot
from torch import Tensor, nn

from lightning_coreset import Reconstruction, ScanRecord, Sensitivity, prune, sensitivity_scan
from lightning_coreset.surgery import original_shapes


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def output_sum(x: Tensor) -> Callable[[nn.Module], float]:
    """A value that every weight on the way has a say in."""

    @torch.no_grad()
    def evaluate(model: nn.Module) -> float:
        return float(model.eval()(x).double().square().sum())

    return evaluate


class Setting:
    """A model in training mode with gradients, and all there is of it to come back."""

    def __init__(self, name: str) -> None:
        self.model, self.x = make(name)
        self.model.train()
        next(self.model.modules()).eval()
        self.model(self.x).square().sum().backward()
        for own in self.model.children():
            own.training = not own.training
        self.objects = [*self.model.parameters(), *self.model.buffers()]
        self.grads = [None if one.grad is None else one.grad.clone() for one in self.objects]
        self.before, self.random, self.numpy = snapshot(self.model), random_states(), np.random.get_state()[1].copy()

    def check(self) -> None:
        assert_untouched(self.model, self.before)
        assert_same_random(self.random)
        assert np.array_equal(np.random.get_state()[1], self.numpy)
        for one, other in zip((*self.model.parameters(), *self.model.buffers()), self.objects, strict=True):
            assert one is other
        for tensor, grad in zip(self.objects, self.grads, strict=True):
            assert (tensor.grad is None) == (grad is None)
            if grad is not None:
                torch.testing.assert_close(tensor.grad, grad, rtol=0, atol=0)
        assert original_shapes(self.model).shapes == {
            name: tuple(tensor.shape) for name, tensor in self.model.state_dict(keep_vars=True).items()
        }
        assert not any("coreset" in name for module in self.model.modules() for name in vars(module))


# ---- what comes back


@pytest.mark.parametrize("name", NETWORKS)
def test_values_are_those_of_the_network_pruned_by_hand(name):
    """Each record is what ``prune`` with a rule for this one group comes to."""
    setting = Setting(name)
    evaluate = output_sum(setting.x)
    scan = sensitivity_scan(
        setting.model, setting.x, evaluate, ratios=(0.5,), method="magnitude", include_residual=True, self_check=False
    )
    assert scan
    setting.check()
    for record in scan:
        model = copy.deepcopy(setting.model)
        rule = {record.group.partition("#")[0]: 0.5}
        plan = prune(model, setting.x, rule, method="magnitude", include_residual=True, self_check=False)
        if [group.name for group in plan.groups] != [record.group]:
            continue  # the rule names a second group of the same layer as well
        assert record.value == pytest.approx(evaluate(model), rel=1e-12)
        assert record.params_removed == plan.params_before - plan.params_after
        assert record.macs_removed == plan.macs_before - plan.macs_after
        assert (record.channels_before, record.channels_after) == (
            plan.groups[0].channels_before,
            plan.groups[0].channels_after,
        )


def test_records_by_hand():
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    scan = sensitivity_scan(model, torch.randn(1, 3), parameters, ratios=(0.75, 0.25), method="magnitude")
    whole = 3 * 8 + 8 + 8 * 4 + 4 + 4 * 2 + 2
    first, second = 3 + 1 + 4, 8 + 1 + 2  # what one channel of each group takes along
    macs = (3 + 4, 8 + 2)
    rows = [("0", 0.75, 8, 2, first, macs[0]), ("0", 0.25, 8, 6, first, macs[0])]
    rows += [("2", 0.75, 4, 1, second, macs[1]), ("2", 0.25, 4, 3, second, macs[1])]
    assert list(scan) == [
        ScanRecord(
            name,
            ratio,
            1 - after / size,
            size,
            after,
            after / size,
            (size - after) * params,
            (size - after) * mac,
            whole - (size - after) * params,
            whole,
        )
        for name, ratio, size, after, params, mac in rows
    ]


def test_reconstruction_knows_the_layers_below():
    """A group scanned alone is reconstructed as in a plan of the whole network, from the law of its inputs."""
    model, x = make("lenet")
    *_, record = sensitivity_scan(model, x, output_sum(x), ratios=(0.5,), self_check=False)
    by_rule = copy.deepcopy(model)
    below = {"0": 0.0, "3": 0.0, record.group: 0.5}
    prune(by_rule, x, below, method=Reconstruction(), self_check=False)
    assert record.value == pytest.approx(output_sum(x)(by_rule), rel=1e-9)


def test_records_are_plain():
    model, x = make("vgg")
    scan = sensitivity_scan(model, x, lambda network: torch.tensor(parameters(network)), ratios=(0.5,))
    rows = [asdict(record) for record in scan]
    assert json.loads(json.dumps(rows)) == rows
    assert {type(value) for row in rows for value in row.values()} == {str, int, float}


@pytest.mark.parametrize(
    "options",
    [{"ratios": (0.5, 0.9, 0.1)}, {"ratios": [0.3], "only": ["3"]}, {"ignore": ["0"], "method": "sensitivity"}],
)
def test_order_and_rules(options):
    model, x = make("vgg")
    names = options.get("only") or [name for name in ("0", "3", "6") if name not in options.get("ignore", ())]
    scan = sensitivity_scan(model, x, parameters, **options)
    ratios = options.get("ratios", (0.25, 0.5, 0.75, 0.9))
    assert [(record.group, record.requested) for record in scan] == [(name, one) for name in names for one in ratios]


def test_table():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2))
    scan = sensitivity_scan(model, torch.randn(1, 8), parameters, ratios=(0.125, 0.5))
    assert str(scan).splitlines() == [
        "group  channels  -12.5%  -50%",
        "-----------------------------",
        "0            16     332   206",
        "2            12     355   260",
        "whole network: 374",
    ]
    assert str(type(scan)()) == "Nothing was scanned."


def test_two_ratios_that_are_one_size_are_evaluated_once():
    calls = []
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))

    def evaluate(network: nn.Module) -> float:
        calls.append(network[0].out_features)
        return 0.0

    scan = sensitivity_scan(
        model, torch.randn(1, 3), evaluate, ratios=(0.7, 0.75, 0.99), method="random", self_check=False
    )
    assert calls == [4, 1]
    assert [record.requested for record in scan] == [0.7, 0.75, 0.99]
    assert {record.channels_after for record in scan} == {1}


def test_residual_channels_are_scanned_when_asked():
    model, x = make("resnet")
    inner = {record.group for record in sensitivity_scan(model, x, parameters, ratios=(0.5,))}
    both = {record.group for record in sensitivity_scan(model, x, parameters, ratios=(0.5,), include_residual=True)}
    assert inner < both


def test_seed_of_the_choice():
    model, x = make("mlp")
    values = [
        [record.value for record in sensitivity_scan(model, x, output_sum(x), method="random", seed=seed)]
        for seed in (0, 0, 1)
    ]
    assert values[0] == values[1] != values[2]


# ---- the model stays what it is, whatever evaluate does


def trains(model: nn.Module) -> float:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 2, 8, 8, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
    return 1.0


def evaluates(model: nn.Module) -> float:
    model.eval()
    return 1.0


def freezes(model: nn.Module) -> float:
    model.requires_grad_(False)
    return 1.0


def drops_gradients(model: nn.Module) -> float:
    model.zero_grad()
    return 1.0


def casts(model: nn.Module) -> float:
    model.to(torch.float32).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return 1.0


def replaces_buffers(model: nn.Module) -> float:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.zeros(module.num_features)
            module.num_batches_tracked += 3  # type: ignore[operator]
    return 1.0


def draws(model: nn.Module) -> float:
    return float(torch.rand(3).sum()) + random.random() + float(np.random.rand())


def prunes_on(model: nn.Module) -> float:
    prune(model, torch.randn(2, 2, 8, 8, dtype=torch.float64), 0.3, self_check=False)
    return 1.0


@pytest.mark.parametrize(
    ("context", "evaluate"),
    crossed(
        [torch.enable_grad, torch.no_grad, torch.inference_mode],
        [trains, evaluates, freezes, prunes_on, drops_gradients, casts, replaces_buffers, draws],
    ),
)
def test_the_model_comes_back(evaluate, context):
    setting = Setting("vgg")
    if evaluate in (trains, prunes_on) and context is not torch.enable_grad:
        pytest.skip("nothing is trained or traced there")
    with context():
        sensitivity_scan(setting.model, setting.x, evaluate, ratios=(0.5, 0.75), method="magnitude")
    setting.check()
    setting.model.train()(setting.x).sum().backward()


@pytest.mark.parametrize("at", [0, 1, 4])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_model_comes_back_from_an_error(at, error):
    setting = Setting("vgg")
    calls: list[int] = []

    def evaluate(model: nn.Module) -> float:
        trains(model)
        calls.append(len(calls))
        if len(calls) > at:
            raise error("in the middle")
        return 0.0

    with pytest.raises(error, match="in the middle"):
        sensitivity_scan(setting.model, setting.x, evaluate, ratios=(0.5, 0.75), method="magnitude")
    assert len(calls) == at + 1
    setting.check()


def test_a_model_that_was_pruned_before_keeps_its_original_shapes():
    model, x = make("vgg")
    whole = original_shapes(model).shapes
    prune(model, x, 0.3)
    sensitivity_scan(model, x, output_sum(x), ratios=(0.5,))
    assert original_shapes(model).shapes == whole


def test_every_call_starts_from_the_same_random_state():
    model, x = make("mlp")
    seen = []
    sensitivity_scan(model, x, lambda _: seen.append(draws(model)) or 0.0, ratios=(0.5,), method="random")
    assert len(seen) == 3
    assert len(set(seen)) == 1


# ---- errors come before anything


class HardCoded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 10), nn.Linear(10, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu().view(-1, 8))


def test_groups_that_cannot_be_removed_are_left_out_with_a_warning():
    model = HardCoded()
    with pytest.warns(UserWarning, match=r"(?s)not pruned.*  b: ") as caught:
        scan = sensitivity_scan(model, torch.randn(2, 6), parameters, ratios=(0.5,))
    assert [record.group for record in scan] == ["a"]
    assert caught[0].filename == __file__


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no function": ({"evaluate": 3.0}, "evaluate to be a function"),
    "ratio alone": ({"ratios": 0.5}, "a sequence of numbers"),
    "no ratio": ({"ratios": ()}, "a sequence of numbers"),
    "ratio of zero": ({"ratios": (0.5, 0.0)}, r"\(0, 1\).*got 0.0"),
    "ratio of one": ({"ratios": (1,)}, r"\(0, 1\).*got 1"),
    "ratio in words": ({"ratios": ("half",)}, r"\(0, 1\).*got 'half'"),
    "truth": ({"ratios": (True,)}, r"\(0, 1\).*got True"),
    "not a number": ({"ratios": (float("nan"),)}, r"\(0, 1\).*got nan"),
    "method": ({"method": "magic"}, "method"),
    "sizes by the error": ({"method": Sensitivity(epsilon=0.5)}, "epsilon"),
    "pattern": ({"only": ["nowhere"]}, "nowhere"),
    "pattern alone": ({"ignore": "0"}, "ignore"),
    "nothing left": ({"ignore": ["*"]}, "channels that can be pruned"),
    "inputs": ({"example_inputs": "picture"}, "example_inputs"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_arguments_leave_the_model_alone(bad):
    options, message = BAD[bad]
    setting = Setting("vgg")
    calls: list[nn.Module] = []
    good = {"example_inputs": setting.x, "evaluate": lambda model: calls.append(model) or 0.0}
    with pytest.raises(ValueError, match=message):
        sensitivity_scan(setting.model, **{**good, **options})
    assert not calls
    setting.check()


@pytest.mark.parametrize("value", [None, "good", torch.zeros(2), [0.5]])
def test_a_value_that_is_no_number_is_refused_before_pruning(value):
    setting = Setting("vgg")
    widths = []

    def evaluate(model: nn.Module) -> Any:
        widths.append(model[0].out_channels)
        return value

    with pytest.raises(ValueError, match="Expected evaluate to return a number"):
        sensitivity_scan(setting.model, setting.x, evaluate)
    assert widths == [6]
    setting.check()
