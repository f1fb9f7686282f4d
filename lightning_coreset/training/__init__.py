"""What only a Trainer has: strategies, examples from its batches, accuracy, loggers."""

from __future__ import annotations

from lightning_coreset.training.accuracy import AccuracyProbe
from lightning_coreset.training.example import ExampleSource
from lightning_coreset.training.progress import Progress
from lightning_coreset.training.report import event_scalars, log_scalars, standing_scalars
from lightning_coreset.training.strategies import agreed, check_strategy, unwrapped
from lightning_coreset.training.timeline import Timeline

__all__ = [
    "AccuracyProbe",
    "ExampleSource",
    "Progress",
    "Timeline",
    "agreed",
    "check_strategy",
    "event_scalars",
    "log_scalars",
    "standing_scalars",
    "unwrapped",
]
