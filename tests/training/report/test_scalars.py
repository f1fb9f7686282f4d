"""Scalars: for every logger, on Lightning's own axis."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_coreset.training.report import GroupRecord, Guarded, logged_step
from lightning_coreset.training.report.outlets import Outlets
from lightning_coreset.training.report.scalars import current_scalars, event_scalars, original_scalars

CURRENT = {
    "coreset/sparsity": 0.4,
    "coreset/params": 600.0,
    "coreset/macs": 550.0,
    "coreset_channels/net.0": 8.0,
    "coreset_channels/net.2": 10.0,
    "coreset_keep_ratio/net.0": 0.5,
    "coreset_keep_ratio/net.2": 1.0,
}


class Model(pl.LightningModule):
    def __init__(self, optimizers=1):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.count = optimizers
        self.automatic_optimization = optimizers == 1

    def training_step(self, batch):
        loss = self.layer(batch[0]).square().mean()
        self.log("loss", loss)
        if self.automatic_optimization:
            return loss
        self.manual_backward(loss)
        for optimizer in cast(list[Any], self.optimizers()):
            optimizer.step()
        return None

    def validation_step(self, batch):
        self.log("val_loss", 0.0)

    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), 0.1) for _ in range(self.count)]


def log_scalars(trainer, scalars, step=None):
    step = logged_step(trainer) if step is None else step
    Outlets(Guarded()).each(trainer, "log scalars", lambda sink: sink.scalars(scalars, step))


class Logs(pl.Callback):
    """Logs at the start of every epoch, and in validation."""

    def on_train_epoch_start(self, trainer, pl_module):
        log_scalars(trainer, CURRENT)

    def on_validation_epoch_end(self, trainer, pl_module):
        log_scalars(trainer, {"coreset/accuracy": 0.5})

    def on_train_end(self, trainer, pl_module):
        log_scalars(trainer, {"given": 1.0}, step=77)


@pytest.fixture
def fit(make_trainer):
    def run(loggers, optimizers=1, **options):
        loader = DataLoader(TensorDataset(torch.randn(6, 2)), batch_size=2)
        trainer = make_trainer(Logs(), logger=loggers, max_epochs=2, **options)
        trainer.fit(Model(optimizers), loader, loader)
        return trainer

    return run


def points(directory, tag):
    events = EventAccumulator(str(directory)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_scalars_before_the_first_event(original):
    assert original_scalars(original) == {
        "coreset/sparsity": 0.0,
        "coreset/params": 1000.0,
        "coreset/macs": 900.0,
        "coreset_channels/net.0": 16.0,
        "coreset_channels/net.2": 10.0,
        "coreset_keep_ratio/net.0": 1.0,
        "coreset_keep_ratio/net.2": 1.0,
    }


def test_scalars_of_the_current_model(make_record):
    assert current_scalars(make_record(accuracy_after=0.5)) == pytest.approx(CURRENT)


def test_scalars_of_an_event_are_those_that_are_known(make_record):
    bare, ratios = make_record(), {"coreset/requested": 0.5, "coreset/reached": 0.4}
    assert event_scalars(bare) == pytest.approx(CURRENT | ratios)

    group = GroupRecord("fc", 1, 2, "uniform", expected_error=0.0, certified_error=3.0, found_error=2.0)
    full = make_record(groups=(group,), accuracy_before=0.75, accuracy_after=0.0)
    assert (
        event_scalars(full).items()
        >= {
            "coreset/accuracy_before": 0.75,
            "coreset/accuracy_after": 0.0,
            "coreset_expected_error/fc": 0.0,
            "coreset_certified_error/fc": 3.0,
            "coreset_found_error/fc": 2.0,
        }.items()
    )


@pytest.mark.parametrize("optimizers", [1, 2])
def test_every_logger_gets_every_scalar_on_lightnings_own_axis(fit, tmp_path, optimizers):
    loggers = [TensorBoardLogger(tmp_path, name="tb"), CSVLogger(tmp_path, name="csv")]

    fit(loggers, optimizers, num_sanity_val_steps=1)

    directory = loggers[0].log_dir
    for tag, value in CURRENT.items():
        assert points(directory, tag) == [(0, pytest.approx(value)), (3, pytest.approx(value))]
    assert points(directory, "coreset/accuracy") == [(2, 0.5), (5, 0.5)]  # none from the sanity check
    assert [step for step, _ in points(directory, "val_loss")] == [2, 5]
    assert points(directory, "given") == [(77, 1.0)]
    assert [step for step, _ in points(directory, "loss")] == list(range(6))  # Lightning's own axis

    with (Path(loggers[1].log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["coreset/sparsity"]]
    assert [int(row["step"]) for row in rows] == [0, 3]
    for tag, value in CURRENT.items():
        assert [float(row[tag]) for row in rows] == pytest.approx([value] * 2)


@pytest.mark.parametrize("options", [{"loggers": False}, {"loggers": [], "fast_dev_run": True}])
def test_no_logger_is_no_error(fit, options):
    assert fit(**options).state.finished


def test_rank_zero_alone_logs():
    calls = []

    class Logger:
        def log_metrics(self, metrics, step):
            calls.append((metrics, step))

    class Trainer:
        sanity_checking = False
        loggers = (Logger(), Logger())
        fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=5))
        is_global_zero = False

    trainer: Any = Trainer()
    log_scalars(trainer, {"a": 1.0})
    assert calls == []
    trainer.is_global_zero = True
    log_scalars(trainer, {"a": 1.0})
    assert calls == [({"a": 1.0}, 5)] * 2
