"""The number that says how good the model is, wherever it comes from."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.data import sized_len

from lightning_coreset._compat import tree_leaves
from lightning_coreset.training.metrics.accuracy_monitor import AccuracyMonitor, Mode
from lightning_coreset.training.metrics.logged import LoggedMetric
from lightning_coreset.training.metrics.probe import AccuracyProbe


class Monitor:
    """A classifier's accuracy, a metric of the user's, or one that the module logs itself.

    A callback calls, on every rank: ``validation_start``; ``start`` and ``batch_end`` around every validation step
    (around every training step where there is no validation); ``validation_end`` after every validation and
    ``epoch_end`` after the epoch (``result`` after the epoch where there is no validation); ``evaluate`` right before
    and after a pruning event, ``event`` once it is over; ``stop`` in the end.

    Args:
        measured: What it is.

    Attributes:
        mode: Whether ``"max"`` or ``"min"`` is better.
        name: What is measured: ``"accuracy"``, the class of the metric or the name that the module logs.
    """

    def __init__(self, measured: AccuracyMonitor) -> None:
        monitor, eval_batches = measured.monitor, int(measured.eval_batches)
        self._probe = AccuracyProbe(eval_batches, measured.metric)
        self._logged = None if monitor is None else LoggedMetric(monitor, eval_batches)
        self._first_kept = 0
        self.mode: Mode = measured.mode
        self.name = measured.name

    def validation_start(self, trainer: pl.Trainer) -> None:
        """A validation begins."""
        self._first_kept = first_of_latest(trainer, self._probe.eval_batches)
        if self._logged is not None:
            self._logged.look(trainer)

    def start(self, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """A step on a batch begins."""
        keep = batch_idx >= self._first_kept
        if self._logged is None:
            self._probe.start(pl_module, keep=keep)
        elif keep:
            self._logged.keep(batch, batch_idx, dataloader_idx)

    def batch_end(self, batch: Any) -> None:
        """The step is over."""
        if self._logged is None:
            self._probe.batch_end(batch)

    def result(self, trainer: pl.Trainer) -> float | None:
        """The number over all steps since the last call, on all ranks; ``None`` if there is none.

        Raises:
            MisconfigurationException: If the user's metric cannot be measured, or is not logged.
        """
        return self._probe.compute_and_reset() if self._logged is None else self._logged.value(trainer)

    def validation_end(self, trainer: pl.Trainer) -> float | None:
        """The number of the validation that ends; ``None`` if there is none, also for a metric not logged in it.

        Raises:
            MisconfigurationException: If the user's metric cannot be measured, or was never logged, unless this is the
                last validation of an epoch: one that is logged in training may follow.
        """
        if self._logged is None:
            return self.result(trainer)
        return self._logged.value(trainer, is_final=not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)

    def epoch_end(self, trainer: pl.Trainer) -> float | None:
        """The number that the module has logged in training since the last validation; ``None`` if there is none.

        Raises:
            MisconfigurationException: If it was never logged, and there was a validation.
        """
        return None if self._logged is None else self._logged.late_value(trainer)

    @property
    def is_awaited(self) -> bool:
        """Whether a validation has ended and the module has never logged the number yet."""
        return self._logged is not None and self._logged.is_awaited

    @property
    def was_logged(self) -> bool:
        """Whether the module has ever logged the number in this training run; part of every checkpoint."""
        return self._logged is not None and self._logged.was_logged

    @was_logged.setter
    def was_logged(self, was_logged: bool) -> None:
        if self._logged is not None:
            self._logged.was_logged = was_logged

    def event(self, trainer: pl.Trainer) -> None:
        """The model was pruned: what was logged until now says nothing of it."""
        if self._logged is not None:
            self._logged.forget(trainer)

    def evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> float | None:
        """The number right now on the latest batches of all ranks; ``None`` if there is none."""
        if self._logged is None:
            return self._probe.evaluate(pl_module)
        return self._logged.evaluate(trainer, pl_module)

    def stop(self) -> None:
        """Remove all hooks from the module and drop batches."""
        self._first_kept = 0
        self._probe.stop()
        if self._logged is not None:
            self._logged.stop()


def first_of_latest(trainer: pl.Trainer, count: int) -> int:
    """The first index, within its loader, of a batch that may be one of the last ``count`` of this validation.

    It is 0 if a loader has no length. With several loaders it may hold for more batches than those: they may follow
    each other or take turns, and if they take turns, the shortest may end the validation.

    Args:
        trainer: The Trainer, in validation or the sanity check.
        count: How many.
    """
    if any(sized_len(loader) is None for loader in tree_leaves(trainer.val_dataloaders)):
        return 0  # even if there is a limit: there may be fewer batches
    batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
    # One more, since a step that takes an iterator fetches its batch later: hooks get the index of the one before.
    return max(0, int(min(batches)) - count - 1)
