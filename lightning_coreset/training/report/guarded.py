"""Reports that fail: a warning, and training goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from lightning.pytorch.utilities import rank_zero_warn


class Guarded:
    """Lets no report end training: what a report raises becomes one warning for each kind of report.

    A full disk, a broken pipe, a console that lacks a character or a logger without a network are no reason to lose a
    training run. Ctrl-C is none of these, and is passed on.

    Example:
        >>> guarded = Guarded()
        >>> with guarded("draw nothing"):
        ...     print("drawn")
        drawn
    """

    def __init__(self) -> None:
        self._warned: set[tuple[str, int]] = set()

    def reset(self) -> None:
        """Warn anew."""
        self._warned.clear()

    @contextmanager
    def __call__(self, what: str, source: object = None) -> Iterator[None]:
        """Run a block that reports.

        Args:
            what: What it does, as the continuation of "could not".
            source: The object that may fail, if there are several: each has a warning of its own.
        """
        try:
            yield
        except Exception as error:
            if (what, id(source)) not in self._warned:
                self._warned.add((what, id(source)))
                with suppress(OSError, ValueError):  # nobody can be warned on a closed stream
                    rank_zero_warn(
                        f"Could not {what}: {error!r}. Training goes on; what happened stands in the callback's "
                        "history and plans."
                    )
