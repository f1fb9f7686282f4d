"""Which of the Trainer's metrics say something about the model since a pruning event changed it."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from lightning_coreset.training.metrics import is_same_value


class Freshness:
    """Tells metrics of the present model from those that were logged before it was pruned, or an event taken back.

    The Trainer keeps the last value of every metric, so that a checkpoint that is saved right after an event would get
    the score of the model before. An average over a training epoch in which the model changed is of both, too.

    Attributes:
        changed_in: The epoch in the middle of which the model has changed last; part of checkpoints.
    """

    def __init__(self) -> None:
        self.changed_in: int | None = None
        self._old: dict[str, Tensor] = {}
        self._validated: dict[str, Tensor] = {}

    def model_changes(self, trainer: pl.Trainer) -> None:
        """What was logged until now is of another model."""
        self._old, self._validated = dict(trainer.callback_metrics), {}
        self.changed_in = trainer.current_epoch if _is_within_epoch(trainer) else None

    def validated(self, trainer: pl.Trainer) -> None:
        """What is known after a validation is no average over a training epoch."""
        if self.changed_in == trainer.current_epoch:
            self._validated = dict(trainer.callback_metrics)

    def is_old(self, trainer: pl.Trainer, name: str) -> bool:
        """Whether a metric is of a model before the present one, at least in part."""
        value = trainer.callback_metrics.get(name)
        if value is None:
            return False
        if is_same_value(value, self._old.get(name)):
            return True
        is_average = self.changed_in == trainer.current_epoch and _is_epoch_over(trainer)
        return is_average and not is_same_value(value, self._validated.get(name))

    def end(self) -> None:
        """Drop all values, at the end of a fit."""
        self._old, self._validated = {}, {}


def _is_within_epoch(trainer: pl.Trainer) -> bool:
    """Whether the present epoch has had a batch already."""
    loop: Any = trainer.fit_loop
    epoch, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress.current
    return epoch.started == epoch.ready and batches.processed > 0


def _is_epoch_over(trainer: pl.Trainer) -> bool:
    """Whether the last batch of the epoch and the validation after it are over."""
    epoch: Any = trainer.fit_loop.epoch_progress.current
    return epoch.processed > epoch.completed
