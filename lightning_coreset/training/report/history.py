"""The records of all pruning events of a training run, as a table, a file and plain data."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from lightning_coreset._deprecated import warn_renamed
from lightning_coreset.plan import PruningPlan
from lightning_coreset.plan_tables import UNITS
from lightning_coreset.planning import ModelCost
from lightning_coreset.tables import html_lines, html_table, text_table
from lightning_coreset.training.report.records import EventRecord, GroupRecord

if TYPE_CHECKING:
    from pandas import DataFrame  # pyright: ignore[reportMissingImports]

_LATENCIES = ("latency", "latency measured")

__all__ = ["EventRecord", "GroupRecord", "History"]  # pickles of version 0.1 find the records here


class History(list[EventRecord]):
    """The records of all events so far, including those that were taken back; a list that prints as a table.

    Example:
        >>> import lightning.pytorch as pl
        >>> from lightning_coreset import CoresetPruningCallback
        >>> pruning = CoresetPruningCallback(0.5)
        >>> pruning.history  # one record an event, once a Trainer has trained with it
        <History: no events>

    Attributes:
        metric: What its table calls the accuracies: the name of what was measured.
    """

    metric: str = "accuracy"

    def add(
        self,
        plan: PruningPlan,
        original: ModelCost,
        *,
        epoch: int,
        step: int,
        accuracy_before: float | None = None,
        accuracy_after: float | None = None,
    ) -> EventRecord:
        """Append the record of an event.

        Args:
            plan: What it did.
            original: Parameters, MACs and widths of the model before the first event.
            epoch: Its epoch.
            step: Its step on the loggers' axis.
            accuracy_before: Accuracy right before it.
            accuracy_after: Accuracy right after it.

        Returns:
            The record.
        """
        record = EventRecord.of(
            plan,
            original,
            self.current,
            epoch=epoch,
            step=step,
            accuracy_before=accuracy_before,
            accuracy_after=accuracy_after,
        )
        self.append(record)
        return record

    @property
    def current(self) -> EventRecord | None:
        """The last event that was not undone; its record describes the present model."""
        return next((record for record in reversed(self) if not record.reverted), None)

    @property
    def standing(self) -> EventRecord | None:
        """The old name of :attr:`current`."""
        warn_renamed("History", "standing", "current")
        return self.current

    def recovered(self, accuracy: float) -> None:
        """Set the accuracy of the latest validation in the current record."""
        self._replace_current(accuracy_recovered=accuracy)

    def revert(self) -> None:
        """Mark the current record as taken back."""
        self._replace_current(reverted=True)

    def _replace_current(self, **changes: Any) -> None:
        for index in reversed(range(len(self))):
            if not self[index].reverted:
                self[index] = replace(self[index], **changes)
                return

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write a table with a row for every event.

        Columns of a group end in its name (``channels/fc1``), so that ``frame.filter(like="channels/")`` finds them in
        pandas. A value that was not measured is empty.

        Args:
            path: The file; an existing one is replaced.
        """
        rows = [record.flat() for record in self]
        columns = _known_columns(rows)
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    def to_dataframe(self) -> DataFrame:
        """The same table as a data frame of pandas, with the columns of :meth:`to_csv` and a row for every event.

        Epochs, steps, parameters and MACs are integers, ratios, errors and accuracies floats (NaN where they were not
        measured), ``reverted`` a bool. Columns of which nothing is known are left out, but for the accuracies.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            import pandas  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(
                "Expected pandas to be installed for to_dataframe but it cannot be imported. Install it (pip install "
                "pandas), or write the table with to_csv."
            ) from error
        rows = [record.flat() for record in self]
        frame = pandas.DataFrame(rows, columns=_known_columns(rows))
        numbers = [name for name in frame if str(name).startswith(_FLOATS)]
        return frame.astype(dict.fromkeys(numbers, "float64"))

    def to_dicts(self) -> list[dict[str, Any]]:
        """Plain data for checkpoints."""
        return [record.to_dict() for record in self]

    @classmethod
    def from_dicts(cls, plain: Iterable[Mapping[str, Any]]) -> History:
        """The inverse of :meth:`to_dicts`."""
        return cls(map(EventRecord.from_dict, plain))

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of the table, with a row of headings; empty columns are left out."""
        heads = ("epoch", "step", "requested", "reached", "sparsity", "params", "MACs", *_LATENCIES)
        heads = (*heads, f"{self.metric} before", f"{self.metric} after", "recovered")
        cells = [
            (
                *(str(record.epoch), str(record.step)),
                *(f"{ratio:.2%}" for ratio in (record.requested, record.reached, record.sparsity)),
                *(f"{record.params:,}", f"{record.macs:,}"),
                *map(_milliseconds, (record.latency, record.latency_measured)),
                *map(_number, (record.accuracy_before, record.accuracy_after, record.accuracy_recovered)),
                "taken back" if record.reverted else "",
            )
            for record in self
        ]
        table = [(*heads, ""), *cells]
        known = [column for column in range(len(table[0])) if any(row[column] for row in cells)]
        return [tuple(row[column] for column in known) for row in table]

    def __str__(self) -> str:
        """The table."""
        return text_table(self.rows(), names=False) if self else "There has been no pruning event yet."

    def __repr__(self) -> str:
        last = self.current
        if last is None:
            return f"<History: {len(self)} events, all taken back>" if self else "<History: no events>"
        events = f"{len(self)} event{'s' * (len(self) != 1)}"
        return f"<History: {events}, {last.reached:.2%} of the {UNITS.get(last.unit, last.unit)} removed>"

    def _repr_html_(self) -> str:
        """What notebooks show: the table."""
        return html_table(self.rows(), names=False) if self else html_lines([str(self)])


_FLOATS = (
    "accuracy_",
    "requested",
    "reached",
    "sparsity",
    "keep_ratio/",
    "expected_",
    "certified_",
    "found_",
)


def _known_columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    known = (column for row in rows for column in row if "/" not in column or row[column] is not None)
    return list(dict.fromkeys(known)) or ["epoch", "step"]


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.4g} ms"


def _number(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{accuracy:.4f}"
