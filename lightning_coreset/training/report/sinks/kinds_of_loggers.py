"""Which adapter a logger gets, found without importing the package that it writes with."""

from __future__ import annotations

from typing import Any

from lightning_coreset.training.packages import kinds
from lightning_coreset.training.report.sinks.aim_sink import AimSink, is_aim_logger
from lightning_coreset.training.report.sinks.comet_sink import CometSink
from lightning_coreset.training.report.sinks.csv_sink import CSVSink
from lightning_coreset.training.report.sinks.mlflow_sink import MLFlowSink
from lightning_coreset.training.report.sinks.sink import Sink
from lightning_coreset.training.report.sinks.tensorboard_sink import TensorBoardSink

# WandbLogger has all that the general adapter asks for.
_SINKS: dict[str, type[Sink]] = {
    "loggers.TensorBoardLogger": TensorBoardSink,
    "loggers.CSVLogger": CSVSink,
    "loggers.MLFlowLogger": MLFlowSink,
    "loggers.CometLogger": CometSink,
}


def sink_of(logger: Any) -> Sink:
    """The adapter of a logger, by its class or one that it is derived from.

    Args:
        logger: A logger of a Trainer of either package; for one of an unknown class only Lightning's public interface
            is used, see :class:`Sink`.
    """
    for path, sink in _SINKS.items():
        if isinstance(logger, kinds(path)):
            return sink(logger)
    return AimSink(logger) if is_aim_logger(logger) else Sink(logger)
