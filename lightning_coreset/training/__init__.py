"""What only a Trainer has: strategies, examples from its batches, accuracy, loggers."""

from __future__ import annotations

from lightning_coreset.training.accuracy import AccuracyProbe
from lightning_coreset.training.example import ExampleSource
from lightning_coreset.training.length import training_epochs
from lightning_coreset.training.report import event_scalars, log_scalars
from lightning_coreset.training.strategies import agreed, check_strategy, unwrapped

__all__ = [
    "AccuracyProbe",
    "ExampleSource",
    "agreed",
    "check_strategy",
    "event_scalars",
    "log_scalars",
    "training_epochs",
    "unwrapped",
]
