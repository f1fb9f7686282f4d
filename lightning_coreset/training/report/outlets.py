"""The loggers of a Trainer, each behind its adapter; none of them can end training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl

from lightning_coreset.training.report.guarded import Guarded
from lightning_coreset.training.report.sinks import Sink, sink_of


class Outlets:
    """Writes to every logger of a Trainer, on rank zero; after one that raises an error, the others have their turn.

    Args:
        guarded: Turns what is raised into one warning for each logger and kind of report.
    """

    def __init__(self, guarded: Guarded) -> None:
        self._guarded = guarded
        self._sinks: list[tuple[Any, Sink]] = []  # loggers may be unhashable, or equal to others

    def each(self, trainer: pl.Trainer, what: str, write: Callable[[Sink], None]) -> None:
        """Call a function with the adapter of every logger.

        Nothing is written during the sanity check.

        Args:
            trainer: The Trainer, with any number of loggers.
            what: What the function does, for the warning, as the continuation of "could not".
            write: The function.
        """
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            with self._guarded(f"{what} with {type(logger).__name__}", logger):
                write(self._sink_of(logger))

    def clear(self) -> None:
        """Forget the loggers: a callback outlives its Trainer, and may be copied and pickled."""
        self._sinks.clear()

    def _sink_of(self, logger: Any) -> Sink:
        for known, sink in self._sinks:
            if known is logger:
                return sink
        sink = sink_of(logger)
        self._sinks.append((logger, sink))
        return sink
