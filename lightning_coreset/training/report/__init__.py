"""What is told of pruning: records, scalars for every logger, pages for TensorBoard, words for the terminal."""

from __future__ import annotations

from lightning_coreset.training.report.console import summary
from lightning_coreset.training.report.history import EventRecord, GroupRecord, History
from lightning_coreset.training.report.hparams import settings
from lightning_coreset.training.report.reporter import Reporter, last_step
from lightning_coreset.training.report.scalars import log_scalars, logged_step

__all__ = [
    "EventRecord",
    "GroupRecord",
    "History",
    "Reporter",
    "last_step",
    "log_scalars",
    "logged_step",
    "settings",
    "summary",
]
