"""No checkpoint gets the score of a model before it: what was logged before an event says nothing of what comes."""

from __future__ import annotations

import warnings
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from breadth import some_of
from fitting import count_params
from training.best_checkpoint.scripted import SCORES, STEPS, Scripted, content, kept, name, names, params, run, saving

pytestmark = pytest.mark.filterwarnings(
    "ignore:The best checkpoint of",
    "ignore:.*could not find the monitored key",  # Lightning, before the first validation
)
SELDOM = {"check_val_every_n_epoch": 2}
IN_THE_MIDDLE = {"interval": "step", "schedule": {10: 0.5}}


class Measured(Scripted):
    """Knows a number that is 0 for the model before an event and 100 for that after it."""

    def loss_of_its_size(self) -> float:
        return 0.0 if self.net[0].out_features == 32 else 100.0


@pytest.mark.slow
def test_a_score_of_before_the_event_does_not_count(tmp_path):
    """Validation comes in every second epoch, saving in each; the score before the events would win."""
    best = saving(tmp_path, save_on_train_epoch_end=True)
    run(best, module=Scripted((0.9, 0.95, 0.7, 0.6, 0.75, 0.5)), **SELDOM)

    assert names(tmp_path) == ["5-0.50"]


def test_between_an_event_and_the_next_validation_the_less_pruned_one_stays(tmp_path):
    best = saving(tmp_path, save_on_train_epoch_end=True)
    run(best, module=Scripted((0.9, 0.95, 0.7, 0.6, 0.75)), **SELDOM, max_epochs=5)

    assert name(best.best_model_path) == "3-0.60"
    assert float(best.best_model_score) == pytest.approx(0.6)


@pytest.mark.parametrize("mode", some_of(["max", "min"], "min"))
def test_all_are_saved_where_all_were_asked_for(tmp_path, mode):
    """One without a score of its own is not a number, in its name, and is never the best of several."""
    best = saving(tmp_path, mode=mode, save_on_train_epoch_end=True, save_top_k=-1)
    run(best, module=Scripted((0.9, 0.95, 0.7, 0.6, 0.75, 0.5)), **SELDOM, max_epochs=5)

    unknown = float("-inf" if mode == "max" else "inf")
    assert kept(best) == {"1-0.95": 0.95, "2-nan": unknown, "3-0.60": 0.6, "4-nan": unknown}
    assert name(best.best_model_path) == "3-0.60"


@pytest.mark.slow
def test_one_without_a_score_is_better_than_none(tmp_path):
    """Saving begins in the third epoch, between the event and the next validation."""
    best = saving(tmp_path, save_on_train_epoch_end=True, every_n_epochs=3)
    run(best, **SELDOM, max_epochs=5)

    assert names(tmp_path) == [name(best.best_model_path)] == ["2-nan"]


@pytest.mark.parametrize("metric", some_of(["epoch_loss", "both", "late"], "late"))
def test_averages_over_an_epoch_with_an_event_in_it(tmp_path, metric):
    """Of training, where the pruned model has the worse loss; the event is in the third epoch."""

    class Averaging(Measured):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.total = (self.total if batch_idx else 0.0) + self.loss_of_its_size()
            self.log("epoch_loss", self.loss_of_its_size(), on_step=False, on_epoch=True)
            self.log("both", self.loss_of_its_size(), on_step=True, on_epoch=True)
            return super().training_step(batch, batch_idx)

        def on_train_epoch_end(self) -> None:
            self.log("late", self.total / STEPS)

    best = saving(tmp_path, monitor=metric, mode="min", filename=f"{{epoch}}-{{{metric}:.0f}}", save_top_k=-1)
    run(best, module=Averaging(), pruning=IN_THE_MIDDLE)

    assert names(tmp_path) == ["0-0", "1-0", "2-nan", "3-100", "4-100", "5-100"]
    assert name(best.best_model_path) == "3-100"


def test_an_average_over_an_epoch_that_begins_with_the_event(tmp_path):
    class Averaging(Measured):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.log("epoch_loss", self.loss_of_its_size(), on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    best = saving(tmp_path, monitor="epoch_loss", mode="min", filename="{epoch}-{epoch_loss:.0f}", save_top_k=-1)
    run(best, module=Averaging(), pruning={"schedule": {2: 0.5}})
    assert names(tmp_path) == ["0-0", "1-0", "2-100", "3-100", "4-100", "5-100"]


def test_metrics_of_steps(tmp_path):
    """The step before the event, the step after it."""

    class Stepping(Measured):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.log("step_loss", self.loss_of_its_size())
            return super().training_step(batch, batch_idx)

    options = {"monitor": "step_loss", "mode": "min", "filename": "{step}-{step_loss:.0f}", "save_top_k": -1}
    best = saving(tmp_path, **options, every_n_train_steps=1)
    run(best, module=Stepping(), max_epochs=2, pruning={"interval": "step", "schedule": {3: 0.5}})
    assert names(tmp_path) == ["1-0", "2-0", "3-0", *[f"{step}-100" for step in range(4, 9)]]
    assert name(best.best_model_path) == "4-100"


def test_an_event_after_a_step_and_before_its_checkpoint(tmp_path):
    """With manual optimization the structure is known after the first step, so that the event is right there."""

    class ByHand(Measured):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            self.log("step_loss", self.loss_of_its_size())
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(torch.nn.functional.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

    options = {"monitor": "step_loss", "mode": "min", "filename": "{step}-{step_loss:.0f}", "save_top_k": -1}
    best = saving(tmp_path, **options, every_n_train_steps=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using ModelCheckpoint with manual optimization")
        run(best, module=ByHand(), max_epochs=1, pruning={"interval": "step", "schedule": {0: 0.5}})
    assert names(tmp_path) == ["1-nan", "2-100", "3-100", "4-100"]
    assert params(tmp_path / "1-nan.ckpt") == params(best.best_model_path)
    assert name(best.best_model_path) == "2-100"


def test_saving_by_steps(tmp_path):
    """Validation comes every second step, saving every step, events before the tenth and the nineteenth."""
    scores = {step: 1 - step / 100 for step in range(25)}
    best = saving(tmp_path, filename="{step}-{val_acc:.2f}", every_n_train_steps=1, save_last=True)
    module = Scripted(scores)
    run(best, module=module, val_check_interval=2, pruning={"interval": "step", "schedule": {9: 0.3, 18: 0.5}})

    # Lightning 2.5 saves before the validation that comes after the same step.
    assert names(tmp_path) in (["20-0.80", "last"], ["21-0.80", "last"])
    assert params(best.best_model_path) == count_params(module)
    assert content(tmp_path / "last.ckpt")["global_step"] == 24
    assert float(best.best_model_score) == pytest.approx(0.8)


def test_validation_before_the_event_in_one_epoch(tmp_path):
    """Validation comes in the middle of an epoch, the event after it, saving at the end of the epoch."""
    best = saving(tmp_path, save_on_train_epoch_end=True, save_top_k=-1)
    run(best, val_check_interval=2, limit_train_batches=3, pruning={"interval": "step", "schedule": {8: 0.5}})

    assert names(tmp_path) == ["0-0.90", "1-0.95", "2-nan", "3-0.80", "4-0.75", "5-0.85"]


def test_validation_after_the_event_in_one_epoch(tmp_path):
    best = saving(tmp_path, save_on_train_epoch_end=True, save_top_k=-1)
    run(best, val_check_interval=2, limit_train_batches=3, pruning={"interval": "step", "schedule": {7: 0.5}})

    assert names(tmp_path) == [f"{epoch}-{score:.2f}" for epoch, score in enumerate(SCORES)]


@pytest.mark.slow
def test_other_callbacks_see_the_metrics_as_they_are(tmp_path):
    """EarlyStopping ends training at NaN."""
    best = saving(tmp_path, save_on_train_epoch_end=True)
    stopping = pl.callbacks.EarlyStopping("sparsity", mode="max", patience=9, check_on_train_epoch_end=True)
    stopping.monitor = "val_acc"
    begin = pl.callbacks.LambdaCallback(
        on_train_start=lambda trainer, module: trainer.callback_metrics.update(val_acc=torch.tensor(0.1))
    )
    trainer, _ = run(begin, stopping, best, **SELDOM)
    assert trainer.current_epoch == 6
    assert float(trainer.callback_metrics["val_acc"]) == pytest.approx(SCORES[5])
