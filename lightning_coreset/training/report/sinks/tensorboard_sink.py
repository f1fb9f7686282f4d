"""TensorBoardLogger: a layout of charts, images, text, and hyperparameters that are written once.

TensorBoard uses the first set of hyperparameters of a run and ignores all later ones. So the settings are written
together with the hyperparameters of the module and the datamodule, right before the Trainer writes these. If the
Trainer writes none, they are written after training, so that those that the user writes come first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from lightning_coreset._compat import add_summaries, as_logged, logs_default_metric, with_logger_prefix
from lightning_coreset.training.report.sinks.sink import Sink
from lightning_coreset.training.report.sinks.table import Table

_METRICS = ("coreset/accuracy", "coreset/sparsity", "coreset/params", "coreset/macs")

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
        "largest error: certified (a bound) and found (an input)": [
            "Multiline",
            [".*coreset_certified_error/", ".*coreset_found_error/"],
        ],
    }
}


class TensorBoardSink(Sink):
    """Writes to a TensorBoardLogger."""

    def arrange(self, *, certify: bool) -> None:
        """Write the layout of the page of custom scalars.

        TensorBoard uses the last one of a run: written when training begins, ours does not replace the user's own.
        """
        self.logger.experiment.add_custom_scalars(_LAYOUT | (_CERTIFICATES if certify else {}))

    def settings(self, ours: Mapping[str, Any], users: Mapping[str, Any] | None, *, over: bool) -> None:
        """Write settings with the user's hyperparameters, before the Trainer does, or else after training."""
        if over != self._comes_before_trainer(users):
            self._write_hyperparameters(ours, users)

    def picture(self, tag: str, draw: Callable[[], Image.Image | None], step: int) -> None:
        """Write a picture."""
        if (image := draw()) is not None:
            self.logger.experiment.add_image(tag, np.asarray(image), step, dataformats="HWC")

    def table(self, tag: str, table: Table, step: int) -> None:
        """Write a table as Markdown, which TensorBoard formats."""
        self.logger.experiment.add_text(tag, table.as_markdown(), step)

    def _comes_before_trainer(self, users: Mapping[str, Any] | None) -> bool:
        """Whether the Trainer writes hyperparameters, be it none at all, which would be the first set."""
        return users is not None and logs_default_metric(self.logger)

    def _write_hyperparameters(self, ours: Mapping[str, Any], users: Mapping[str, Any] | None) -> None:
        """Write one set of hyperparameters, in the form that Lightning gives them.

        Not by ``logger.log_hyperparams``, which also writes to ``hparams.yaml``: models are built from that file, and
        do not have these arguments.
        """
        from torch.utils.tensorboard.summary import hparams  # takes seconds where TensorFlow is installed

        metrics = with_logger_prefix(self.logger, dict.fromkeys(_METRICS, 0.0))  # only the names matter
        if self._comes_before_trainer(users):
            metrics = {"hp_metric": -1.0} | metrics
        add_summaries(self.logger.experiment, hparams(as_logged({**(users or {}), **ours}), metrics))
