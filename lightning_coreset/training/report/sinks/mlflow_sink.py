"""MLFlowLogger: names that MLflow allows, parameters that cannot change, pictures and tables as artifacts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image

from lightning_coreset.training.report.sinks.allowed_names import AllowedNames
from lightning_coreset.training.report.sinks.sink import Sink
from lightning_coreset.training.report.sinks.table import Table

_MOST_AT_ONCE = 500  # a request takes 1000 metrics and one megabyte


class MLFlowSink(Sink):
    """Writes to an MLFlowLogger.

    Lightning deletes characters of names that MLflow forbids, with a warning each time, so that two names may become
    one. Here they get names that it leaves as they are.
    """

    def __init__(self, logger: Any) -> None:
        super().__init__(logger)
        self._names = AllowedNames()

    def settings(self, ours: Mapping[str, Any], users: Mapping[str, Any] | None, *, over: bool) -> None:
        """Write settings as parameters of the run, those that it does not have yet: they can be written only once."""
        if over:
            return
        known = self._client.get_run(self.logger.run_id).data.params
        self.logger.log_hyperparams({name: value for name, value in ours.items() if name not in known})
        # Lightning cuts values off at 250 characters.
        kept = [name for name, value in ours.items() if name in known and known[name][:250] != str(value)[:250]]
        if kept:
            rank_zero_warn(
                f"MLflow does not change a parameter of a run, so that {', '.join(kept)} keep what was logged first. "
                "Give each fit a logger with a run of its own."
            )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars, some hundreds at a time."""
        items = list(self._names.of(values).items())
        for first in range(0, len(items), _MOST_AT_ONCE):
            self.logger.log_metrics(dict(items[first : first + _MOST_AT_ONCE]), step=step)

    def picture(self, tag: str, draw: Callable[[], Image.Image | None], step: int) -> None:
        """Write a picture, with a step where MLflow is new enough to have one for pictures (2.14)."""
        image = draw()
        if image is None:
            return
        has_steps = "key" in signature(self._client.log_image).parameters
        where = {"key": tag, "step": step} if has_steps else {"artifact_file": f"{tag}/step_{step:08d}.png"}
        self._client.log_image(self.logger.run_id, image, **where)

    def table(self, tag: str, table: Table, step: int) -> None:
        """Write a table as a file, which MLflow shows as a table.

        Its own tables would need pandas, and download what they have for every event, with a progress bar.
        """
        self._client.log_text(self.logger.run_id, table.as_csv(), f"{tag}/step_{step:08d}.csv")

    @property
    def _client(self) -> Any:
        return self.logger.experiment
