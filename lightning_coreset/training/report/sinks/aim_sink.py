"""AimLogger, which comes with Aim and not with Lightning: pictures and texts by its run."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from PIL import Image

from lightning_coreset.training.report.sinks.sink import Sink
from lightning_coreset.training.report.sinks.table import Table


def is_aim_logger(logger: Any) -> bool:
    """Whether a logger's class is Aim's or derived from it; Aim is not imported."""
    return any(kind.__name__ == "AimLogger" and kind.__module__.startswith("aim.") for kind in type(logger).__mro__)


class AimSink(Sink):
    """Writes to an AimLogger."""

    def picture(self, tag: str, draw: Callable[[], Image.Image | None], step: int) -> None:
        """Write a picture, with the steps of scalars."""
        if (image := draw()) is not None:
            self.logger.experiment.track(_aim().Image(image), name=tag, step=step)

    def table(self, tag: str, table: Table, step: int) -> None:
        """Write a table as text: Aim has no tables."""
        self.logger.experiment.track(_aim().Text(table.as_text()), name=tag, step=step)


def _aim() -> Any:
    return import_module("aim")  # it is there, since a logger of its is
