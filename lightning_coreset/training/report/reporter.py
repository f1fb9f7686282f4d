"""Reports of pruning while a Trainer trains: to its loggers, the progress bar and the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_coreset.plan import PruningPlan
from lightning_coreset.planning import ModelCost
from lightning_coreset.training.report.console import PlanningProgress, in_notebook, print_above_bar
from lightning_coreset.training.report.events import event_line, event_report
from lightning_coreset.training.report.file_size import state_sizes
from lightning_coreset.training.report.fit import Outcome, Outlook
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
        mode: Whether the largest or the smallest value of it is the best.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        *,
        certify: bool,
        verbose: bool,
        metric: str = "accuracy",
        mode: Literal["max", "min"] = "max",
    ) -> None:
        self.verbose = verbose
        self._metric = metric
        self._better: Callable[[float, float], float] = max if mode == "max" else min
        self._best: float | None = None  # since the last event
        self._announced: Outlook | None = None
        self._began = time.monotonic()
        self._seconds = 0.0
        self._sparsity_is_shown = False
        self._guarded = Guarded()
        self._outlets = Outlets(self._guarded)
        self._pages = Pages(settings, self._outlets, certify=certify, metric=metric)
        self._has_begun = False
        self._original_size: int | None = None

    def fit_start(self, trainer: pl.Trainer) -> None:
        """Arrange what loggers will show."""
        self._sparsity_is_shown = False
        self._best, self._announced = None, None
        self._began, self._seconds = time.monotonic(), 0.0
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

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time of a block as time that pruning takes."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._seconds += time.monotonic() - start

    def note_original(self, pl_module: pl.LightningModule) -> None:
        """Take the module as it is now for the original: it may have been pruned in another run before."""
        with self._guarded(_PRINT):
            self._original_size = state_sizes(pl_module)[1]

    def structure_known(self, trainer: pl.Trainer, outlook: Callable[[], Outlook]) -> None:
        """Print what will be pruned; again only if that has changed, since later steps may show more.

        That an event was taken back, and so comes later, is told by the guard.
        """
        if not self.verbose:
            return
        with self._guarded(_PRINT):
            found = outlook()
            at_any_time = replace(found, times=())
            if at_any_time != self._announced:
                self._announced = at_any_time
                print_above_bar(trainer, str(found))

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
        self._sparsity_is_shown, self._best = False, None
        first = all(record.reached <= 0 for record in history[:-1])
        # No warning for later events: they may ask for less than a channel, as the last ones of "cubic" do.
        if plan.channels_removed == 0 and plan.reached <= 0:
            rank_zero_warn(f"The pruning event of {when} removed no channel:\n{plan.table(_MOST_GROUPS)}")
        elif self.verbose:
            report = event_line if in_notebook() else event_report
            self._print(trainer, lambda: report(plan, history[-1], when, self._metric))
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
        if accuracy == accuracy:  # not NaN
            self._best = accuracy if self._best is None else self._better(self._best, accuracy)
        self._log(trainer, lambda: {"coreset/accuracy": accuracy}, step)

    def epoch_end(self, trainer: pl.Trainer, history: History, original: ModelCost | None) -> None:
        """Log the size of the model.

        At the step where Lightning logs its metrics of the epoch: one before an event at the next epoch's start.
        """
        self._log_current(trainer, history, original, last_step(trainer))

    def taken_back(self, trainer: pl.Trainer, history: History, original: ModelCost | None) -> None:
        """Log the size of the model after the guard has taken an event back."""
        self._sparsity_is_shown, self._best = False, None
        self._log_current(trainer, history, original, logged_step(trainer))
        with self._guarded(_PAGES):
            self._pages.draw_current(trainer, history)

    def _log_current(self, trainer: pl.Trainer, history: History, original: ModelCost | None, step: int) -> None:
        def scalars() -> Mapping[str, float]:
            if history.current is not None:
                return current_scalars(history.current)
            return {} if original is None else original_scalars(original)

        self._log(trainer, scalars, step)

    def fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, history: History) -> None:
        """Complete what loggers show, and print what the whole run has come to."""
        with self._guarded(_PAGES):
            self._pages.draw_accuracy(trainer, history)
        self.interrupted(trainer)
        if self.verbose and history:
            self._print(trainer, lambda: str(self._outcome(pl_module, history)), over=True)

    def interrupted(self, trainer: pl.Trainer) -> None:
        """Write what was left for the end of training; nothing if this was done, or if training has not begun."""
        if self._has_begun:
            self._has_begun = False
            with self._guarded(_PAGES):
                self._pages.end(trainer)
        self._outlets.clear()

    def _outcome(self, pl_module: pl.LightningModule, history: History) -> Outcome:
        whole = time.monotonic() - self._began
        original, now = state_sizes(pl_module)
        sizes = (original if self._original_size is None else self._original_size, now)
        return Outcome(history, sizes, self._metric, self._best, self._seconds, whole)

    def _log(self, trainer: pl.Trainer, scalars: Callable[[], Mapping[str, float]], step: int | None = None) -> None:
        with self._guarded("log scalars"):
            values = scalars()
            at = logged_step(trainer) if step is None else step
            if values:
                self._outlets.each(trainer, "log scalars", lambda sink: sink.scalars(values, at))

    def _print(self, trainer: pl.Trainer, text: Callable[[], str], *, over: bool = False) -> None:
        with self._guarded(_PRINT):
            print_above_bar(trainer, text(), over=over)


_PAGES = "log pictures, tables and settings"
_PRINT = "print what was pruned"
_MOST_GROUPS = 10


def last_step(trainer: pl.Trainer) -> int:
    """The step of the last training batch, at which Lightning logs its metrics of an epoch."""
    return max(logged_step(trainer) - 1, 0)
