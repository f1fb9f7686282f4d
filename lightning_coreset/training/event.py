"""Carry out a plan in the middle of training: model, averaged copies and optimizers together, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_coreset.optimizers import StateSnapshot, slice_optimizer_state
from lightning_coreset.plan import PruningPlan
from lightning_coreset.surgery import Snapshot, apply_changes
from lightning_coreset.training.averaged_models import averaged_copies, shrink_copy
from lightning_coreset.training.rank_consistency import check_agreement
from lightning_coreset.training.strategies import run_on_all_ranks, unwrapped

T = TypeVar("T")


def apply_event(trainer: pl.Trainer, pl_module: pl.LightningModule, plan: PruningPlan, then: Callable[[], T]) -> T:
    """Apply a plan to all that a Trainer carries: the model, averaged copies of it, the state of the optimizers.

    Whatever raises, on whichever rank, everything is as it was before on all ranks. To that end the old tensors are
    held, which costs the memory of both sizes for the time of the event but no copy; what ``then`` itself changes in
    place beside that is its own to undo.

    Args:
        trainer: The Trainer.
        pl_module: Its module.
        plan: What to do, the same on every rank.
        then: What to do last, as a part of it. It may wait for the other ranks, so what can fail on one of them alone
            has to be done :func:`~lightning_coreset.training.strategies.in_step`.

    Returns:
        What ``then`` returned.

    Raises:
        ValueError: If the plan was made for other shapes.
        RuntimeError: If it failed on other ranks only, or the ranks do not have the same plan.
    """
    check_agreement(trainer, pl_module, plan)
    with unwrapped(trainer), _undone_on_failure(trainer, pl_module):
        reset = run_on_all_ranks(trainer, lambda: _apply(trainer, pl_module, plan))
        # It keeps what it compiled for every shape, and would give up after the eighth (`recompile_limit`).
        torch.compiler.reset()
        result = then()
        run_on_all_ranks(trainer, lambda: _warn_of_resets(trainer, reset))
    return result


def _apply(trainer: pl.Trainer, pl_module: pl.LightningModule, plan: PruningPlan) -> list[tuple[str, ...]]:
    """Apply the plan; for every optimizer, the parameters whose state starts anew."""
    for copy in averaged_copies(trainer):
        shrink_copy(copy, pl_module, plan)
    changed = apply_changes(pl_module, plan.changes, plan.attributes)
    return [slice_optimizer_state(optimizer, changed) for optimizer in trainer.optimizers]


def _warn_of_resets(trainer: pl.Trainer, reset: Sequence[Sequence[str]]) -> None:
    for optimizer, names in zip(trainer.optimizers, reset, strict=True):
        if names:
            _warn_of_reset(type(optimizer).__name__, names)


_NAMED = 4


def _warn_of_reset(optimizer: str, names: Sequence[str]) -> None:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    rank_zero_warn(
        f"The state of {optimizer} could not be cut along for {', '.join(names[:_NAMED])}{more}: it holds something "
        "else than numbers and tensors of the parameter's shape. It starts anew for these parameters; all other state "
        "goes on."
    )


@contextmanager
def _undone_on_failure(trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[None]:
    models = [Snapshot(model) for model in (pl_module, *averaged_copies(trainer))]
    states = [StateSnapshot(optimizer) for optimizer in trainer.optimizers]
    try:
        yield
    except BaseException:  # a KeyboardInterrupt, too: Lightning saves a checkpoint of what it leaves behind
        for snapshot in (*models, *states):
            snapshot.restore()
        raise
