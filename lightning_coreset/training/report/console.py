"""Output in the terminal: where it goes, tables, and messages while a long plan is made."""

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

from lightning_coreset.tables import number_columns, shortened, text_table
from lightning_coreset.training.packages import packages_of
from lightning_coreset.training.report.history import History


def print_above_bar(trainer: pl.Trainer, message: str, *, over: bool = False) -> None:
    """Print a message on rank zero, above the progress bar if there is one, otherwise through Lightning's logger.

    A logged line would break the bar in two. Nothing is printed if Lightning's logger is set to a higher level. Lines
    go one by one: with rich's bar in a notebook, several in one write end in a RecursionError.

    Args:
        trainer: The Trainer.
        message: What to print.
        over: Whether training has ended: tqdm's bar, closed by now, prints nothing any more.
    """
    bar = trainer.progress_bar_callback
    if bar is None or not getattr(bar, "is_enabled", True):
        rank_zero_info(message)
    elif trainer.is_global_zero and all(map(_shows_information, packages_of(trainer))):
        for line in printable(message).splitlines():
            print(line) if over else bar.print(line)


def _shows_information(package: str) -> bool:
    return logging.getLogger(package).isEnabledFor(logging.INFO)


def printable(text: str) -> str:
    """A text with question marks for what the console has no characters for, such as those of other alphabets."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def in_notebook() -> bool:
    """Whether the code runs in a notebook, where what is printed stays below the cell."""
    ipython = sys.modules.get("IPython")  # not a dependency: without it there is no notebook
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


def summary(history: History) -> str:
    """The table of all events."""
    return pretty_table(history.rows(), names=False) if history else str(history)


def pretty_table(rows: Sequence[Sequence[str]], *, most: int | None = None, names: bool = True) -> str:
    """A table, as wide as the terminal at most; made by rich if it is installed and the output is a terminal.

    Args:
        rows: The cells; the first row is the headings.
        most: The most rows shown below the headings; others are counted.
        names: Whether the first column holds names, which are shortened in a narrow terminal.
    """
    shown = rows if most is None else rows[: most + 1]
    terminal = _is_terminal()
    if terminal and names:
        shown = _fitted(shown, shutil.get_terminal_size().columns)
    made_by_rich = terminal and printable("─") == "─" and find_spec("rich")
    table = _rich_table(shown, names) if made_by_rich else text_table(shown, names=names)
    hidden = len(rows) - len(shown)
    return f"{table}\n... and {hidden} more" if hidden else table


def _fitted(rows: Sequence[Sequence[str]], width: int) -> list[tuple[str, ...]]:
    """The rows with names that are short enough for a line to fit; rich puts three blanks between columns."""
    others = sum(3 + max(map(len, column)) for column in list(zip(*rows, strict=True))[1:])
    return [(shortened(row[0], max(width - others, 16)), *row[1:]) for row in rows]


def _is_terminal() -> bool:
    try:
        return sys.stdout.isatty()
    except (AttributeError, ValueError):  # there is none, or it is closed
        return False


def _rich_table(rows: Sequence[Sequence[str]], names: bool) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    head, *body = rows
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name, is_number in zip(head, number_columns(rows, names=names), strict=True):
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in body:
        table.add_row(*row)
    file = io.StringIO()
    width = shutil.get_terminal_size().columns
    Console(file=file, force_terminal=True, width=width, markup=False).print(table)
    return file.getvalue().strip("\n")


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
