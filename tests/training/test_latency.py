"""``unit="latency"`` in training: counted from the original, measured once, resumed with the same times."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from breadth import some_of
from fitting import Classifier, MemoryLogger, assert_same, convnet, make_loader, mlp
from lightning.fabric.utilities.exceptions import MisconfigurationException

import lightning_coreset.latency.measure as measure_module
import lightning_coreset.training.latency_count as count_module
from lightning_coreset import CoresetPruningCallback, LayerShape, measure_latency

# The accuracy right before an event is not known where a run was just resumed.
EVENTS: dict[str, Any] = {"schedule": {1: 0.2, 2: 0.4, 3: 0.6}, "verbose": False, "unit": "latency", "eval_batches": 0}
MEASURED: dict[str, Any] = EVENTS | {"schedule": {1: 0.1, 2: 0.2, 3: 0.3}}
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
        *callbacks: pl.Callback, module: Any = None, resume: Path | None = None, loader: Any = None, **options: Any
    ):
        trainer = make_trainer(*callbacks, max_epochs=EPOCHS, **options)
        module = Shown() if module is None else module
        trainer.fit(module, make_loader(8) if loader is None else loader, ckpt_path=resume)
        return module

    return run


class Saver(pl.Callback):
    """Saves a checkpoint of every epoch."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.directory / f"{trainer.current_epoch}.ckpt")


@pytest.fixture
def told_times(monkeypatch):
    """Layers are said to take as long as they have weights: nothing depends on the machine."""

    def weights(makers: Any, *_: Any, **__: Any) -> list[float]:
        return [sum(parameter.numel() for parameter in make().func.parameters()) for make in makers]

    monkeypatch.setattr(measure_module, "fastest", weights)
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


@pytest.mark.parametrize("at", some_of([0, 1, 2], 1))
def test_a_resumed_run_is_the_uninterrupted_one(fit, tmp_path, at):
    whole = CoresetPruningCallback(latency=stairs, **EVENTS)
    first = fit(whole, Saver(tmp_path))
    resumed = CoresetPruningCallback(latency=stairs, **EVENTS)

    second = fit(resumed, resume=tmp_path / f"{at}.ckpt")

    assert_same(first.state_dict(), second.state_dict())
    assert whole.plans[-1].to_dict() == resumed.plans[-1].to_dict()


@pytest.mark.usefixtures("told_times")
def test_times_are_measured_once_and_kept_in_checkpoints(fit, tmp_path, monkeypatch):
    """A resumed run goes on with them, and measures the end."""
    monkeypatch.setattr(count_module, "compared", lambda *_: (1.0, 0.5))
    whole = CoresetPruningCallback(**MEASURED)
    module = Shown(mlp(8, 64, 64, 3))
    with pytest.warns(UserWarning, match="but measured it is 50.0%"):
        fit(whole, Saver(tmp_path), module=module)
    monkeypatch.setattr(count_module, "network_latency", None)
    resumed = CoresetPruningCallback(**MEASURED)

    with pytest.warns(UserWarning, match="but measured it is 50.0%"):
        second = fit(resumed, module=Shown(mlp(8, 64, 64, 3)), resume=tmp_path / "1.ckpt")

    assert_same(module.state_dict(), second.state_dict())
    assert whole.state_dict() == resumed.state_dict()
    assert [plan.latency_measured for plan in resumed.plans] == [None, None, (1.0, 0.5)]
    assert (resumed.history[-1].latency_measured, resumed.history[-1].latency_measured_original) == (0.5, 1.0)
    checkpoint = torch.load(tmp_path / "4.ckpt", weights_only=True)
    state = next(value for key, value in checkpoint["callbacks"].items() if key.startswith("CoresetPruningCallback"))
    again = CoresetPruningCallback(**MEASURED)
    again.load_state_dict(state)
    assert again.plans[-1].latency_measured == (1.0, 0.5)


@pytest.mark.usefixtures("told_times")
@pytest.mark.slow
def test_the_original_is_measured_beside_the_pruned_module(fit, monkeypatch):
    widths = []

    def look(before: Any, after: Any, example: Any) -> tuple[float, float]:
        before_and_after = (model.net[0].out_channels + model.net[3].out_channels for model in (before, after))
        widths.append((*before_and_after, tuple(example.inputs.shape)))
        before(example.inputs)
        return 1.0, 0.4

    monkeypatch.setattr(count_module, "compared", look)
    module = Classifier(convnet())
    module.example_input_array = torch.zeros(5, 1, 6, 6)
    once: dict[str, Any] = {"schedule": "one_shot", "start": 1, "unit": "latency", "verbose": False}
    with pytest.warns(UserWarning, match=r"but measured it is 60.0%"):
        fit(CoresetPruningCallback(0.1, **once), module=module, loader=make_loader(1, 6, 6))

    ((before, after, shape),) = widths
    assert before == 12 + 16
    assert after < before
    assert shape == (5, 1, 6, 6)


@pytest.mark.usefixtures("told_times")
@pytest.mark.slow
def test_a_measurement_that_fails_does_not_end_training(fit, monkeypatch):
    def fail(*_: Any) -> None:
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(count_module, "compared", fail)
    callback = CoresetPruningCallback(0.3, schedule="one_shot", start=1, unit="latency", verbose=False)
    with pytest.warns(UserWarning, match="Could not measure the latency of the pruned model: RuntimeError: not enough"):
        fit(callback, module=Shown(mlp(8, 64, 64, 3)))

    assert callback.plans[-1].latency_measured is None
    assert len(callback.history) == 1


def test_inputs_are_needed(fit):
    module = Classifier()
    with pytest.raises(MisconfigurationException, match="Expected inputs to time the module on but there are none"):
        fit(CoresetPruningCallback(latency=stairs, **EVENTS), module=module)
    assert module.net[0].out_features == 32


def test_a_table_of_another_network_is_refused_before_training(fit):
    table = measure_latency(Shown(mlp(8, 16, 24, 3)), torch.zeros(4, 8), seconds=0.05, verbose=False)
    with pytest.raises(ValueError, match=r"Expected a latency table of this network but 'net\.0' is another layer"):
        fit(CoresetPruningCallback(latency=table, **EVENTS))


@pytest.mark.slow
def test_a_dry_run_has_the_sizes_of_training(fit, make_trainer):
    callback = CoresetPruningCallback(latency=stairs, **EVENTS)
    planned = callback.dry_run(make_trainer(callback, max_epochs=EPOCHS), Shown(), next(iter(make_loader(8))))
    fit(callback)

    assert [plan.latency_after for plan in planned.plans.values()] == [plan.latency_after for plan in callback.plans]
