"""Public names that were renamed go on working, with a warning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def deprecated_names(module: str, renamed: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's ``__getattr__`` that finds old names under their new ones.

    Args:
        module: The module's ``__name__``.
        renamed: The new name of every old one, both in this module.

    Returns:
        A function that warns with a ``DeprecationWarning`` and returns the object, and raises ``AttributeError`` for
        any other name.
    """

    def find(name: str) -> Any:
        if name not in renamed:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed(module, name, renamed[name], stacklevel=3)
        return getattr(sys.modules[module], renamed[name])

    return find


def warn_renamed(owner: str, old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn that a module's or a class's name was renamed; by default at the line that calls the caller."""
    warnings.warn(f"{owner}.{old} was renamed: use {new}.", DeprecationWarning, stacklevel=stacklevel)
