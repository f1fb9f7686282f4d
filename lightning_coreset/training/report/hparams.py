"""The callback's settings and the user's hyperparameters, as loggers show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

import lightning.pytorch as pl

from lightning_coreset._arguments import is_default
from lightning_coreset._compat import logged_hyperparameters

_ALWAYS = {"pruning_ratio", "method", "schedule"}  # TensorBoard shows five at first: leave room for the user's own
_NEVER = {"self", "example_inputs", "verbose"}


def settings(init: Callable[..., None], arguments: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """The arguments of a callback that distinguish runs: some always, the others if they are not the default.

    Args:
        init: The constructor.
        arguments: Its arguments by name; names that are not its own are ignored.

    Example:
        >>> def init(self, method="magnitude", *, seed=0, ignore=()): ...
        >>> settings(init, {"method": "magnitude", "seed": 0, "ignore": ["stem", "head"]})
        {'method': 'magnitude', 'ignore': 'stem, head'}
    """
    chosen = {}
    for name, parameter in signature(init).parameters.items():
        if name in arguments and name not in _NEVER:
            value, default = arguments[name], parameter.default
            if name in _ALWAYS or not is_default(value, default):
                chosen[name] = _plain(value)
    return chosen


def _plain(value: Any) -> bool | int | float | str:
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{_plain(key)}: {_plain(part)}" for key, part in value.items())
    if isinstance(value, Sequence):
        return ", ".join(str(_plain(part)) for part in value)
    return getattr(value, "__qualname__", None) or str(value)


def trainers_hyperparameters(trainer: pl.Trainer) -> dict[str, Any] | None:
    """The hyperparameters that the Trainer is about to log, by its own private rule; ``None`` if it logs none.

    They may be empty, as after ``save_hyperparameters()`` in a module without arguments: then the Trainer logs an empty
    set.
    """
    if not getattr(trainer, "enable_autolog_hparams", True):
        return None
    sources = [trainer.lightning_module, getattr(trainer, "datamodule", None)]
    logged = [found for source in sources if source and (found := logged_hyperparameters(source)) is not None]
    if not logged:
        return None
    return {name: value for params in logged for name, value in params.items() if name != "_class_path"}
