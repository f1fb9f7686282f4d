"""Reports of pruning while a Trainer trains: to its loggers, the progress bar and the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_coreset.plan import PruningPlan
from lightning_coreset.planning import ModelCost
from lightning_coreset.training.report.console import PlanningProgress, event_report, print_above_bar
from lightning_coreset.training.report.guarded import Guarded
from lightning_coreset.training.report.history import History
from lightning_coreset.training.report.outlets import Outlets
from lightning_coreset.training.report.pages import Pages
from lightning_coreset.training.report.scalars import (
    current_scalars,
    event_scalars,
    logged_step,
    original_scalars,
)


class Reporter:
    """Logs and prints what a callback does. Whatever fails of it is a warning, see :class:`Guarded`.

    Args:
        settings: The settings of the callback by name.
        certify: Whether there will be certificates.
        verbose: Whether to print what each event did.
        metric: The name of what is measured instead of accuracy, if anything.
    """

    def __init__(self, settings: Mapping[str, Any], *, certify: bool, verbose: bool, metric: str = "accuracy") -> None:
        self.verbose = verbose
        self._sparsity_is_shown = False
        self._guarded = Guarded()
        self._outlets = Outlets(self._guarded)
        self._pages = Pages(settings, self._outlets, certify=certify, metric=metric)
        self._has_begun = False

    def fit_start(self, trainer: pl.Trainer) -> None:
        """Arrange what loggers will show."""
        self._sparsity_is_shown = False
        self._has_begun = True
        self._guarded.reset()
        self._outlets.clear()
        with self._guarded(_PAGES):
            self._pages.begin(trainer)

    def batch_start(self, trainer: pl.Trainer, history: History) -> None:
        """Show the sparsity in the progress bar, and as the metric ``sparsity`` to other callbacks.

        Written to the Trainer's metrics, not logged: after every step Lightning converts all that was logged for the
        bar to numbers, and waits for the device to do so.
        """
        if not self._sparsity_is_shown:
            self._sparsity_is_shown = True
            sparsity = history.current.sparsity if history.current else 0.0
            with self._guarded("show the sparsity in the progress bar"):
                trainer.progress_bar_metrics["sparsity"] = sparsity
                trainer.callback_metrics["sparsity"] = torch.tensor(sparsity)

    def planning(self, trainer: pl.Trainer) -> PlanningProgress | None:
        """What to call while a plan is made; ``None`` if not verbose."""
        return PlanningProgress(lambda message: self._print(trainer, lambda: message)) if self.verbose else None

    def event(self, trainer: pl.Trainer, plan: PruningPlan, history: History, when: str) -> None:
        """Report what an event did.

        Args:
            trainer: The Trainer.
            plan: What was done.
            history: All events, this one being the last.
            when: Its time, such as ``"epoch 3"``.
        """
        self._sparsity_is_shown = False
        first = all(record.reached <= 0 for record in history[:-1])
        # No warning for later events: they may ask for less than a channel, as the last ones of "cubic" do.
        if plan.channels_removed == 0 and plan.reached <= 0:
            rank_zero_warn(f"The pruning event of {when} removed no channel:\n{plan}")
        elif self.verbose:
            self._print(trainer, lambda: event_report(plan, when, first=first))
        self._log(trainer, lambda: event_scalars(history[-1]))
        with self._guarded(_PAGES):
            self._pages.event(trainer, plan, history, first=first)

    def accuracy(self, trainer: pl.Trainer, accuracy: float | None, history: History, step: int | None = None) -> None:
        """Log the accuracy of a validation, if it is known, and add it to the current record.

        The accuracy of the sanity check is ignored.
        """
        if accuracy is None or trainer.sanity_checking:
            return
        history.recovered(accuracy)
        self._log(trainer, lambda: {"coreset/accuracy": accuracy}, step)

    def epoch_end(self, trainer: pl.Trainer, history: History, original: ModelCost | None) -> None:
        """Log the size of the model.

        At the step where Lightning logs its metrics of the epoch: one before an event at the next epoch's start.
        """
        self._log_current(trainer, history, original, last_step(trainer))

    def taken_back(self, trainer: pl.Trainer, history: History, original: ModelCost | None) -> None:
        """Log the size of the model after the guard has taken an event back."""
        self._sparsity_is_shown = False
        self._log_current(trainer, history, original, logged_step(trainer))
        with self._guarded(_PAGES):
            self._pages.draw_current(trainer, history)

    def _log_current(self, trainer: pl.Trainer, history: History, original: ModelCost | None, step: int) -> None:
        def scalars() -> Mapping[str, float]:
            if history.current is not None:
                return current_scalars(history.current)
            return {} if original is None else original_scalars(original)

        self._log(trainer, scalars, step)

    def fit_end(self, trainer: pl.Trainer, history: History) -> None:
        """Complete what loggers show."""
        with self._guarded(_PAGES):
            self._pages.draw_accuracy(trainer, history)
        self.interrupted(trainer)

    def interrupted(self, trainer: pl.Trainer) -> None:
        """Write what was left for the end of training; nothing if this was done, or if training has not begun."""
        if self._has_begun:
            self._has_begun = False
            with self._guarded(_PAGES):
                self._pages.end(trainer)
        self._outlets.clear()

    def _log(self, trainer: pl.Trainer, scalars: Callable[[], Mapping[str, float]], step: int | None = None) -> None:
        with self._guarded("log scalars"):
            values = scalars()
            at = logged_step(trainer) if step is None else step
            if values:
                self._outlets.each(trainer, "log scalars", lambda sink: sink.scalars(values, at))

    def _print(self, trainer: pl.Trainer, text: Callable[[], str]) -> None:
        with self._guarded("print what an event did"):
            print_above_bar(trainer, text())


_PAGES = "log pictures, tables and settings"


def last_step(trainer: pl.Trainer) -> int:
    """The step of the last training batch, at which Lightning logs its metrics of an epoch."""
    return max(logged_step(trainer) - 1, 0)
