"""The same under a Trainer of ``pytorch_lightning``."""

from __future__ import annotations

import pytest
from fitting import make_loader
from training.best_checkpoint import scripted
from training.best_checkpoint.scripted import kept, name, names

from lightning_coreset import CoresetPruningCallback

other = pytest.importorskip("pytorch_lightning")


def test_the_best_is_the_best_of_the_most_pruned(tmp_path):
    class Scripted(other.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.scores = scripted.Scripted().net, scripted.SCORES

        forward = scripted.Scripted.forward
        score = scripted.Scripted.score
        validation_step = scripted.Scripted.validation_step
        configure_optimizers = scripted.Scripted.configure_optimizers

        def training_step(self, batch, batch_idx):
            return (self(batch[0]) - batch[1][:, None]).square().mean()

    best = other.callbacks.ModelCheckpoint(
        tmp_path, monitor="val_acc", mode="max", save_top_k=2, filename="{epoch}", auto_insert_metric_name=False
    )
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callback = CoresetPruningCallback(schedule=scripted.EVENTS, verbose=False)
    trainer = other.Trainer(
        max_epochs=6, num_sanity_val_steps=0, log_every_n_steps=1, callbacks=[best, callback], **quiet
    )
    trainer.fit(Scripted(), make_loader(8), make_loader(8))

    assert names(tmp_path) == ["4", "5"]
    assert name(best.best_model_path) == "5"
    assert kept(best) == {"4": 0.75, "5": 0.85}
    assert "_save_topk_checkpoint" not in vars(best)
