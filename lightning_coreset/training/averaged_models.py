"""Averaged copies of the model, which callbacks of a Trainer keep and which are pruned with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from lightning_coreset._compat import averaged_model
from lightning_coreset.followers import follow
from lightning_coreset.held_tensors import held_tensors
from lightning_coreset.plan import ParameterChange, PruningPlan
from lightning_coreset.surgery import apply_changes, named_tensors

AnyCallback = TypeVar("AnyCallback", bound=pl.Callback)


def averaged_copies(trainer: pl.Trainer) -> list[nn.Module]:
    """The copies of the LightningModule that EMA, weight averaging and SWA keep.

    Found by the attribute in which all three of Lightning's callbacks keep theirs. Anything of another type there, such
    as a user's copy of a part of the model, is ignored.
    """
    callbacks: Iterable[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    averages = [averaged_model(callback) for callback in callbacks]
    models = [average.module if isinstance(average, AveragedModel) else average for average in averages]
    return [model for model in models if isinstance(model, type(trainer.lightning_module))]


def shrink_copy(copy: nn.Module, model: nn.Module, plan: PruningPlan) -> None:
    """Apply a plan to an averaged copy of a model that is about to be pruned.

    If the plan multiplies a tensor, the copy's tensor is multiplied by the same factors. If the plan gives a tensor new
    values, the difference to the model's slice is added to the copy's slice, or, for a running variance, their quotient
    is multiplied to it. A copy that equals the model equals the pruned model afterwards.

    Args:
        copy: The averaged copy, on any device and of any dtype; changed in place.
        model: The model that the plan was made for, not pruned yet.
        plan: The plan.

    Raises:
        ValueError: If the copy does not have the model's shapes. It is unchanged then.
    """
    tensors, averages, held = named_tensors(model), named_tensors(copy), held_tensors(model)
    changes = [
        _for_copy(change, tensors[change.name], averages.get(change.name))
        for change in plan.changes
        if change.name not in held  # which are the model's own, whatever the copy has of them
    ]
    apply_changes(copy, changes, plan.attributes)


def _for_copy(change: ParameterChange, tensor: Tensor, average: Tensor | None) -> ParameterChange:
    if change.value is None or average is None or average.shape != tensor.shape:
        return change  # without a value, or of another shape, which `apply_changes` refuses
    return replace(change, value=follow(average, change, tensor, change.value))


def load_outgrown_copies(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Load the model into averaged copies of another size: those that were not in the checkpoint."""
    shapes = _shapes(pl_module)
    for copy in averaged_copies(trainer):
        if _shapes(copy) != shapes:
            copy.load_state_dict(pl_module.state_dict())


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.shape for name, tensor in tensors if not is_lazy(tensor)}


@dataclass(frozen=True, eq=False)
class Average:
    """What a callback keeps that averages models.

    Attributes:
        model: The copy of the LightningModule; ``None`` if it is something else.
        counter: The number of models in it; ``None`` for SWA before it starts.
    """

    model: nn.Module | None
    counter: Tensor | None


def averages_by_callback(trainer: pl.Trainer) -> dict[str, Average]:
    """The averages of the Trainer's callbacks, by the names under which checkpoints keep the callbacks' states."""
    copies = {id(copy) for copy in averaged_copies(trainer)}
    averages: dict[str, Average] = {}
    for name, callback in by_state_key(trainer.callbacks).items():  # type: ignore[attr-defined]
        average = averaged_model(callback)
        if average is not None:
            model = average.module if isinstance(average, AveragedModel) else average
            counter = getattr(average if isinstance(average, AveragedModel) else callback, "n_averaged", None)
            averages[name] = Average(model if id(model) in copies else None, counter)
    return averages


def by_state_key(callbacks: Iterable[AnyCallback]) -> dict[str, AnyCallback]:
    """Callbacks by their ``state_key``, numbered where several have the same: their places in the list may change."""
    found: dict[str, AnyCallback] = {}
    for callback in callbacks:
        key, number = callback.state_key, 1
        while key in found:
            number += 1
            key = f"{callback.state_key} {number}"
        found[key] = callback
    return found


def average_again(trainer: pl.Trainer, pl_module: pl.LightningModule, *, before: pl.Callback) -> None:
    """At the end of training, let weight averaging copy its average into the model again.

    Args:
        trainer: The Trainer.
        pl_module: Its module, which another callback has changed at the end of training.
        before: That callback. Callbacks listed after it are called later anyway.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks[: callbacks.index(before)]:
        if isinstance(averaged_model(callback), AveragedModel):
            callback.on_train_end(trainer, pl_module)
