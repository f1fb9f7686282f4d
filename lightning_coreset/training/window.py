"""The time that a pruning event has to heal, and what to go back to if it does not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl

from lightning_coreset.training.progress import Progress
from lightning_coreset.training.savepoint import Savepoint


@dataclass(frozen=True)
class Window:
    """The time that an event has to heal.

    Attributes:
        savepoint: Everything as it was before the event.
        plans: How many events had been carried out.
        done: The schedule's events that were over.
        ratio: The pruning ratio that the event asked for.
        epoch: The epoch of the event.
        batches: The training batches before it.
        value: The latest value since; ``None`` before the first.
        failed: Whether time is over.
    """

    savepoint: Savepoint
    plans: int
    done: Mapping[int, float]
    ratio: float
    epoch: int
    batches: int
    value: float | None = None
    failed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain data for checkpoints."""
        return {**vars(self), "savepoint": self.savepoint.to_dict(), "done": dict(self.done)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Window:
        """The inverse of :meth:`to_dict`."""
        return cls(**{**plain, "savepoint": Savepoint(plain["savepoint"])})

    @classmethod
    def opened(cls, trainer: pl.Trainer, savepoint: Savepoint, progress: Progress, ratio: float) -> Window:
        """The window of an event that asks for ``ratio``; ``progress`` is as it was before."""
        batches = trainer.fit_loop.epoch_loop.batch_progress.total.completed
        return cls(savepoint, len(progress.plans), dict(progress.done), ratio, trainer.current_epoch, batches)

    def epochs_since(self, trainer: pl.Trainer) -> float:
        """Epochs of training since the event, at the end of a validation."""
        loop = trainer.fit_loop.epoch_loop.batch_progress
        length = trainer.num_training_batches
        if length < math.inf:
            return (loop.total.completed - self.batches) / length
        return trainer.current_epoch + loop.is_last_batch - self.epoch
