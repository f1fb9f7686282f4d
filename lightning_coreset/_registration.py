"""The handle that everything registered by a user returns."""

from __future__ import annotations

from collections.abc import Callable


class Registration:
    """A registration that can be taken back, by ``remove()`` or at the end of a ``with`` block.

    Args:
        undo: Takes the registration back; called once.
    """

    def __init__(self, undo: Callable[[], object]) -> None:
        self._undo: Callable[[], object] | None = undo

    def remove(self) -> None:
        """Take the registration back: what was there before holds again. A second call does nothing."""
        undo, self._undo = self._undo, None
        if undo is not None:
            undo()

    def __enter__(self) -> Registration:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()
