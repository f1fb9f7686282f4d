"""The EarlyStopping callbacks of a Trainer, whose best score belongs to a model of another size."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping

from lightning_coreset.training.packages import kinds


def early_stopping_callbacks(trainer: pl.Trainer) -> list[EarlyStopping]:
    """The Trainer's EarlyStopping callbacks, without other callbacks that it lists with them."""
    found: list[EarlyStopping] = trainer.early_stopping_callbacks  # type: ignore[assignment]
    return [callback for callback in found if isinstance(callback, kinds("callbacks.EarlyStopping"))]


def restart_patience(trainer: pl.Trainer) -> None:
    """Reset patience and best score: a pruned model has to recover before it can be better than the one before."""
    for callback in early_stopping_callbacks(trainer):
        callback.wait_count = 0
        worst = float("inf" if callback.monitor_op is torch.lt else "-inf")
        callback.best_score = torch.tensor(worst, device=callback.best_score.device)
