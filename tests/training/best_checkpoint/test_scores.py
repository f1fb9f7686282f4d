"""A checkpoint never gets the score of a model before it: what was logged before an event says nothing of what comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fitting import count_params
from training.best_checkpoint.scripted import SCORES, Scripted, content, kept, name, names, params, run, saving

pytestmark = pytest.mark.filterwarnings("ignore:The best checkpoint of")
NAN = "nan"


def scores_of(**options: Any) -> dict[str, Any]:
    return {"pruning": {"interval": "step", "schedule": {9: 0.3, 18: 0.5}}, **options}


def test_a_score_of_before_the_event_does_not_count(tmp_path):
    """Validation after the second, fourth and sixth epoch, saving after each of them; the event is in the third."""
    best = saving(tmp_path, save_on_train_epoch_end=True)
    every = saving(tmp_path / "all", save_on_train_epoch_end=True, save_top_k=-1, every_n_epochs=1, filename="{epoch}")
    every.monitor = "val_acc"
    every.CHECKPOINT_EQUALS_CHAR = "="
    run(best, module=Scripted((0.9, 0.95, 0.7, 0.6, 0.75, 0.5)), check_val_every_n_epoch=2)

    assert names(tmp_path) == ["5-0.50"]


def test_between_an_event_and_the_next_validation_the_less_pruned_one_stays(tmp_path):
    best = saving(tmp_path, save_on_train_epoch_end=True)
    run(best, module=Scripted((0.9, 0.95, 0.7, 0.6, 0.75)), check_val_every_n_epoch=2, max_epochs=5)

    assert name(best.best_model_path) == "3-0.60"
    assert float(best.best_model_score) == pytest.approx(0.6)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_all_are_saved_where_all_were_asked_for(tmp_path, mode):
    """One without a score of its own is not a number, in its name, and is never the best of several."""
    best = saving(tmp_path, mode=mode, save_on_train_epoch_end=True, save_top_k=-1)
    run(best, module=Scripted((0.9, 0.95, 0.7, 0.6, 0.75, 0.5)), check_val_every_n_epoch=2, max_epochs=5)

    unknown = float("-inf" if mode == "max" else "inf")
    assert kept(best) == {"1-0.95": 0.95, "2-nan": unknown, "3-0.60": 0.6, "4-nan": unknown}
    assert name(best.best_model_path) == "3-0.60"


def test_a_first_one_without_a_score_is_better_than_none(tmp_path):
    best = saving(tmp_path, save_on_train_epoch_end=True, every_n_epochs=3)
    files = []

    class Files(type(best)):  # noqa: N805
        pass

    _, module = run(best, module=Scripted((0.9, 0.95, 0.7, 0.6, 0.75, 0.5)), check_val_every_n_epoch=2, max_epochs=5)
    assert names(tmp_path) == [name(best.best_model_path)] == ["2-nan"]
    assert files == []


@pytest.mark.parametrize("metric", ["loss", "epoch_loss", "both", "late"])
def test_averages_over_an_epoch_with_an_event_in_it(tmp_path, metric):
    """Of training: the loss falls by 1 for each step, and is far lower before the event, which is in the third epoch."""

    class Averaging(Scripted):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            lower = 0.0 if self.net[0].out_features == 32 else 100.0
            self.total = getattr(self, "total", 0.0) * (batch_idx > 0) + lower
            self.log("epoch_loss", lower, on_step=False, on_epoch=True)
            self.log("both", lower, on_step=True, on_epoch=True)
            return loss

        def on_train_epoch_end(self) -> None:
            self.log("late", self.total / 4)
            self.log("loss_now", self.total / 4)

    name_of = {"loss": "loss_now"}.get(metric, metric)
    best = saving(tmp_path, monitor=name_of, mode="min", filename="{epoch}-{%s:.0f}" % name_of, save_top_k=-1)
    run(best, module=Averaging(), **scores_of(pruning={"interval": "step", "schedule": {10: 0.5}}))

    assert names(tmp_path) == ["0-0", "1-0", "2-nan", "3-100", "4-100", "5-100"]
    assert name(best.best_model_path) == "3-100"


def test_the_metric_of_the_step_in_which_the_event_was(tmp_path):
    """Every step is saved by what it logged; the event follows the step that first ran a layer, before the saving."""
    best = saving(
        tmp_path, monitor="loss", mode="min", filename="{step}-{loss:.0f}", save_top_k=-1, every_n_train_steps=1
    )

    class Stepping(Scripted):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log("loss", torch.tensor(0.0 if self.net[0].out_features == 32 else 100.0))
            return loss

    class Relogs(Stepping):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            x, y = batch
            loss = torch.nn.functional.cross_entropy(self(x), y)
            self.log("loss", torch.tensor(0.0 if self.net[0].out_features == 32 else 100.0))
            return loss

    run(best, module=Relogs(), max_epochs=2, pruning={"interval": "step", "schedule": {3: 0.5}})
    assert names(tmp_path) == ["1-0", "2-0", "3-0", *[f"{step}-100" for step in range(4, 9)]]


def test_saving_by_steps(tmp_path):
    """Validation comes every second step, saving every step, events before the tenth and the nineteenth."""
    seen: Sequence[float] = {step: 1 - step / 100 for step in range(25)}
    best = saving(tmp_path, filename="{step}-{val_acc:.2f}", every_n_train_steps=1, save_last=True)
    module = Scripted(seen)
    run(best, module=module, val_check_interval=2, **scores_of())

    assert names(tmp_path) == ["20-0.80", "last"] or names(tmp_path) == ["21-0.80", "last"]
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


def test_other_callbacks_see_the_metrics_as_they_are(tmp_path):
    """EarlyStopping would end training at NaN."""
    import lightning.pytorch as pl

    best = saving(tmp_path, save_on_train_epoch_end=True)
    stopping = pl.callbacks.EarlyStopping("val_acc", mode="max", patience=9, check_on_train_epoch_end=True)
    trainer, _ = run(stopping, best, check_val_every_n_epoch=2)
    assert trainer.current_epoch == 6
