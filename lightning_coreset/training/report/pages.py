"""What loggers show beside scalars: arranged charts, pictures, tables, and settings with the hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import lightning.pytorch as pl
from PIL import Image

from lightning_coreset.plan import PruningPlan
from lightning_coreset.training.report.charts import accuracy_chart, widths_chart
from lightning_coreset.training.report.history import History
from lightning_coreset.training.report.hparams import trainers_hyperparameters
from lightning_coreset.training.report.outlets import Outlets
from lightning_coreset.training.report.scalars import logged_step
from lightning_coreset.training.report.sinks import Table


class Pages:
    """Everything that goes to loggers except scalars.

    Args:
        settings: The settings of the callback by name.
        outlets: The loggers.
        certify: Whether there will be certificates.
        metric: The name of what is measured instead of accuracy, if anything.
    """

    def __init__(
        self, settings: Mapping[str, Any], outlets: Outlets, *, certify: bool, metric: str = "accuracy"
    ) -> None:
        self._settings = {f"coreset/{name}": value for name, value in settings.items()}
        self._outlets = outlets
        self._certify = certify
        self._metric = metric
        self._users: dict[str, Any] | None = None

    def begin(self, trainer: pl.Trainer) -> None:
        """Arrange charts and write settings, before the Trainer writes hyperparameters; in ``on_fit_start``."""
        self._users = None
        self._outlets.each(trainer, "arrange charts", lambda sink: sink.arrange(certify=self._certify))
        self._users = users = trainers_hyperparameters(trainer)
        self._outlets.each(trainer, "log settings", lambda sink: sink.settings(self._settings, users, over=False))

    def event(self, trainer: pl.Trainer, plan: PruningPlan, history: History, *, first: bool) -> None:
        """Write what an event did, if it removed channels; with the first one, what is never pruned."""
        if not plan.channels_removed:
            return
        self._table(trainer, "coreset/plan", Table.of_plan(plan))
        if first and plan.skipped:
            self._table(trainer, "coreset/not_pruned", Table.of_skipped(plan))
        self.draw_current(trainer, history)

    def draw_current(self, trainer: pl.Trainer, history: History) -> None:
        """Draw the channels that are left, and accuracy against sparsity."""
        current = history.current
        if current is not None:
            self._picture(trainer, "coreset/channels_left", lambda: widths_chart(current))
        self.draw_accuracy(trainer, history)

    def draw_accuracy(self, trainer: pl.Trainer, history: History) -> None:
        """Draw accuracy against sparsity."""
        self._picture(trainer, "coreset/accuracy_against_sparsity", lambda: accuracy_chart(history, self._metric))

    def end(self, trainer: pl.Trainer) -> None:
        """Write settings where this was left to the user and the Trainer so far."""
        self._outlets.each(trainer, "log settings", lambda sink: sink.settings(self._settings, self._users, over=True))

    def _picture(self, trainer: pl.Trainer, tag: str, draw: Callable[[], Image.Image | None]) -> None:
        once, step = cache(draw), logged_step(trainer)
        self._outlets.each(trainer, "log pictures", lambda sink: sink.picture(tag, once, step))

    def _table(self, trainer: pl.Trainer, tag: str, table: Table) -> None:
        step = logged_step(trainer)
        self._outlets.each(trainer, "log tables", lambda sink: sink.table(tag, table, step))
