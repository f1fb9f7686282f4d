"""What else in a Trainer follows the model: averaged copies of it, and callbacks that watch its score."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lightning_coreset._compat import averaged_model
from lightning_coreset.plan import ParameterChange, PruningPlan
from lightning_coreset.surgery import apply_changes, index_dims, named_tensors


def averaged_copies(trainer: pl.Trainer) -> list[nn.Module]:
    """The copies of the LightningModule that callbacks keep: those of EMA, weight averaging and SWA.

    Found by the attribute in which all three of Lightning's callbacks keep theirs. What else a callback of the user's
    keeps there, such as a copy of a part of the model, is not taken for one.
    """
    callbacks: Iterable[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    kept = [averaged_model(callback) for callback in callbacks]
    models = [model.module if isinstance(model, AveragedModel) else model for model in kept]
    return [model for model in models if isinstance(model, type(trainer.lightning_module))]


def shrink_copy(copy: nn.Module, model: nn.Module, plan: PruningPlan) -> None:
    """Apply a plan to an averaged copy of a model that is about to be pruned.

    Where the plan multiplies a tensor, the copy's is multiplied alike. Where it gives a tensor new values, the copy's
    slice is moved by what the plan adds to the model's own slice, or for a running variance multiplied by what that is
    multiplied by. Where the copy equals the model, it equals the pruned model afterwards.

    Args:
        copy: The averaged copy, on any device and of any dtype; changed in place.
        model: The model that the plan was made for, not pruned yet.
        plan: The plan.

    Raises:
        ValueError: If the copy does not have the model's shapes. It is unchanged then.
    """
    tensors, averages = named_tensors(model), named_tensors(copy)
    changes = [_followed(change, tensors[change.name], averages.get(change.name)) for change in plan.changes]
    apply_changes(copy, changes, plan.attributes)


def _followed(change: ParameterChange, tensor: Tensor, average: Tensor | None) -> ParameterChange:
    if change.value is None or average is None or average.shape != tensor.shape:
        return change  # which does not fit then, and is refused with all others
    now, averaged = index_dims(tensor, change.kept).to(average), index_dims(average, change.kept)
    value = change.value.to(average)
    # In this order, for a - a is 0 and a / a is 1 without rounding.
    if change.name.endswith("running_var"):
        return replace(change, value=value * (averaged / now).nan_to_num(nan=1.0, posinf=1.0))
    return replace(change, value=value + (averaged - now))


def load_outgrown_copies(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Load the model into averaged copies of another size: those that are not in the checkpoint that it came from."""
    shapes = _shapes(pl_module)
    for copy in averaged_copies(trainer):
        if _shapes(copy) != shapes:
            copy.load_state_dict(pl_module.state_dict())


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in named_tensors(model).items()}


def restart_patience(trainer: pl.Trainer) -> None:
    """Let every EarlyStopping begin anew: a pruned model has to heal before it can do better than the one before."""
    for callback in trainer.early_stopping_callbacks:
        if isinstance(callback, EarlyStopping):
            callback.wait_count = 0
            worst = float("inf" if callback.monitor_op is torch.lt else "-inf")
            callback.best_score = torch.tensor(worst, device=callback.best_score.device)


def average_again(trainer: pl.Trainer, pl_module: pl.LightningModule, *, before: pl.Callback) -> None:
    """At the end of training, let weight averaging put its average into the model once more.

    Args:
        trainer: The Trainer.
        pl_module: Its module, which another callback has changed at the end of training.
        before: That callback; what comes after it is yet to do so.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks[: callbacks.index(before)]:
        if isinstance(averaged_model(callback), AveragedModel):
            callback.on_train_end(trainer, pl_module)
