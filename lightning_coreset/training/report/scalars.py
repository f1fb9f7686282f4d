"""Scalars for every logger of a Trainer, and their step.

Loggers sort tags by the part before the slash. Tags of single groups have prefixes of their own, so that hundreds of
curves of a deep network do not hide the few of the model.
"""

from __future__ import annotations

import lightning.pytorch as pl

from lightning_coreset._compat import batches_that_stepped
from lightning_coreset.planning import ModelCost
from lightning_coreset.training.report.records import EventRecord

_ERRORS = ("expected_error", "certified_error", "found_error")


def original_scalars(cost: ModelCost) -> dict[str, float]:
    """The size of a model before its first event, under the tags of :func:`current_scalars`."""
    return {
        "coreset/sparsity": 0.0,
        "coreset/params": float(cost.params),
        "coreset/macs": float(cost.macs),
        **({} if cost.latency is None else {"coreset/latency_ms": 1e3 * cost.latency}),
        **{f"coreset_channels/{name}": float(width) for name, width in cost.widths.items()},
        **{f"coreset_keep_ratio/{name}": 1.0 for name in cost.widths},
    }


def current_scalars(record: EventRecord) -> dict[str, float]:
    """The size of a model after an event.

    Args:
        record: The record of the event.

    Returns:
        ``coreset/sparsity`` (fraction of the original parameters that is gone), ``coreset/params`` and ``coreset/macs``
        (parameters and multiply-accumulates of one sample that are left) and, for every group,
        ``coreset_channels/<name>`` and ``coreset_keep_ratio/<name>`` (channels that are left, and their fraction of the
        original ones). With ``unit="latency"`` also ``coreset/latency_ms`` (milliseconds of one run, as predicted).

    Example:
        >>> from lightning_coreset.training.report import GroupRecord
        >>> fc1 = GroupRecord("fc1", channels=8, channels_original=32, method="reconstruction")
        >>> record = EventRecord(
        ...     epoch=1,
        ...     step=100,
        ...     unit="params",
        ...     requested=0.75,
        ...     reached=0.75,
        ...     params=100,
        ...     params_original=400,
        ...     macs=96,
        ...     macs_original=384,
        ...     groups=(fc1,),
        ... )
        >>> for tag, value in current_scalars(record).items():
        ...     print(tag, value)
        coreset/sparsity 0.75
        coreset/params 100.0
        coreset/macs 96.0
        coreset_channels/fc1 8.0
        coreset_keep_ratio/fc1 0.25
    """
    return {
        "coreset/sparsity": record.sparsity,
        "coreset/params": float(record.params),
        "coreset/macs": float(record.macs),
        **({} if record.latency is None else {"coreset/latency_ms": 1e3 * record.latency}),
        **{f"coreset_channels/{group.name}": float(group.channels) for group in record.groups},
        **{f"coreset_keep_ratio/{group.name}": group.keep_ratio for group in record.groups},
    }


def event_scalars(record: EventRecord) -> dict[str, float]:
    """The size of a model after an event, and what the event did.

    Args:
        record: The record of the event.

    Returns:
        The scalars of :func:`current_scalars`, ``coreset/requested`` and ``coreset/reached`` (in the callback's
        ``unit``), and those of the following that are known: ``coreset/accuracy_before``, ``coreset/accuracy_after``,
        ``coreset/latency_measured_ms`` (milliseconds of one run, measured after the last event) and, for every group,
        ``coreset_expected_error/<name>``, ``coreset_certified_error/<name>`` and ``coreset_found_error/<name>``.
    """
    scalars: dict[str, float | None] = {
        "coreset/requested": record.requested,
        "coreset/reached": record.reached,
        "coreset/accuracy_before": record.accuracy_before,
        "coreset/accuracy_after": record.accuracy_after,
        "coreset/latency_measured_ms": None if record.latency_measured is None else 1e3 * record.latency_measured,
        **{f"coreset_{error}/{group.name}": getattr(group, error) for error in _ERRORS for group in record.groups},
    }
    return current_scalars(record) | {tag: value for tag, value in scalars.items() if value is not None}


def logged_step(trainer: pl.Trainer) -> int:
    """The step at which Lightning logs now: the number of batches that led to an optimizer step.

    The axis of all that Lightning logs (see its LearningRateMonitor).
    """
    return batches_that_stepped(trainer)
