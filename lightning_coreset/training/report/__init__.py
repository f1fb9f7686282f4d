"""Reports of pruning: records, what loggers are given, output in the terminal."""

from __future__ import annotations

from lightning_coreset.training.report.console import printable, summary
from lightning_coreset.training.report.fit import Outlook
from lightning_coreset.training.report.guarded import Guarded
from lightning_coreset.training.report.history import History
from lightning_coreset.training.report.hparams import settings
from lightning_coreset.training.report.records import EventRecord, GroupRecord
from lightning_coreset.training.report.reporter import Reporter, last_step
from lightning_coreset.training.report.scalars import logged_step

__all__ = [
    "EventRecord",
    "GroupRecord",
    "Guarded",
    "History",
    "Outlook",
    "Reporter",
    "last_step",
    "logged_step",
    "printable",
    "settings",
    "summary",
]
