"""The callback's settings beside the user's hyperparameters on TensorBoard's page of that name.

TensorBoard takes the first set of hyperparameters of a run and ignores all later ones. So these are written together
with those of the module and the datamodule, right before the Trainer writes the latter; where the Trainer writes none,
only when training is over, so that whatever the user writes by hand in between comes first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.logger import _add_prefix, _convert_params, _flatten_dict, _sanitize_params
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

from lightning_coreset.planning import Request
from lightning_coreset.training.timeline import Timeline

_ALWAYS = {"pruning_ratio", "unit", "method", "schedule", "start", "end"}
_METRICS = ("coreset/accuracy", "coreset/sparsity", "coreset/params", "coreset/macs")


def settings(request: Request, timeline: Timeline, **others: Any) -> dict[str, bool | int | float | str]:
    """The settings of a callback by the names of its arguments, the less common ones only where they are set.

    Args:
        request: What is asked.
        timeline: When the events are.
        others: More settings.
    """
    found = {
        field.name: getattr(source, field.name)
        for source in (timeline, request)  # both know the ratio; the request's may be rules
        for field in fields(source)
        if field.name in _ALWAYS or getattr(source, field.name) != _default(field)
    }
    return {name: _plain(value) for name, value in (found | others).items() if value is not None}


def _default(field: Field[Any]) -> Any:
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _plain(value: Any) -> bool | int | float | str:
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return ", ".join(f"{_plain(key)}: {_plain(part)}" for key, part in value.items())
    if isinstance(value, Sequence):
        return ", ".join(str(_plain(part)) for part in value)
    if is_dataclass(value) and all(getattr(value, field.name) == _default(field) for field in fields(value)):
        return type(value).__name__
    return getattr(value, "__qualname__", None) or str(value)


def trainers_hyperparameters(trainer: pl.Trainer) -> dict[str, Any]:
    """What the Trainer is about to log; empty if nothing. By its own rule, which is private."""
    sources = (trainer.lightning_module, getattr(trainer, "datamodule", None))
    logged: dict[str, Any] = {}
    if getattr(trainer, "enable_autolog_hparams", True):
        for source in sources:
            if source is not None and getattr(source, "_log_hyperparams", False):
                logged |= _convert_params(source.hparams_initial)
    return {name: value for name, value in logged.items() if name != "_class_path"}


def write_hyperparameters(logger: TensorBoardLogger, users: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Write one set of hyperparameters, in the form that Lightning gives them.

    Not by ``logger.log_hyperparams``, which keeps all for ``hparams.yaml``: a model can be made from that file, and
    does not know these arguments.

    Args:
        logger: The logger.
        users: The user's hyperparameters.
        ours: Settings of the callback.
    """
    params = _sanitize_params(_flatten_dict({**users, **{f"coreset/{name}": value for name, value in ours.items()}}))
    tags: dict[str, Any] = dict.fromkeys(_METRICS, 0.0)
    metrics = dict(_add_prefix(tags, logger._prefix, logger.LOGGER_JOIN_CHAR))  # only the names are written
    if users and logger._default_hp_metric:
        metrics = {"hp_metric": -1.0} | metrics
    for summary in hparams(params, metrics):
        logger.experiment._get_file_writer().add_summary(summary)
