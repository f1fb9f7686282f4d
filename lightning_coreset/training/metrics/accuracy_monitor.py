"""What is measured of a model, and which values of it are better."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from torchmetrics import Metric

from lightning_coreset._arguments import check_left_alone, defaults_of, is_whole_number

Mode: TypeAlias = Literal["max", "min"]

_FALLING = ("loss", "error", "perplexity")
"""Words in names of numbers of which less is better, and below whole parts of such names."""
_FALLING_PARTS = frozenset({"mae", "mse", "rmse", "mape", "nll", "ppl", "fid", "wer", "cer", "bpd"})

_BETTER: dict[Mode, str] = {"max": "more", "min": "less"}


@dataclass(frozen=True, kw_only=True, eq=False)  # `==` of two metrics of torchmetrics makes a third one
class AccuracyMonitor:
    """What the accuracy of a model is: a classifier's, a metric of yours, or one that the module logs.

    ``CoresetPruningCallback(accuracy=AccuracyMonitor(monitor="val_acc"))`` is the same as
    ``CoresetPruningCallback(monitor="val_acc")``.

    Attributes:
        metric: A metric of torchmetrics, of which a copy is called as ``metric(outputs, targets)`` on the outputs and
            targets of validation.
        monitor: Or the name of a metric that the module logs in validation, such as ``"val_acc"``.
        monitor_mode: Whether ``"max"`` or ``"min"`` is better. By default as ``metric.higher_is_better`` says, and what
            it says cannot be contradicted; nor can accuracy, of which more is better; ``"min"`` for a ``monitor`` with
            "loss", "error", "rmse" or the like in its name; else ``"max"``.
        eval_batches: The number of recent validation batches that it is measured on right before and after an event; 0
            turns that off.

    Raises:
        ValueError: If a value is none of these, both ``metric`` and ``monitor`` are given, or ``monitor_mode`` is not
            what the number is known to be.

    Example:
        >>> from lightning_coreset import AccuracyMonitor, CoresetPruningCallback
        >>> error = AccuracyMonitor(monitor="val_rmse", eval_batches=4)
        >>> pruning = CoresetPruningCallback(0.5, accuracy=error)
        >>> error.name, error.mode
        ('val_rmse', 'min')
    """

    metric: Metric | None = None
    monitor: str | None = None
    monitor_mode: Mode | None = None
    eval_batches: int = 8

    def __post_init__(self) -> None:
        metric, monitor, mode = self.metric, self.monitor, self.monitor_mode
        if metric is not None and monitor is not None:
            raise ValueError(f"Expected either `metric` or `monitor` but got both: {metric!r} and {monitor!r}.")
        if monitor is not None and not (isinstance(monitor, str) and monitor):
            raise ValueError(f"Expected `monitor` to be the name of a logged metric but got {monitor!r}.")
        if mode is not None and mode not in get_args(Mode):
            raise ValueError(f"Expected `monitor_mode` to be 'max' or 'min' but got {mode!r}.")
        if not is_whole_number(self.eval_batches) or self.eval_batches < 0:
            raise ValueError(f"Expected `eval_batches` to be a non-negative integer but got {self.eval_batches!r}.")
        if metric is not None and not isinstance(metric, Metric):
            raise ValueError(f"Expected `metric` to be one Metric of torchmetrics but got {metric!r}.")
        known = self._known_mode
        if known and mode not in (None, known):
            raise ValueError(
                f"Expected `monitor_mode` to be left out or {known!r} for {self.name}, of which {_BETTER[known]} is "
                f"better, but got {mode!r}. It belongs to the name of a logged metric, such as monitor='val_loss'."
            )

    @property
    def name(self) -> str:
        """``"accuracy"``, the class of the metric, or the name that the module logs."""
        return self.monitor or ("accuracy" if self.metric is None else type(self.metric).__name__)

    @property
    def mode(self) -> Mode:
        """``"max"`` if larger values are better, ``"min"`` if smaller ones are."""
        return self.monitor_mode or self._known_mode or _mode_of(self.monitor)

    @property
    def _known_mode(self) -> Mode | None:
        """What is better of an accuracy or of a metric; ``None`` if that is not known."""
        if self.monitor is not None:
            return None
        if self.metric is None or self.metric.higher_is_better:
            return "max"
        return "min" if self.metric.higher_is_better is False else None


def as_monitor(accuracy: AccuracyMonitor | None, **flat: Any) -> AccuracyMonitor:
    """What the callback's flat arguments say of the accuracy, or the object that was given instead of them.

    Args:
        accuracy: What was given as ``accuracy``.
        flat: The other arguments by name.

    Raises:
        ValueError: If an argument is out of its range, or is given beside the object that has it.
    """
    if accuracy is None:
        return AccuracyMonitor(**flat)
    if not isinstance(accuracy, AccuracyMonitor):
        raise ValueError(
            f"Expected accuracy to be an AccuracyMonitor but got {accuracy!r}. Write "
            "accuracy=AccuracyMonitor(monitor='val_acc')."
        )
    check_left_alone("accuracy", accuracy, flat, defaults_of(AccuracyMonitor))
    return accuracy


def _mode_of(monitor: str | None) -> Mode:
    name = (monitor or "").lower()
    parts = re.split(r"[^a-z]+", name)
    return "min" if any(word in name for word in _FALLING) or not _FALLING_PARTS.isdisjoint(parts) else "max"
