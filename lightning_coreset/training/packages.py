"""Lightning under both of its names: ``lightning.pytorch`` and ``pytorch_lightning`` are two copies of one library.

A project uses one of them, and libraries that it builds on may use the other. Neither recognises the classes of the
other, so that whatever this package asks about a class, it asks of both.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.fabric.utilities.rank_zero import rank_zero_module  # pyright: ignore[reportPrivateImportUsage]
from lightning.pytorch.utilities.model_helpers import is_overridden as overrides

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


@cache
def kinds(path: str) -> tuple[type, ...]:
    """The class of this name in each package that is installed.

    Args:
        path: The name within the package, as ``"callbacks.EarlyStopping"``.

    Example:
        >>> kinds("callbacks.EarlyStopping")[0]
        <class 'lightning.pytorch.callbacks.early_stopping.EarlyStopping'>
    """
    module, _, name = path.rpartition(".")
    found = [getattr(_module(".".join(filter(None, (package, module)))), name, None) for package in _PACKAGES]
    return tuple(one for one in found if one is not None)


def is_lightning_module(module: object) -> bool:
    """Whether a module is a LightningModule of either package."""
    return isinstance(module, kinds("LightningModule"))


def is_overridden(method: str, pl_module: object) -> bool:
    """Whether a LightningModule has a method of its own, and not that of its base class."""
    return any(overrides(method, pl_module, kind) for kind in kinds("LightningModule") if isinstance(pl_module, kind))


def packages_of(trainer: object) -> list[str]:
    """The packages that a Trainer's class, or one that it is made from, belongs to: the names of their loggers, too."""
    origins = [kind.__module__ for kind in type(trainer).__mro__]
    return [package for package in _PACKAGES if any(one.startswith(f"{package}.") for one in origins)]


@cache
def _module(name: str) -> Any:
    """A module; ``None`` where it cannot be imported, as of an installation that is too old for this Python."""
    if find_spec(name.partition(".")[0]) is None:
        return None
    try:
        return importlib.import_module(name)
    except Exception:
        return None


def first_logger(imported: Iterable[str]) -> logging.Logger:
    """The logger of the package whose module of loggers comes first among the modules that were imported."""
    loggers = [f"{package}.utilities.rank_zero" for package in _PACKAGES]
    return logging.getLogger(next((name for name in imported if name in loggers), loggers[0]))


if TYPE_CHECKING:
    Callback = pl.Callback
else:

    class Callback(*kinds("Callback")):
        """A callback that the Trainers of both packages take for one of theirs."""


# Each package, when it is imported, makes its logger the one that the messages of both go to, and the class above needs
# both. They stay with the package that the project imported: `getLogger("lightning.pytorch").setLevel(...)` counts.
rank_zero_module.log = first_logger(sys.modules)
