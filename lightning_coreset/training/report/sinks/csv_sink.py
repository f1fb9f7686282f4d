"""CSVLogger: scalars, in ``metrics.csv``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_coreset.training.report.sinks.sink import Sink


class CSVSink(Sink):
    """Writes to a CSVLogger."""

    def settings(self, ours: Mapping[str, Any], users: Mapping[str, Any] | None, *, over: bool) -> None:
        """Write nothing: its settings are ``hparams.yaml``, from which modules are built that do not have ours."""
