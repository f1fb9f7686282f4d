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
        warnings.warn(f"{module}.{name} was renamed: use {renamed[name]}.", DeprecationWarning, stacklevel=2)
        return getattr(sys.modules[module], renamed[name])

    return find
