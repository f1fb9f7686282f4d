"""Tell the Trainer's loggers what a pruning event came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import lightning.pytorch as pl

from lightning_coreset.plan import PruningPlan
from lightning_coreset.planning import Totals
from lightning_coreset.structure import ChannelGroup


def event_scalars(plan: PruningPlan) -> dict[str, float]:
    """Return what a model is like after a pruning event, as scalars for a logger.

    Args:
        plan: The plan of the event.

    Returns:
        ``coreset/sparsity`` (fraction of the original parameters that is gone), ``coreset/params`` and ``coreset/macs``
        (parameters and multiply-accumulates of one sample that are left) and, for every group,
        ``coreset/channels/<name>`` (channels that are left) and, as far as the plan tells them,
        ``coreset/expected_error/<name>``, ``coreset/certified_error/<name>`` and ``coreset/found_error/<name>``.

    Example:
        >>> from lightning_coreset.plan import GroupPlan
        >>> group = GroupPlan("fc1", channels_before=32, channels_after=8, kept=tuple(range(8)), method="uniform")
        >>> plan = PruningPlan(
        ...     groups=(group,),
        ...     changes=(),
        ...     skipped={},
        ...     requested=0.75,
        ...     reached=0.75,
        ...     unit="params",
        ...     params_original=400,
        ...     params_before=400,
        ...     params_after=100,
        ...     macs_before=384,
        ...     macs_after=96,
        ... )
        >>> for tag, value in event_scalars(plan).items():
        ...     print(tag, value)
        coreset/sparsity 0.75
        coreset/params 100.0
        coreset/macs 96.0
        coreset/channels/fc1 8.0
    """
    return {
        "coreset/sparsity": plan.sparsity,
        "coreset/params": float(plan.params_after),
        "coreset/macs": float(plan.macs_after),
        **{f"coreset/channels/{group.name}": float(group.channels_after) for group in plan.groups},
        **{
            f"coreset/{error}/{group.name}": getattr(group, error)
            for error in ("expected_error", "certified_error", "found_error")
            for group in plan.groups
            if getattr(group, error) is not None
        },
    }


def standing_scalars(totals: Totals, groups: Sequence[ChannelGroup]) -> dict[str, float]:
    """The same scalars for a model before its first event."""
    return {
        "coreset/sparsity": 0.0,
        "coreset/params": float(totals.params),
        "coreset/macs": float(totals.macs),
        **{f"coreset/channels/{group.name}": float(group.size) for group in groups},
    }


def log_scalars(trainer: pl.Trainer, scalars: Mapping[str, float], step: int | None = None) -> None:
    """Hand scalars to every logger of the Trainer, on rank zero.

    Unlike ``LightningModule.log`` this works in every hook, and at once. During the sanity check nothing is logged.

    Args:
        trainer: The Trainer, with any number of loggers.
        scalars: Values by tag.
        step: Where on the loggers' axis of steps. By default where Lightning itself logs now: the number of batches
            that led to an optimizer step.
    """
    if not scalars or trainer.sanity_checking or not trainer.is_global_zero:
        return
    if step is None:
        # Private, but the axis of all that Lightning logs (see its LearningRateMonitor): `global_step` counts the steps
        # of every optimizer, so that with two of them the curves would drift apart.
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
    for logger in trainer.loggers:
        logger.log_metrics(dict(scalars), step=step)
