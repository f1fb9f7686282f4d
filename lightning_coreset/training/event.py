"""Apply a plan in the middle of training: to model, averaged copies and optimizers, or to nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_coreset.checkpoint import write_configs
from lightning_coreset.optimizers import check_optimizers, slice_optimizer_state
from lightning_coreset.plan import ParameterChange, PruningPlan
from lightning_coreset.qualified_names import listed
from lightning_coreset.surgery import apply_changes
from lightning_coreset.training.averaged_models import averaged_copies, shrink_copy
from lightning_coreset.training.gradient_hooks import check_gradient_hooks
from lightning_coreset.training.optimizer_state import all_optimizers
from lightning_coreset.training.outside_copies import OutsideCopies
from lightning_coreset.training.rank_consistency import check_agreement
from lightning_coreset.training.strategies import run_on_all_ranks, unwrapped
from lightning_coreset.training.undoing import undone_on_failure

T = TypeVar("T")


def apply_event(trainer: pl.Trainer, pl_module: pl.LightningModule, plan: PruningPlan, then: Callable[[], T]) -> T:
    """Apply a plan to the model, copies of it that callbacks keep, and the state of the optimizers.

    If anything raises, on any rank, everything is as before on all ranks. For this the old tensors are kept, which
    costs the memory of both sizes during the event but no copy. Other changes that ``then`` makes in place are not
    undone.

    Args:
        trainer: The Trainer.
        pl_module: Its module.
        plan: What to do, the same on every rank.
        then: Called last, as a part of the event. It may wait for the other ranks, so what can fail on one of them
            alone has to be called by :func:`~lightning_coreset.training.strategies.run_on_all_ranks`.

    Returns:
        What ``then`` returned.

    Raises:
        ValueError: If the plan was made for other shapes.
        RuntimeError: If it failed on other ranks only, or the ranks do not have the same plan.
    """
    check_agreement(trainer, pl_module, plan)
    optimizers = all_optimizers(trainer, pl_module)
    with unwrapped(trainer), undone_on_failure(trainer, pl_module, optimizers):
        reset = run_on_all_ranks(trainer, lambda: _apply(trainer, pl_module, plan, optimizers))
        # It keeps code for every shape, and stops compiling after the eighth (`recompile_limit`).
        torch.compiler.reset()
        result = then()
        run_on_all_ranks(trainer, lambda: check_gradient_hooks(_changes(pl_module, plan), pl_module))
        run_on_all_ranks(trainer, lambda: _warn_of_resets(optimizers, reset))
    return result


def _apply(
    trainer: pl.Trainer,
    pl_module: pl.LightningModule,
    plan: PruningPlan,
    optimizers: Sequence[Any],
) -> list[tuple[str, ...]]:
    """Apply the plan; return for every optimizer the parameters whose state was reset."""
    check_optimizers(trainer.optimizers, _changes(pl_module, plan), pl_module.parameters())
    copies = averaged_copies(trainer)
    for copy in copies:
        shrink_copy(copy, pl_module, plan)
    OutsideCopies.of(trainer, pl_module).shrink(pl_module, plan)
    before: dict[Tensor, Tensor] = {parameter: parameter.data for parameter in pl_module.parameters()}
    changed = apply_changes(pl_module, plan.changes, plan.attributes)
    for model in (pl_module, *copies):
        write_configs(model)
    return [slice_optimizer_state(optimizer, changed, before) for optimizer in optimizers]


def _changes(pl_module: pl.LightningModule, plan: PruningPlan) -> dict[Tensor, ParameterChange]:
    parameters = dict(pl_module.named_parameters())
    return {parameters[change.name]: change for change in plan.changes if change.name in parameters}


def _warn_of_resets(optimizers: Sequence[Any], reset: Sequence[tuple[str, ...]]) -> None:
    kinds = [type(optimizer).__name__ for optimizer in optimizers]
    for kind, names in dict.fromkeys(zip(kinds, reset, strict=True)):
        if names:
            _warn_of_reset(kind, names)


def _warn_of_reset(optimizer: str, names: Sequence[str]) -> None:
    rank_zero_warn(
        f"The state of {optimizer} could not be pruned for {listed(names)}: it holds something "
        "other than numbers and tensors of the parameter's shape. It is reset for these parameters; all other state is "
        "kept."
    )
