"""The callback's settings together with the user's hyperparameters in TensorBoard.

TensorBoard uses the first set of hyperparameters of a run and ignores all later ones. So the settings are written
together with the hyperparameters of the module and the datamodule, right before the Trainer writes these. If the
Trainer writes none, they are written after training, so that those that the user writes come first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_coreset._arguments import is_default
from lightning_coreset._compat import (
    add_summaries,
    as_logged,
    logged_hyperparameters,
    logs_default_metric,
    with_logger_prefix,
)

_ALWAYS = {"pruning_ratio", "method", "schedule"}  # TensorBoard shows five at first: leave room for the user's own
_NEVER = {"self", "example_inputs", "verbose"}
_METRICS = ("coreset/accuracy", "coreset/sparsity", "coreset/params", "coreset/macs")


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


def trainers_hyperparameters(trainer: pl.Trainer) -> dict[str, Any]:
    """The hyperparameters that the Trainer is about to log, by its own private rule; empty if none."""
    sources = (trainer.lightning_module, getattr(trainer, "datamodule", None))
    logged: dict[str, Any] = {}
    if getattr(trainer, "enable_autolog_hparams", True):
        for source in sources:
            if source is not None:
                logged |= logged_hyperparameters(source)
    return {name: value for name, value in logged.items() if name != "_class_path"}


def write_hyperparameters(logger: TensorBoardLogger, users: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Write one set of hyperparameters, in the form that Lightning gives them.

    Not by ``logger.log_hyperparams``, which also writes to ``hparams.yaml``: models are built from that file, and do
    not have these arguments.

    Args:
        logger: The logger.
        users: The user's hyperparameters.
        ours: Settings of the callback.
    """
    from torch.utils.tensorboard.summary import hparams  # takes seconds where TensorFlow is installed

    params = as_logged({**users, **{f"coreset/{name}": value for name, value in ours.items()}})
    tags: dict[str, Any] = dict.fromkeys(_METRICS, 0.0)
    metrics = with_logger_prefix(logger, tags)  # only the names matter
    if users and logs_default_metric(logger):
        metrics = {"hp_metric": -1.0} | metrics
    add_summaries(logger.experiment, hparams(params, metrics))
