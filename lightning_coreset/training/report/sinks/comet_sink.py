"""CometLogger: pictures and tables by its experiment."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from lightning_coreset.training.report.sinks.sink import Sink
from lightning_coreset.training.report.sinks.table import Table


class CometSink(Sink):
    """Writes to a CometLogger, which has no methods for pictures and tables itself."""

    def picture(self, tag: str, draw: Callable[[], Image.Image | None], step: int) -> None:
        """Write a picture to the page of graphics."""
        if (image := draw()) is not None:
            self.logger.experiment.log_image(image, name=tag, step=step)

    def table(self, tag: str, table: Table, step: int) -> None:
        """Write a table as a file of its own: there is no table with steps."""
        name = f"{tag}/step_{step:08d}.csv".replace("/", "_")
        rows = [list(row) for row in table.rows]
        self.logger.experiment.log_table(name, tabular_data=rows, headers=list(table.columns))
