"""Everything that is told of pruning while a Trainer trains: to its loggers, to the progress bar, to the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_coreset.plan import PruningPlan
from lightning_coreset.planning import ModelCost
from lightning_coreset.training.report.console import PlanningProgress, event_report, say
from lightning_coreset.training.report.history import History
from lightning_coreset.training.report.scalars import (
    event_scalars,
    log_scalars,
    logged_step,
    original_scalars,
    standing_scalars,
)
from lightning_coreset.training.report.tensorboard import TensorBoardPages


class Reporter:
    """Tells what a callback does.

    Args:
        settings: The settings of the callback by name.
        certify: Whether there will be certificates.
        verbose: Whether to say in the terminal what each event did.
        metric: What is measured in place of accuracy, if anything.
    """

    def __init__(self, settings: Mapping[str, Any], *, certify: bool, verbose: bool, metric: str = "accuracy") -> None:
        self.verbose = verbose
        self._pages = TensorBoardPages(settings, certify=certify, metric=metric)
        self._shown = False

    def fit_start(self, trainer: pl.Trainer) -> None:
        """Prepare TensorBoard's pages."""
        self._shown = False
        self._pages.begin(trainer)

    def batch_start(self, trainer: pl.Trainer, history: History) -> None:
        """Show the sparsity in the progress bar, and as the metric ``sparsity`` to other callbacks.

        Put where it stays, not logged: after every step Lightning makes numbers of all that was logged for the bar,
        and to that end waits for the device.
        """
        if not self._shown:
            self._shown = True
            sparsity = history.standing.sparsity if history.standing else 0.0
            trainer.progress_bar_metrics["sparsity"] = sparsity
            trainer.callback_metrics["sparsity"] = torch.tensor(sparsity)

    def planning(self, trainer: pl.Trainer) -> PlanningProgress | None:
        """Something to call while a plan is made; ``None`` if nobody wants to hear."""
        return PlanningProgress(lambda message: say(trainer, message)) if self.verbose else None

    def event(self, trainer: pl.Trainer, plan: PruningPlan, history: History, when: str) -> None:
        """Tell what an event did.

        Args:
            trainer: The Trainer.
            plan: What was done.
            history: All events, this one being the last.
            when: When it is, in words.
        """
        self._shown = False
        first = all(record.reached <= 0 for record in history[:-1])
        # Later events may well ask for less than a channel, as the last ones of "cubic" do.
        if plan.channels_removed == 0 and plan.reached <= 0:
            rank_zero_warn(f"The pruning event of {when} removed no channel:\n{plan}")
        elif self.verbose:
            say(trainer, event_report(plan, when, first=first))
        log_scalars(trainer, event_scalars(history[-1]))
        self._pages.event(trainer, plan, history, first=first)

    def accuracy(self, trainer: pl.Trainer, accuracy: float | None, history: History, step: int | None = None) -> None:
        """Log the accuracy of a validation, if it is known, and remember it as what training brought back.

        The sanity check before training tells nothing.
        """
        if accuracy is None or trainer.sanity_checking:
            return
        history.recovered(accuracy)
        log_scalars(trainer, {"coreset/accuracy": accuracy}, step)

    def epoch_end(self, trainer: pl.Trainer, history: History, original: ModelCost | None) -> None:
        """Log where the model stands.

        Lightning logs its own metrics of the epoch one step before an event at the next epoch's start.
        """
        self._standing(trainer, history, original, last_step(trainer))

    def taken_back(self, trainer: pl.Trainer, history: History, original: ModelCost | None) -> None:
        """Log where the model stands after the guard has taken an event back."""
        self._shown = False
        self._standing(trainer, history, original, logged_step(trainer))
        self._pages.stand(trainer, history)

    def _standing(self, trainer: pl.Trainer, history: History, original: ModelCost | None, step: int) -> None:
        standing = history.standing
        if standing is not None:
            scalars = standing_scalars(standing)
        else:
            scalars = {} if original is None else original_scalars(original)
        log_scalars(trainer, scalars, step)

    def fit_end(self, trainer: pl.Trainer, history: History) -> None:
        """Complete TensorBoard's pages."""
        self._pages.end(trainer, history)


def last_step(trainer: pl.Trainer) -> int:
    """The step of the batch that was trained on last, where Lightning logs what an epoch came to."""
    return max(logged_step(trainer) - 1, 0)
