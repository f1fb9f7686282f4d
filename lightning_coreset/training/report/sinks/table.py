"""A table for loggers."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_coreset.plan import PruningPlan
from lightning_coreset.tables import text_table


@dataclass(frozen=True)
class Table:
    """A table of strings.

    Attributes:
        columns: The headings.
        rows: The cells, each row as long as ``columns``; the first cell is the name of a module.
        notes: Lines that stand above the table, for loggers that have a place for them.

    Example:
        >>> table = Table(("group", "kept"), [("fc1", "50%")], notes=["params 8 -> 4"])
        >>> print(table.as_markdown())
        - params 8 -> 4
        <BLANKLINE>
        | group | kept |
        | --- | --- |
        | `fc1` | 50% |
        >>> print(table.as_text())
        params 8 -> 4
        group  kept
        -----------
        fc1     50%
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    @classmethod
    def of_plan(cls, plan: PruningPlan) -> Table:
        """What an event did: a row for each group; the totals are notes."""
        columns, *rows = plan.rows()
        return cls(columns, rows, plan.totals())

    @classmethod
    def of_skipped(cls, plan: PruningPlan) -> Table:
        """The layers that are never pruned, and why."""
        return cls(("layer", "why its channels stay"), list(plan.skipped.items()))

    def as_markdown(self) -> str:
        """The table in Markdown, names as code."""
        named = [(f"`{name}`", *cells) for name, *cells in self.rows]
        lines = ["| " + " | ".join(cells) + " |" for cells in [self.columns, ["---"] * len(self.columns), *named]]
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([*notes, *([""] if notes else []), *lines])

    def as_csv(self) -> str:
        """The table as comma-separated values."""
        file = io.StringIO(newline="")
        csv.writer(file).writerows([self.columns, *self.rows])
        return file.getvalue()

    def as_text(self) -> str:
        """The table in aligned columns, for a font of fixed width."""
        return "\n".join([*self.notes, text_table([self.columns, *self.rows])])
