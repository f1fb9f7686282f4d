"""A progress bar while something is measured."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Report = Callable[[float], None]


@contextmanager
def progress_bar(*, shown: bool) -> Iterator[Report]:
    """A function to call with the fraction that is done; it draws tqdm's bar, which Lightning brings.

    Args:
        shown: Whether to draw it.
    """
    bar: Any = _tqdm() if shown else None

    def report(done: float) -> None:
        if bar is not None:
            bar.update(max(round(100 * done) - bar.n, 0))

    try:
        yield report
    finally:
        if bar is not None:
            bar.close()


def _tqdm() -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return None
    form = "{l_bar}{bar}| {elapsed}"
    return tqdm(desc="Measuring the latency of layers", total=100, bar_format=form, leave=False, file=sys.stderr)
