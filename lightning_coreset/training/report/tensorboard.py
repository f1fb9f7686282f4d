"""TensorBoard's own pages: a layout of charts, images, tables, and settings with the hyperparameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from lightning_coreset._compat import logs_default_metric
from lightning_coreset.plan import PruningPlan
from lightning_coreset.training.packages import kinds
from lightning_coreset.training.report.charts import accuracy_chart, widths_chart
from lightning_coreset.training.report.history import History
from lightning_coreset.training.report.hparams import trainers_hyperparameters, write_hyperparameters
from lightning_coreset.training.report.scalars import logged_step

# Regular expressions of tags: they also match the tags of all groups, and tags with a logger's prefix.
_LAYOUT = {
    "Pruning": {
        "accuracy": ["Multiline", [".*coreset/accuracy$", ".*coreset/accuracy_(before|after)$"]],
        "sparsity": ["Multiline", [".*coreset/sparsity$"]],
        "ratio requested and reached": ["Multiline", [".*coreset/requested$", ".*coreset/reached$"]],
        "parameters": ["Multiline", [".*coreset/params$"]],
        "multiply-accumulates of one sample": ["Multiline", [".*coreset/macs$"]],
    },
    "Groups of channels": {
        "fraction of channels kept": ["Multiline", [".*coreset_keep_ratio/"]],
        "channels": ["Multiline", [".*coreset_channels/"]],
        "expected error of the next layer": ["Multiline", [".*coreset_expected_error/"]],
    },
}
_CERTIFICATES = {
    "Certificates": {
        "error certified never to be exceeded": ["Multiline", [".*coreset_certified_error/"]],
        "largest error found": ["Multiline", [".*coreset_found_error/"]],
    }
}


class TensorBoardPages:
    """Everything in TensorBoard except scalars, for every TensorBoardLogger of a Trainer, on rank zero.

    It is only shown: if any of it fails, there is one warning, and training continues without these pages.

    Args:
        settings: The settings of the callback by name.
        certify: Whether there will be certificates.
        metric: The name of what is measured instead of accuracy, if anything.
    """

    def __init__(self, settings: Mapping[str, Any], *, certify: bool, metric: str = "accuracy") -> None:
        self._metric = metric
        self._settings = settings
        self._layout = _LAYOUT | (_CERTIFICATES if certify else {})
        self._failed = False
        self._user_params: dict[str, Any] = {}

    def begin(self, trainer: pl.Trainer) -> None:
        """Write the layout of custom scalars, and hyperparameters if the Trainer is about to; in ``on_fit_start``.

        TensorBoard uses the last layout of a run: written so early, this one does not replace the user's own.
        """
        self._failed = False
        self._user_params = trainers_hyperparameters(trainer)

        def write(logger: TensorBoardLogger) -> None:
            logger.experiment.add_custom_scalars(self._layout)
            if self._written_by_trainer(logger):
                write_hyperparameters(logger, self._user_params, self._settings)

        self._for_each(trainer, write)

    def event(self, trainer: pl.Trainer, plan: PruningPlan, history: History, *, first: bool) -> None:
        """Write what an event did, if it removed channels; with the first one, what is never pruned."""
        if not plan.channels_removed:
            return
        step = logged_step(trainer)

        def write(logger: TensorBoardLogger) -> None:
            logger.experiment.add_text("coreset/plan", _plan_as_markdown(plan), step)
            if first and plan.skipped:
                logger.experiment.add_text("coreset/not_pruned", _skipped_as_markdown(plan), step)

        self._for_each(trainer, write)
        self.draw_current(trainer, history)

    def draw_current(self, trainer: pl.Trainer, history: History) -> None:
        """Draw the channels that are left, and accuracy against sparsity."""
        current = history.current
        if current is not None:
            self._show(trainer, "coreset/channels_left", lambda: widths_chart(current))
        self._show(trainer, "coreset/accuracy_against_sparsity", lambda: accuracy_chart(history, self._metric))

    def end(self, trainer: pl.Trainer, history: History) -> None:
        """Draw the final accuracy, and write hyperparameters if the Trainer did not."""
        self._show(trainer, "coreset/accuracy_against_sparsity", lambda: accuracy_chart(history, self._metric))

        def write(logger: TensorBoardLogger) -> None:
            if not self._written_by_trainer(logger):
                write_hyperparameters(logger, self._user_params, self._settings)

        self._for_each(trainer, write)

    def _show(self, trainer: pl.Trainer, tag: str, draw: Callable[[], Image.Image | None]) -> None:
        step = logged_step(trainer)

        def write(logger: TensorBoardLogger) -> None:
            chart = draw()
            if chart is not None:
                logger.experiment.add_image(tag, np.asarray(chart), step, dataformats="HWC")

        self._for_each(trainer, write)

    def _written_by_trainer(self, logger: TensorBoardLogger) -> bool:
        return bool(self._user_params) and logs_default_metric(logger)

    def _for_each(self, trainer: pl.Trainer, write: Callable[[TensorBoardLogger], None]) -> None:
        if self._failed or not trainer.is_global_zero:
            return
        try:
            for logger in trainer.loggers:
                if isinstance(logger, kinds("loggers.TensorBoardLogger")):
                    write(cast(TensorBoardLogger, logger))
        except Exception as error:
            self._failed = True
            rank_zero_warn(
                f"TensorBoard gets scalars only, since its images and tables could not be written: {error!r}"
            )


def _plan_as_markdown(plan: PruningPlan) -> str:
    """The totals of a plan, and its table."""
    head, *rows = plan.rows()
    table = _table(head, [(f"`{name}`", *cells) for name, *cells in rows])
    return "\n".join([*(f"- {line}" for line in plan.totals()), "", table])


def _skipped_as_markdown(plan: PruningPlan) -> str:
    return _table(("layer", "why its channels stay"), [(f"`{name}`", why) for name, why in plan.skipped.items()])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])
