"""One adapter for each kind of logger: how it takes scalars, settings, pictures and tables."""

from __future__ import annotations

from lightning_coreset.training.report.sinks.kinds_of_loggers import sink_of
from lightning_coreset.training.report.sinks.sink import Sink
from lightning_coreset.training.report.sinks.table import Table

__all__ = ["Sink", "Table", "sink_of"]
