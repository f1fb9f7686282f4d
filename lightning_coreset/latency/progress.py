"""A progress bar while something is measured."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any
from collections.abc import Iterator

Report = Callable[[int, int], None]


@contextmanager
def progress_bar(*, shown: bool) -> Iterator[Report]:
    """A function to call with how much is done, of how much; it draws tqdm's bar, which Lightning brings.

    Args:
        shown: Whether to draw it.
    """
    bar: Any = _tqdm() if shown else None

    def report(done: int, total: int) -> None:
        if bar is not None:
            bar.total = max(total, done)
            bar.update(done - bar.n)

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
    return tqdm(desc="Measuring the latency of layers", unit="layer", leave=False, file=sys.stderr)
