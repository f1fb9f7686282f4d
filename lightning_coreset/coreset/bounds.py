"""The documented place of the theorem in version 0.1; :mod:`lightning_coreset.coreset.sampling_bounds` now."""

from __future__ import annotations

from typing import Any

from lightning_coreset._deprecated import warn_renamed
from lightning_coreset.coreset import sampling_bounds


def __getattr__(name: str) -> Any:
    """A function of the new module, with a warning."""
    if name.startswith("_") or not hasattr(sampling_bounds, name):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warn_renamed(__name__, name, f"{sampling_bounds.__name__}.{name}")
    return getattr(sampling_bounds, name)
