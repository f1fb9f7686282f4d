"""``unit="latency"`` in training: counted from the original, measured once, resumed with the same times."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fitting import Classifier, MemoryLogger, assert_same, convnet, make_loader, mlp
from lightning.pytorch.callbacks import ModelCheckpoint

import lightning_coreset.latency.measure as measure_module
import lightning_coreset.training.latency_count as count_module
from lightning_coreset import CoresetPruningCallback, LayerShape, measure_latency
from lightning_coreset.latency import timing

EVENTS: dict[str, Any] = {"schedule": {1: 0.2, 2: 0.4, 3: 0.6}, "verbose": False, "unit": "latency"}
EPOCHS = 5


def stairs(shape: LayerShape) -> float:
    """Blocks of four channels."""
    return 1e-3 * math.ceil(shape.in_channels / 4) * math.ceil(shape.out_channels / 4)


class Shown(Classifier):
    def __init__(self, net: Any = None) -> None:
        torch.manual_seed(0)
        super().__init__(mlp(8, 32, 24, 3) if net is None else net)
        self.example_input_array = torch.zeros(4, 8)


@pytest.fixture
def fit(make_trainer):
    def run(
        callback: pl.Callback, *others: pl.Callback, module: Any = None, resume: Path | None = None, **options: Any
    ):
        trainer = make_trainer(callback, *others, max_epochs=EPOCHS, **options)
        module = Shown() if module is None else module
        trainer.fit(module, make_loader(8), ckpt_path=resume)
        return module

    return run


@pytest.fixture
def ticking(monkeypatch):
    """A clock that goes on by one at every look, so that nothing depends on the machine."""
    time = iter(range(10**9))
    monkeypatch.setattr(timing, "now", lambda: 1e-3 * next(time))
    monkeypatch.setattr(measure_module, "_KNOWN", {})


def test_every_event_counts_from_the_original(fit):
    callback, logger = CoresetPruningCallback(latency=stairs, **EVENTS), MemoryLogger()
    fit(callback, logger=logger)

    whole = sum(math.ceil(reads / 4) * math.ceil(makes / 4) for reads, makes in ((8, 32), (32, 24), (24, 3))) * 1e-3
    assert [plan.latency_original for plan in callback.plans] == [pytest.approx(whole)] * 3
    for plan, ratio in zip(callback.plans, (0.2, 0.4, 0.6), strict=True):
        assert plan.reached == pytest.approx(1 - plan.latency_after / whole)
        assert plan.reached == pytest.approx(ratio, abs=0.06)
        assert all(group.channels_after % 4 == 0 for group in plan.groups)
    left = [record.latency for record in callback.history]
    assert [value for _, value in logger.of("coreset/latency_ms")][-1] == pytest.approx(1e3 * left[-1])
    assert callback.history[-1].latency_measured is None
    assert callback.history.rows()[0].count("latency") == 1
    assert "latency" in callback.history[-1].flat()


def test_another_unit_has_nothing_of_it(fit):
    callback, logger = CoresetPruningCallback(**EVENTS | {"unit": "macs"}), MemoryLogger()
    fit(callback, logger=logger)

    assert "latency" not in repr(callback.state_dict())
    assert "latency" not in repr(callback.history.rows())
    assert not any("latency" in column for column in callback.history[-1].flat())
    assert logger.of("coreset/latency_ms") == []


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_resumed_run_is_the_uninterrupted_one(fit, tmp_path, at):
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, auto_insert_metric_name=False)
    whole = CoresetPruningCallback(latency=stairs, **EVENTS)
    first = fit(whole, saver, enable_checkpointing=True)
    resumed = CoresetPruningCallback(latency=stairs, **EVENTS)

    second = fit(resumed, resume=tmp_path / f"{at}.ckpt")

    assert_same(first.state_dict(), second.state_dict())
    assert whole.plans[-1].to_dict() == resumed.plans[-1].to_dict()


@pytest.mark.usefixtures("ticking")
def test_times_are_measured_once_and_kept_in_checkpoints(fit, tmp_path, monkeypatch):
    """A resumed run goes on with them, and measures the end."""
    monkeypatch.setattr(count_module, "compared", lambda *_: (1.0, 0.5))
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, auto_insert_metric_name=False)
    whole = CoresetPruningCallback(0.3, start=1, end=3, schedule="linear", unit="latency", verbose=False)
    module = Shown(mlp(8, 64, 64, 3))
    with pytest.warns(UserWarning, match="but measured it is 50.0%"):
        fit(whole, saver, module=module, enable_checkpointing=True)
    monkeypatch.setattr(count_module, "network_latency", None)
    resumed = CoresetPruningCallback(0.3, start=1, end=3, schedule="linear", unit="latency", verbose=False)

    with pytest.warns(UserWarning, match="but measured it is 50.0%"):
        second = fit(resumed, module=Shown(mlp(8, 64, 64, 3)), resume=tmp_path / "1.ckpt")

    assert_same(module.state_dict(), second.state_dict())
    assert whole.state_dict() == resumed.state_dict()
    assert [plan.latency_measured for plan in resumed.plans] == [None, None, (1.0, 0.5)]
    assert (resumed.history[-1].latency_measured, resumed.history[-1].latency_measured_original) == (0.5, 1.0)
    checkpoint = torch.load(tmp_path / "4.ckpt", weights_only=True)
    (state,) = (
        checkpoint["callbacks"].values()
        if len(checkpoint["callbacks"]) == 1
        else [value for key, value in checkpoint["callbacks"].items() if key.startswith("CoresetPruning")]
    )
    again = CoresetPruningCallback(0.3, start=1, end=3, schedule="linear", unit="latency", verbose=False)
    again.load_state_dict(state)
    assert again.plans[-1].latency_measured == (1.0, 0.5)


def test_the_original_is_measured_beside_the_pruned_module(fit, monkeypatch):
    widths = []

    def look(before: Any, after: Any, example: Any) -> tuple[float, float]:
        widths.append((before.net[0].out_channels, after.net[0].out_channels, tuple(example.inputs.shape)))
        before(example.inputs)
        return 1.0, 0.4

    monkeypatch.setattr(count_module, "compared", look)
    module = Classifier(convnet())
    module.example_input_array = torch.zeros(5, 1, 6, 6)
    table = measure_latency(module, module.example_input_array, seconds=0.05, verbose=False)
    callback = CoresetPruningCallback(latency=table, **EVENTS)
    with pytest.warns(UserWarning) if callback is None else _any_warning():
        make = {"module": module}
        fit_images(fit, callback, **make)

    ((before, after, shape),) = widths
    assert before == 12 > after
    assert shape == (5, 1, 6, 6)


def fit_images(fit: Any, callback: Any, module: Any) -> None:
    class Images(pl.LightningDataModule):
        def train_dataloader(self) -> Any:
            return make_loader(1, 6, 6)

    fit.__call__  # noqa: B018
    trainer_module = module
    trainer_module.train_dataloader = lambda: make_loader(1, 6, 6)
