"""Plans that count seconds, by functions that say how long a layer takes."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from networks import assert_untouched, snapshot
from torch import Tensor, nn

import lightning_coreset.pruning as pruning_module
from lightning_coreset import LayerShape, PruningPlan, measure_latency, plan_pruning, prune
from lightning_coreset.latency import Environment
from lightning_coreset.latency.table import LatencyTable

X = torch.randn(4, 16)
plan_of = partial(plan_pruning, unit="latency", verbose=False)


def stairs(shape: LayerShape, block: int = 8) -> float:
    """Kernels that work on blocks of channels."""
    return 1e-3 * math.ceil(shape.in_channels / block) * math.ceil(shape.out_channels / block)


def line(shape: LayerShape) -> float:
    return 1e-6 * shape.in_channels * shape.out_channels


def network(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for reads, makes in pairwise(widths):
        layers += [nn.Linear(reads, makes), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def seconds(model: nn.Module, latency) -> float:
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return sum(
        latency(LayerShape(name, "Linear", one.in_features, one.out_features, (4, one.in_features), one))
        for name, one in layers
    )


def sizes(plan: PruningPlan) -> list[int]:
    return [group.channels_after for group in plan.groups]


@pytest.mark.parametrize("allocation", ["uniform", "error", "global"])
@pytest.mark.parametrize("ratio", [0.0, 0.2, 0.5, 0.8])
def test_the_ratio_is_met_in_seconds(allocation, ratio):
    model = network(16, 64, 96, 48, 10)
    method = "magnitude" if allocation == "global" else "reconstruction"
    whole = seconds(model, line)

    plan = prune(model, X, ratio, unit="latency", latency=line, allocation=allocation, method=method)

    assert plan.latency_original == plan.latency_before == pytest.approx(whole)
    assert plan.latency_after == pytest.approx(seconds(model, line))
    assert plan.reached == pytest.approx(1 - seconds(model, line) / whole)
    assert plan.reached == pytest.approx(ratio, abs=0.01)  # the largest channel is 1.6%
    assert plan.latency_measured is None  # the function may tell of another device
    gone = sum(group.latency_removed or 0 for group in plan.groups)
    assert gone == pytest.approx(whole - seconds(model, line))


@pytest.mark.parametrize("allocation", ["uniform", "error"])
@pytest.mark.parametrize("ratio", [0.2, 0.4, 0.6])
def test_channels_that_cost_no_time_stay(allocation, ratio):
    model = network(16, 60, 100, 44, 10)

    plan = plan_of(model, X, ratio, latency=stairs, allocation=allocation)

    assert plan.channels_removed > 0
    for group in plan.groups:
        assert group.channels_after == group.channels_before or group.channels_after % 8 == 0
    step = 1e-3 * 13 * (8 + 6)  # at most, of a block of the widest group
    assert abs(plan.reached - ratio) * plan.latency_original <= step / 2


def test_a_size_that_is_slower_than_a_larger_one_is_not_chosen():
    def odd(shape: LayerShape) -> float:
        return (1.0 if shape.out_channels % 16 == 0 else 3.0) * shape.out_channels + shape.in_channels

    plan = plan_of(network(16, 64, 10), X, 0.3, latency=odd)

    assert sizes(plan)[0] in (48, 32)


def test_groups_that_are_slow_lose_more_by_error():
    """The first two groups are alike, but for the time that their layers take."""

    def slow_first(shape: LayerShape) -> float:
        return line(shape) * (10 if shape.name in ("0", "2") else 1)

    model = network(16, 64, 16, 64, 16)
    model[4].load_state_dict(model[0].state_dict())

    plan = plan_of(model, X, 0.3, latency=slow_first, allocation="error", only=["0", "4"])
    even = plan_of(model, X, 0.3, latency=line, allocation="error", only=["0", "4"])

    kept = {group.name: group.channels_after for group in plan.groups}
    assert kept["4"] - kept["0"] > sizes(even)[1] - sizes(even)[0] + 8


def test_a_step_that_saves_nothing_does_not_hide_one_behind_it():
    """Only 16 channels are fast: errors alone would stop before that."""

    def cliff(shape: LayerShape) -> float:
        return 1.0 if shape.name != "0" or shape.out_channels > 16 else 0.1

    plan = plan_of(network(16, 64, 64, 10), X, 0.3, latency=cliff, allocation="error")

    assert sizes(plan) == [16, 64]


def test_an_unreachable_ratio_is_refused_with_the_largest():
    model = network(16, 64, 64, 10)
    before = snapshot(model)

    with pytest.raises(
        ValueError, match=r"at most 0\.6778 for this model but got 0.9: .* of the original latency stay"
    ):
        prune(model, X, 0.9, unit="latency", latency=line, min_channels=32)

    assert_untouched(model, before)


def test_limits_hold():
    plan = plan_of(network(16, 64, 96, 10), X, 0.4, latency=line, round_to=8, min_channels=24)

    assert all(size % 8 == 0 and size >= 24 for size in sizes(plan))


def test_a_flat_function_removes_nothing_and_says_so():
    with pytest.raises(ValueError, match=r"at most 0\.0000 for this model but got 0\.3"):
        plan_of(network(16, 64, 10), X, 0.3, latency=lambda shape: 1.0)


def test_less_than_a_step_is_said_in_milliseconds():
    with pytest.warns(UserWarning, match="No channel is removed: 1.00% of .* ms .* smallest step that saves time, of"):
        plan_of(network(16, 64, 10), X, 0.01, latency=partial(stairs, block=32))


def test_rules_say_the_sizes_and_seconds_are_reported():
    plan = plan_of(network(16, 64, 96, 10), X, {"0": 0.5}, latency=line)

    assert sizes(plan) == [32]
    assert plan.reached == pytest.approx(1 - plan.latency_after / plan.latency_original)


def test_a_function_sees_layers_as_they_are_called():
    seen = []

    def look(shape: LayerShape) -> float:
        seen.append(shape)
        return 1e-3 * shape.out_channels

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3, padding=1)
            self.norm = nn.BatchNorm2d(16)
            self.head = nn.Conv2d(16, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.conv(x)).relu())

    plan_of(Net(), torch.randn(2, 3, 5, 5), 0.3, latency=look)

    whole: dict[str, LayerShape] = {}
    for shape in seen:
        whole.setdefault(shape.name, shape)
    assert {name: (one.kind, one.in_channels, one.out_channels, one.input_shape) for name, one in whole.items()} == {
        "conv": ("Conv2d", 3, 16, (2, 3, 5, 5)),
        "norm": ("BatchNorm2d", 16, 16, (2, 16, 5, 5)),
        "head": ("Conv2d", 16, 4, (2, 16, 5, 5)),
    }
    assert whole["conv"].module.kernel_size == (3, 3)
    assert all(shape.input_shape[1] == shape.in_channels for shape in seen)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, None, "1", True])
def test_what_a_function_says_is_checked(value):
    model = network(16, 64, 10)
    before = snapshot(model)

    with pytest.raises(
        ValueError, match=r"Expected latency to return the seconds of a layer.* for '0' with 16 channels"
    ):
        prune(model, X, 0.3, unit="latency", latency=lambda shape: value)

    assert_untouched(model, before)


def test_a_number_in_a_tensor_will_do():
    plan = plan_of(network(16, 64, 10), X, 0.3, latency=lambda shape: torch.tensor(line(shape), dtype=torch.float64))

    assert sizes(plan) == sizes(plan_of(network(16, 64, 10), X, 0.3, latency=line))


@pytest.mark.parametrize("latency", [3, [], nn.Linear(1, 1), dict])
def test_what_is_no_latency_is_refused(latency):
    with pytest.raises(ValueError, match="Expected latency to be a LatencyTable, the path of a file with one, or"):
        plan_of(network(16, 64, 10), X, 0.3, latency=latency)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json' to hold a LatencyTable"):
        plan_of(network(16, 64, 10), X, 0.3, latency=str(tmp_path / "none.json"))


def test_latency_with_another_unit_is_refused():
    with pytest.raises(ValueError, match="Expected latency only with unit='latency', which counts it, but got unit="):
        plan_pruning(network(16, 64, 10), X, 0.3, latency=line)


# ---- tables


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    """Times of this machine, in place of which the tests put others."""
    return measure_latency(network(16, 64, 32, 10), X, seconds=0.05, verbose=False)


def told(table: LatencyTable, outside: float = 0.0) -> LatencyTable:
    """The table with the times of ``stairs``."""
    layers = [
        (call, replace(curve, seconds=tuple(_time(a, b) for a in curve.inputs for b in curve.outputs)))
        for call, curve in zip(table.calls, table.curves, strict=True)
    ]
    return replace(table, curves=tuple(curve for _, curve in layers), outside=outside)


def _time(reads: int, makes: int) -> float:
    return 1e-3 * math.ceil(reads / 8) * math.ceil(makes / 8)


def test_a_table_and_the_function_that_it_is_made_of_give_one_plan(table):
    by_table = plan_of(network(16, 64, 32, 10), X, 0.4, latency=told(table))
    by_function = plan_of(network(16, 64, 32, 10), X, 0.4, latency=stairs)
    by_lookup = plan_of(network(16, 64, 32, 10), X, 0.4, latency=told(table).lookup)

    assert sizes(by_table) == sizes(by_function) == sizes(by_lookup)
    assert by_table.latency_after == pytest.approx(by_function.latency_after)


def test_what_is_outside_of_layers_counts_and_cannot_go(table):
    whole = _time(16, 64) + _time(64, 32) + _time(32, 10)
    doubled = told(table, outside=whole)

    plan = plan_of(network(16, 64, 32, 10), X, 0.2, latency=doubled)

    assert plan.latency_original == pytest.approx(2 * whole)
    with pytest.raises(ValueError, match=r"most of them in\n  what is not measured \(50.0%\)"):
        plan_of(network(16, 64, 32, 10), X, 0.9, latency=doubled)


def test_a_table_from_a_file(table, tmp_path):
    told(table).save(tmp_path / "table.json")

    plan = plan_of(network(16, 64, 32, 10), X, 0.4, latency=str(tmp_path / "table.json"))

    assert sizes(plan) == sizes(plan_of(network(16, 64, 32, 10), X, 0.4, latency=told(table)))


def test_a_pruned_network_is_measured_and_a_doubtful_plan_is_told_of(table, monkeypatch):
    monkeypatch.setattr(pruning_module, "compared", lambda *_: (2.0, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = prune(network(16, 64, 32, 10), X, 0.48, unit="latency", latency=told(table))
    assert plan.latency_measured == (2.0, 1.0)
    assert "latency measured 2000 ms -> 1000 ms: 50.00% removed" in plan.totals()
    assert PruningPlan.from_dict(plan.to_dict()).latency_measured == (2.0, 1.0)

    with pytest.warns(UserWarning, match="of the latency as removed, but measured it is 50.0%"):
        prune(network(16, 64, 32, 10), X, 0.2, unit="latency", latency=told(table))


@pytest.mark.parametrize(
    "change", [{"device": "another"}, {"torch": "1.0"}, {"threads": 99}], ids=["device", "torch", "threads"]
)
def test_a_table_of_another_device_is_refused(table, change):
    other = replace(table, environment=replace(table.environment, **change))

    with pytest.raises(ValueError, match=f"of this device but got one with {next(iter(change))}=.*table.lookup"):
        plan_of(network(16, 64, 32, 10), X, 0.4, latency=other)


def test_a_table_of_another_network_is_refused(table):
    with pytest.raises(ValueError, match="of this network but '0' is another layer in it, or wider than measured"):
        plan_of(network(16, 80, 32, 10), X, 0.4, latency=told(table))


def test_one_table_serves_until_the_end(table):
    """Pruned a second time, by the same table."""
    model = network(16, 64, 32, 10)
    prune(model, X, 0.3, unit="latency", latency=told(table).lookup)

    plan = plan_of(model, X, 0.3, latency=told(table))

    assert plan.latency_before == pytest.approx(seconds(model, stairs))
    assert repr(table).startswith("LatencyTable(3 layers, ")


def test_an_environment_says_what_differs():
    assert (
        Environment("a", "2", 1).difference(Environment("b", "2", 2))
        == "device='b' instead of 'a', threads=2 instead of 1"
    )


def test_a_table_in_words():
    text = str(plan_of(network(16, 64, 10), X, 0.5, latency=stairs))

    assert "latency  error" in text.splitlines()[0]
    assert "latency removed: 50.00% of the original (requested 50.00%)" in text
    assert "latency 32 ms -> 16 ms, predicted" in text


def test_the_largest_ratio_is_that_of_the_fastest_sizes_not_of_the_smallest():
    def slow_when_narrow(shape: LayerShape) -> float:
        return 1e-3 * (shape.out_channels if shape.out_channels >= 16 else 100)

    model = network(16, 64, 16)

    plan = plan_of(model, X, 0.6, latency=slow_when_narrow)

    assert sizes(plan) == [16]
    assert plan.reached == pytest.approx(48 / 80)


@pytest.mark.parametrize("ratio", [0.06, 0.1, 0.14, 0.18, 0.22])
def test_channels_that_become_free_by_what_else_goes_stay(ratio):
    """Steps of the first group are of one channel or of eight, as the second is."""

    def depends(shape: LayerShape) -> float:
        blocks = shape.in_channels / 8
        return 1e-3 * {"0": 1, "2": math.ceil(blocks) if shape.out_channels > 32 else blocks, "4": blocks}[shape.name]

    plan = plan_of(network(16, 64, 64, 10), X, ratio, latency=depends)

    assert sizes(plan)[1] > 32
    assert sizes(plan)[0] % 8 == 0
    assert plan.channels_removed > 0
