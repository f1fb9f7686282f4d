"""The adapter of loggers that have none of their own, and what those are derived from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from lightning_coreset.training.report.sinks.allowed_names import AllowedNames
from lightning_coreset.training.report.sinks.table import Table


class Sink:
    """Writes to one logger, by Lightning's public ``Logger`` interface and by methods that many loggers add to it.

    Scalars go to ``log_metrics(metrics, step=)``, settings to ``log_hyperparams(params)``, pictures to
    ``log_image(key, images, step=)`` with a list of one PIL image, tables to
    ``log_table(key, columns=, data=, step=)``, or else to ``log_text(key, text, step=)``. What a logger has no method
    for, it is not given. WandbLogger has all of them.

    Args:
        logger: The logger.
    """

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self._plain: AllowedNames | None = None

    def arrange(self, *, certify: bool) -> None:
        """Arrange the charts of scalars, where a logger can.

        Args:
            certify: Whether there will be scalars of certificates.
        """

    def settings(self, ours: Mapping[str, Any], users: Mapping[str, Any] | None, *, over: bool) -> None:
        """Write the callback's settings. Called when training begins, right before the Trainer writes, and at its end.

        Args:
            ours: Plain values, by names with the prefix ``coreset/``.
            users: The hyperparameters that the Trainer is about to write, or has written; ``None`` if it does not.
            over: Whether training is over.
        """
        if not over:
            self.logger.log_hyperparams(dict(ours))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars.

        If the logger raises an error, they are written once more under names of letters, digits and ``_-./`` only, if
        these are others: names of modules may have any character. If this works, it stays so.
        """
        if self._plain is None:
            plain = AllowedNames()
            try:
                return self.logger.log_metrics(dict(values), step=step)
            except Exception:
                if not plain.changes(values):
                    raise
            self.logger.log_metrics(plain.of(values), step=step)
            self._plain = plain
            return None
        return self.logger.log_metrics(self._plain.of(values), step=step)

    def picture(self, tag: str, draw: Callable[[], Image.Image | None], step: int) -> None:
        """Write a picture, if the logger takes pictures and there is one.

        Args:
            tag: Its name, the same at every step.
            draw: Draws it.
            step: The step on the loggers' axis.
        """
        write = self._method("log_image")
        if write is not None and (image := draw()) is not None:
            write(tag, [image], step=step)

    def table(self, tag: str, table: Table, step: int) -> None:
        """Write a table, if the logger takes tables or text."""
        if (write := self._method("log_table")) is not None:
            write(tag, columns=list(table.columns), data=[list(row) for row in table.rows], step=step)
        elif (write := self._method("log_text")) is not None:
            write(tag, table.as_text(), step=step)

    def _method(self, name: str) -> Callable[..., Any] | None:
        method = getattr(self.logger, name, None)
        return method if callable(method) else None
