"""The time that a pruning event has for recovery, and taking it back after further training and a resume."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl

from lightning_coreset.plain_data import as_type, from_plain
from lightning_coreset.training.progress import Progress
from lightning_coreset.training.savepoint import Savepoint
from lightning_coreset.training.savepoint_form import checked_content

__all__ = ["RecoveryWindow", "Savepoint"]


@dataclass(frozen=True)
class RecoveryWindow:
    """The time that training has to bring the accuracy back after an event, and what to go back to if it does not.

    Attributes:
        savepoint: Everything as it was before the event.
        plans: The number of events before it.
        done: The schedule's events before it, see :class:`Progress`.
        ratio: The pruning ratio that the event asked for.
        epoch: The epoch of the event.
        batches: The training batches before it.
        value: The latest value of a validation since; ``None`` before the first, NaN if none gave one.
        failed: Whether the time is over.
    """

    savepoint: Savepoint
    plans: int
    done: Mapping[int, float]
    ratio: float
    epoch: int
    batches: int
    value: float | None = None
    failed: bool = False

    @classmethod
    def open(cls, trainer: pl.Trainer, savepoint: Savepoint, progress: Progress, ratio: float) -> RecoveryWindow:
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

    def roll_back(self, trainer: pl.Trainer, pl_module: pl.LightningModule, progress: Progress) -> None:
        """Undo the event; a collective operation."""
        self.savepoint.restore(trainer, pl_module, then=lambda: progress.undo(self.plans, self.done))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for checkpoints."""
        return {**vars(self), "savepoint": self.savepoint.to_dict(), "done": dict(self.done)}

    @classmethod
    def from_dict(cls, plain: Any) -> RecoveryWindow:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: If it is something else.
        """
        plain = as_type(plain, dict[str, Any], "the window")
        return from_plain(cls, plain, savepoint=Savepoint(checked_content(plain.get("savepoint"))))
