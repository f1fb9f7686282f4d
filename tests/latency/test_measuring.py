"""Measuring, by a clock that the test sets."""

from __future__ import annotations

import math
import random

import pytest
import torch
from networks import assert_untouched, snapshot
from torch import Tensor, nn

import lightning_coreset.latency.measure as measure_module
from lightning_coreset import LatencyTable, LayerShape, measure_latency, plan_pruning
from lightning_coreset.latency import compared, timing, whole
from lightning_coreset.structure import Example


class Clock:
    """Goes on by what layers take, and now and then by more."""

    def __init__(self) -> None:
        self.time = 0.0
        self.random = random.Random(0)

    def __call__(self) -> float:
        self.time += 1e-9
        return self.time

    def work(self, seconds: float) -> None:
        self.time += seconds * (5 if self.random.random() < 0.3 else 1)  # other load on the machine


CLOCK = Clock()


def expected(reads: int, makes: int) -> float:
    return 1e-4 * math.ceil(makes / 8) * math.ceil(reads / 8)


class Timed(nn.Linear):
    """A Linear that takes time by the clock."""

    def forward(self, x: Tensor) -> Tensor:
        CLOCK.work(expected(self.in_features, self.out_features))
        return super().forward(x)


class Slow(nn.Module):
    """Takes time whatever it is given."""

    def forward(self, x: Tensor) -> Tensor:
        CLOCK.work(3e-3)
        return x.relu()


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(timing, "now", CLOCK)
    monkeypatch.setattr(whole, "now", CLOCK)
    monkeypatch.setattr(measure_module, "_KNOWN", {})
    return CLOCK


def network() -> nn.Sequential:
    return nn.Sequential(Timed(16, 64), Slow(), Timed(64, 64), nn.ReLU(), Timed(64, 8))


def test_the_fastest_times_are_found_though_the_machine_is_disturbed():
    table = measure_latency(network(), torch.randn(4, 16), seconds=9.0, verbose=False)

    curves = dict(zip((call.layer for call in table.calls), table.curves, strict=True))
    assert curves["0"].inputs == (16,)  # the network's own
    assert curves["2"].inputs == curves["2"].outputs == (8, 16, 24, 32, 40, 48, 56, 64)
    assert curves["4"].outputs == (8,)
    for curve in curves.values():
        for reads in curve.inputs:
            for makes in curve.outputs:
                assert curve.at(reads, makes) == pytest.approx(expected(reads, makes), abs=1e-8)
    assert table.constant == pytest.approx(3e-3, abs=1e-7)
    assert table.whole == pytest.approx(3e-3 + expected(16, 64) + expected(64, 64) + expected(64, 8), abs=1e-7)


def test_the_network_is_as_before():
    model, x = network().train(), torch.randn(4, 16)
    before, random = snapshot(model), torch.get_rng_state()

    measure_latency(model, x, seconds=0.5, verbose=False)

    assert_untouched(model, before)
    assert model.training
    assert torch.equal(torch.get_rng_state(), random)


def test_equal_layers_are_measured_once_and_remembered(monkeypatch):
    model, x = nn.Sequential(*(Timed(16, 16) for _ in range(4))), torch.randn(4, 16)
    timed = []
    monkeypatch.setattr(
        measure_module, "fastest", lambda makers, *_, **__: timed.append(len(makers)) or [1.0] * len(makers)
    )

    plan_pruning(model, x, 0.0, unit="latency", verbose=False)
    plan_pruning(model, x, 0.0, unit="latency", verbose=False)

    assert timed == [8 + 8 * 8 + 8]  # the first, the two between, the last


def test_large_networks_get_a_coarser_grid():
    def points(seconds: float) -> int:
        return sum(
            len(curve.seconds)
            for curve in measure_latency(network(), torch.randn(4, 16), seconds=seconds, verbose=False).curves
        )

    assert points(0.05) < points(5.0)


def test_batch_size_repeats_or_cuts_the_samples():
    table = measure_latency(network(), torch.randn(3, 16), batch_size=8, seconds=0.1, verbose=False)

    assert {call.input_shape[0] for call in table.calls} == {8}


def test_two_networks_are_compared_in_turns():
    small = nn.Sequential(Timed(16, 32), Slow(), Timed(32, 8))

    before, after = compared(network(), small, Example.of(torch.randn(4, 16)))

    assert before == pytest.approx(3e-3 + expected(16, 64) + expected(64, 64) + expected(64, 8), abs=1e-6)
    assert after == pytest.approx(3e-3 + expected(16, 32) + expected(32, 8), abs=1e-6)


def test_a_file_holds_all(tmp_path):
    table = measure_latency(network(), torch.randn(4, 16), seconds=0.1, verbose=False)
    table.save(tmp_path / "table.json")

    assert LatencyTable.load(tmp_path / "table.json") == table


@pytest.mark.parametrize("content", ["", "{}", '{"format": 2}', '{"format": 1, "calls": [], "curves": [1]}', "[]"])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "table.json").write_text(content)

    with pytest.raises(ValueError, match="to hold a LatencyTable but cannot read it"):
        LatencyTable.load(tmp_path / "table.json")


def test_lookup_tells_the_times_of_layers():
    model = network()
    table = measure_latency(model, torch.randn(4, 16), seconds=1.0, verbose=False)

    assert table.lookup(LayerShape("2", "Timed", 32, 16, (4, 32), model[2])) == pytest.approx(
        expected(32, 16), abs=1e-8
    )
    with pytest.raises(ValueError, match="Expected a layer of the table but got '2' with inputs of shape"):
        table.lookup(LayerShape("2", "Timed", 32, 16, (5, 32), model[2]))


@pytest.mark.parametrize("options", [{"seconds": 0}, {"seconds": "1"}, {"batch_size": 0}, {"batch_size": 1.5}])
def test_bad_arguments(options):
    with pytest.raises(ValueError, match=f"Expected {next(iter(options))} to be a positive"):
        measure_latency(network(), torch.randn(4, 16), **options)


def test_a_network_without_known_layers_is_refused():
    with pytest.raises(ValueError, match=r"layers whose time can be told .* but LSTM calls none"):
        measure_latency(nn.LSTM(4, 4), torch.randn(2, 3, 4), verbose=False)


def test_a_bar_is_shown_unless_told_otherwise(capfd):
    pytest.importorskip("tqdm")
    measure_latency(network(), torch.randn(4, 16), seconds=0.1)
    assert "Measuring the latency of layers" in capfd.readouterr().err
    measure_latency(network(), torch.randn(4, 16), seconds=0.1, verbose=False)
    assert capfd.readouterr().err == ""
