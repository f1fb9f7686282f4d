"""Modes that see only the operations that concern them: every mode that sees all makes every operation slower."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from lightning_coreset._compat import DispatchMode


class Concerned(Protocol):
    """A mode that says which operators it does something about."""

    def concerns(self, function: Any, /) -> bool:
        """Whether the mode does more than run an operator; the same for all calls of it."""
        ...

    def __enter__(self) -> Any: ...

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any, /) -> Any: ...


class WhereConcerned(DispatchMode):
    """Enters modes for the operations alone that concern them.

    On networks of many small operations, most of a trial's time went into modes that had nothing to do.

    Args:
        modes: The modes, the innermost last.
    """

    def __init__(self, modes: Sequence[Concerned]) -> None:
        super().__init__()
        self._modes = tuple(modes)
        self._known: dict[Any, tuple[Concerned, ...]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation in the modes that it concerns."""
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation in the modes that it concerns, also where this mode itself is not entered."""
        concerned = self._known.get(func)
        if concerned is None:
            concerned = self._known[func] = tuple(mode for mode in self._modes if mode.concerns(func))
        if not concerned:
            return func(*args, **kwargs)
        with ExitStack() as stack:
            for mode in concerned:
                stack.enter_context(mode)
            return func(*args, **kwargs)
