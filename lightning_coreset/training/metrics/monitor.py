"""The number that says how good the model is, wherever it comes from."""

from __future__ import annotations

import re
from typing import Any, Literal, TypeAlias, get_args

import lightning.pytorch as pl
from lightning.fabric.utilities.data import sized_len
from torchmetrics import Metric

from lightning_coreset._compat import tree_leaves
from lightning_coreset.training.metrics.logged import LoggedMetric
from lightning_coreset.training.metrics.probe import AccuracyProbe

Mode: TypeAlias = Literal["max", "min"]


class Monitor:
    """A classifier's accuracy, a metric of the user's, or one that the module logs itself.

    A callback calls, on every rank: ``validation_start``; ``start`` and ``batch_end`` around every validation step
    (around every training step where there is no validation); ``validation_end`` after every validation and
    ``epoch_end`` after the epoch (``result`` after the epoch where there is no validation); ``evaluate`` right before
    and after a pruning event, ``event`` once it is over; ``stop`` in the end.

    Args:
        metric: A metric of torchmetrics, called as ``metric(outputs, targets)`` on what the steps compute.
        monitor: The name of a metric that the module logs in validation.
        mode: Whether ``"max"`` or ``"min"`` is better. By default as ``metric.higher_is_better`` says, and what it says
            cannot be contradicted; nor can accuracy, of which more is better; ``"min"`` for
            a ``monitor`` whose name has "loss", "error" or the like in it (``rmse``, ``nll``); else ``"max"``.
        eval_batches: How many batches are kept for ``evaluate``.

    Raises:
        ValueError: If an argument is none of these, both ``metric`` and ``monitor`` are given, or ``mode`` is not what
            the number is known to be.

    Attributes:
        mode: ``"max"`` or ``"min"``.
        name: What is measured: ``"accuracy"``, the class of the metric or the name that the module logs.
    """

    def __init__(
        self,
        metric: Metric | None = None,
        monitor: str | None = None,
        mode: Mode | None = None,
        eval_batches: int = 8,
    ) -> None:
        if metric is not None and monitor is not None:
            raise ValueError(f"Expected either `metric` or `monitor` but got both: {metric!r} and {monitor!r}.")
        if monitor is not None and not (isinstance(monitor, str) and monitor):
            raise ValueError(f"Expected `monitor` to be the name of a logged metric but got {monitor!r}.")
        if mode is not None and mode not in get_args(Mode):
            raise ValueError(f"Expected `monitor_mode` to be 'max' or 'min' but got {mode!r}.")
        self._probe = AccuracyProbe(eval_batches, metric)  # checks these two
        name = monitor or ("accuracy" if metric is None else type(metric).__name__)
        known = None if monitor is not None else _known_mode(metric)
        if known and mode not in (None, known):
            raise ValueError(
                f"Expected `monitor_mode` to be left out or {known!r} for {name}, of which {_BETTER[known]} is better, "
                f"but got {mode!r}. It belongs to the name of a logged metric, such as monitor='val_loss'."
            )
        self._logged = None if monitor is None else LoggedMetric(monitor, eval_batches)
        self._first_kept = 0
        self.mode: Mode = mode or known or _mode_of(monitor)
        self.name = name

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


_FALLING = ("loss", "error", "perplexity")
"""Words in names of numbers of which less is better, and below whole parts of such names."""
_FALLING_PARTS = frozenset({"mae", "mse", "rmse", "mape", "nll", "ppl", "fid", "wer", "cer", "bpd"})


_BETTER: dict[Mode, str] = {"max": "more", "min": "less"}


def _known_mode(metric: Metric | None) -> Mode | None:
    """What is better of an accuracy (``None``) or of a metric; ``None`` if the metric does not say."""
    if metric is None or metric.higher_is_better:
        return "max"
    return "min" if metric.higher_is_better is False else None


def _mode_of(monitor: str | None) -> Mode:
    name = (monitor or "").lower()
    parts = re.split(r"[^a-z]+", name)
    return "min" if any(word in name for word in _FALLING) or not _FALLING_PARTS.isdisjoint(parts) else "max"


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
