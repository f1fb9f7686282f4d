"""Output in the terminal: tables, and messages while a long plan is made."""

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
from lightning_coreset.training.packages import packages_of
from lightning_coreset.training.report.history import History

_MOST_ROWS = 24
_MOST_SKIPPED = 8


def print_above_bar(trainer: pl.Trainer, message: str) -> None:
    """Print a message on rank zero, above the progress bar if there is one, otherwise through Lightning's logger.

    A logged line would break the bar in two. Nothing is printed if Lightning's logger is set to a higher level. Lines
    go one by one: with rich's bar in a notebook, several in one write end in a RecursionError.
    """
    bar = trainer.progress_bar_callback
    if bar is None or not getattr(bar, "is_enabled", True):
        rank_zero_info(message)
    elif trainer.is_global_zero and all(map(_shows_information, packages_of(trainer))):
        for line in printable(message).splitlines():
            bar.print(line)


def _shows_information(package: str) -> bool:
    return logging.getLogger(package).isEnabledFor(logging.INFO)


def printable(text: str) -> str:
    """A text with question marks for what the console has no characters for, such as those of other alphabets."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def summary(history: History) -> str:
    """The table of all events."""
    return pretty_table(history.rows()) if history else str(history)


def pretty_table(rows: Sequence[Sequence[str]], *, most: int | None = None) -> str:
    """A table, made by rich if it is installed and the output is a terminal.

    Args:
        rows: The cells; the first row is the headings.
        most: The most rows shown below the headings; others are counted.
    """
    shown = rows if most is None else rows[: most + 1]
    table = _rich_table(shown) if find_spec("rich") and _is_terminal() else text_table(shown)
    hidden = len(rows) - len(shown)
    return f"{table}\n... and {hidden} more" if hidden else table


def _is_terminal() -> bool:
    """Whether the output is a terminal that can show the lines of a table."""
    try:
        return sys.stdout.isatty() and printable("─") == "─"
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False


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
    """What an event did: a table of the groups that shrank, and totals.

    Args:
        plan: The plan of the event.
        when: Its time, for the heading.
        first: Whether it is the first one. Skipped layers are the same at every event and shown only once.
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
    numbers = plan.numbers()
    lines += numbers[:_MOST_SKIPPED]
    if len(numbers) > _MOST_SKIPPED:
        lines.append(f"... and {len(numbers) - _MOST_SKIPPED} more, see the plan's `attributes`")
    if first:
        skipped = [f"not pruned: {name} {reason}" for name, reason in plan.skipped.items()]
        lines += skipped[:_MOST_SKIPPED]
        if len(skipped) > _MOST_SKIPPED:
            lines.append(f"... and {len(skipped) - _MOST_SKIPPED} more, see the plan's `skipped`")
    return "\n".join(lines)


class PlanningProgress:
    """Reports the progress of a plan that takes longer than a few seconds.

    Args:
        write: Called with every message.
        patience: Seconds before the first message and between two of them.
    """

    def __init__(self, write: Callable[[str], None], patience: float = 5.0) -> None:
        self._write = write
        self._patience = patience
        self._start = self._last_message = time.monotonic()

    def __call__(self, group: str, position: int, count: int) -> None:
        """Report that the planner is at a group, if the last message is long enough ago.

        Args:
            group: Its name.
            position: Its number, from 1.
            count: How many there are.
        """
        now = time.monotonic()
        if now - self._last_message >= self._patience:
            self._last_message = now
            self._write(f"Planning a pruning event: group {position} of {count} ({group}), {now - self._start:.0f} s")
