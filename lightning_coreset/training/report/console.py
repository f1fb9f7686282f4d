"""What a person reads in the terminal: tables, and a sign of life while a long plan is made."""

from __future__ import annotations

import io
import logging
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from lightning_coreset.plan import PruningPlan, text_table
from lightning_coreset.training.report.history import History

_MOST_ROWS = 24
_MOST_SKIPPED = 8


def say(trainer: pl.Trainer, message: str) -> None:
    """Tell the user something on rank zero, above the progress bar if there is one, else through Lightning's log.

    A log line would break the bar in two. Where Lightning's log is set to be quiet, so is this.
    """
    bar = trainer.progress_bar_callback
    if bar is None or not getattr(bar, "is_enabled", True):
        rank_zero_info(message)
    elif trainer.is_global_zero and logging.getLogger("lightning.pytorch").isEnabledFor(logging.INFO):
        bar.print(message)


def summary(history: History) -> str:
    """All events so far as a table."""
    return pretty_table(history.rows()) if history else str(history)


def pretty_table(rows: Sequence[Sequence[str]], *, most: int | None = None) -> str:
    """A table, with rich where it is installed and the output is a terminal.

    Args:
        rows: The cells, with a row of headings first.
        most: Show no more rows than this below the headings, and count the others.
    """
    shown = rows if most is None else rows[: most + 1]
    table = _rich_table(shown) if find_spec("rich") and sys.stdout.isatty() else text_table(shown)
    hidden = len(rows) - len(shown)
    return f"{table}\n... and {hidden} more" if hidden else table


def _rich_table(rows: Sequence[Sequence[str]]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    head, *body = rows
    numbers = [all(not cell or cell[0] in "-.0123456789" for cell in column) for column in zip(*rows[1:], strict=True)]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name, is_number in zip(head, numbers or [False] * len(head), strict=True):
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in body:
        table.add_row(*row)
    file = io.StringIO()
    width = shutil.get_terminal_size().columns
    Console(file=file, force_terminal=True, width=width, markup=False).print(table)
    return file.getvalue().strip("\n")


def event_report(plan: PruningPlan, when: str, *, first: bool) -> str:
    """What an event did, in a table as short as it can be.

    Args:
        plan: The plan of the event.
        when: Its time.
        first: Whether it is the first one. What is skipped stays the same: it is told once.
    """
    if not plan.channels_removed:
        return f"Pruned nothing more at {when}: {plan.totals()[0]}"
    head, *rows = plan.rows()
    shrinks = [group.channels_after < group.channels_before for group in plan.groups]
    changed = [row for row, shrink in zip(rows, shrinks, strict=True) if shrink]
    lines = [f"Pruned at {when}:", pretty_table([head, *changed], most=_MOST_ROWS)]
    unchanged = len(rows) - len(changed)
    if unchanged:
        lines.append(f"groups that keep all their channels: {unchanged}")
    lines += plan.totals()
    if first:
        skipped = [f"not pruned: {name} {reason}" for name, reason in plan.skipped.items()]
        lines += skipped[:_MOST_SKIPPED]
        if len(skipped) > _MOST_SKIPPED:
            lines.append(f"... and {len(skipped) - _MOST_SKIPPED} more, see the plan's `skipped`")
    return "\n".join(lines)


class PlanningProgress:
    """Says how far a plan is, once it has taken long enough for a user to wonder.

    Args:
        tell: What to do with a message.
        patience: Seconds before the first message and between two of them.
    """

    def __init__(self, tell: Callable[[str], None], patience: float = 5.0) -> None:
        self._tell = tell
        self._patience = patience
        self._begun = self._told = time.monotonic()

    def __call__(self, group: str, position: int, count: int) -> None:
        """Take note that the plan is at a group.

        Args:
            group: Its name.
            position: Its number, from 1.
            count: How many there are.
        """
        now = time.monotonic()
        if now - self._told >= self._patience:
            self._told = now
            self._tell(f"Planning a pruning event: group {position} of {count} ({group}), {now - self._begun:.0f} s")
