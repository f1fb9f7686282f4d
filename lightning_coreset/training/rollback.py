"""Go back to the state before a pruning event, even after further training and a resume."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_coreset.surgery import ModelShapes, named_tensors, resize
from lightning_coreset.training.averaged_models import average_counters, averaged_copies
from lightning_coreset.training.early_stopping import early_stopping_callbacks
from lightning_coreset.training.optimizer_state import copy_optimizers, copy_to_cpu, restore_optimizers
from lightning_coreset.training.progress import Progress
from lightning_coreset.training.strategies import run_on_all_ranks, unwrapped


class Savepoint:
    """A copy, on the CPU, of all that a pruning event and the training after it change.

    Of the model and of the copies that EMA and SWA keep: all parameters and buffers, and the sizes that modules store.
    Of the optimizers: the state of every parameter. Also the scale of mixed precision and the patience of
    EarlyStopping. Restoring writes to the same objects: parameters, optimizers, parameter groups.

    Learning rates and whatever else schedulers set, epochs, steps and random states are not restored.

    It is plain data, so that it can be part of a checkpoint. :class:`lightning_coreset.surgery.Snapshot` serves within
    one event: it refers to the old tensors, which training would overwrite.

    Args:
        content: Plain data, as of :meth:`to_dict`.

    Example:
        >>> from lightning_coreset.surgery import replace_data
        >>> model = pl.LightningModule()
        >>> model.layer = nn.Linear(2, 3, bias=False)
        >>> trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        >>> trainer.strategy.connect(model)
        >>> before = Savepoint.take(trainer, model)
        >>> replace_data(model.layer.weight, torch.zeros(1, 2))
        >>> before.restore(trainer, model)
        >>> model.layer.weight.shape
        torch.Size([3, 2])
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self._content = content

    @classmethod
    def take(cls, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Savepoint:
        """Copy everything as it is now."""
        shapes = ModelShapes.of(pl_module)
        return cls(
            {
                "shapes": {name: list(shape) for name, shape in shapes.shapes.items()},
                "sizes": dict(shapes.sizes),
                "models": [copy_to_cpu(named_tensors(model)) for model in (pl_module, *averaged_copies(trainer))],
                "averaged": [0 if counter is None else int(counter) for counter in average_counters(trainer)],
                **copy_optimizers(trainer, pl_module),
                "precision": trainer.precision_plugin.state_dict(),
                "patience": [
                    (callback.wait_count, float(callback.best_score)) for callback in early_stopping_callbacks(trainer)
                ],
            }
        )

    def after(self, pl_module: pl.LightningModule) -> Savepoint:
        """The savepoint without the sizes that the event did not change: further training may change these."""
        sizes = ModelShapes(sizes=self._content["sizes"]).difference(ModelShapes.of(pl_module)).sizes
        return Savepoint({**self._content, "sizes": dict(sizes)})

    def restore(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put everything back and drop all gradients; a collective operation."""
        with unwrapped(trainer):
            run_on_all_ranks(trainer, lambda: self._restore(trainer, pl_module))

    @torch.no_grad()
    def _restore(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        content = self._content
        shapes = {name: tuple(shape) for name, shape in content["shapes"].items()}
        models = (pl_module, *averaged_copies(trainer))
        for model in models:
            resize(model, ModelShapes(shapes, content["sizes"]))
        for model, tensors in zip(models, content["models"], strict=True):
            _restore_tensors(model, tensors)
        for counter, number in zip(average_counters(trainer), content["averaged"], strict=True):
            if counter is not None:
                counter.fill_(number)
        restore_optimizers(trainer, pl_module, content)
        if content["precision"]:
            trainer.precision_plugin.load_state_dict(content["precision"])
        for callback, (waited, best) in zip(early_stopping_callbacks(trainer), content["patience"], strict=True):
            callback.wait_count, callback.best_score = waited, callback.best_score.new_tensor(best)

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists, dicts and tensors."""
        return dict(self._content)


@dataclass(frozen=True)
class RecoveryWindow:
    """The time that training has to bring the accuracy back after an event, and what to go back to if it does not.

    Attributes:
        savepoint: Everything as it was before the event.
        plans: The number of events before it.
        done: The schedule's events before it, see :class:`Progress`.
        ratio: The pruning ratio that the event asked for.
        epoch: The epoch of the event.
        batches: The training batches before it.
        value: The latest value of a validation since; ``None`` before the first.
        failed: Whether the time is over.
    """

    savepoint: Savepoint
    plans: int
    done: Mapping[int, float]
    ratio: float
    epoch: int
    batches: int
    value: float | None = None
    failed: bool = False

    @classmethod
    def open(cls, trainer: pl.Trainer, savepoint: Savepoint, progress: Progress, ratio: float) -> RecoveryWindow:
        """The window of an event that asks for ``ratio``; ``progress`` is as it was before."""
        batches = trainer.fit_loop.epoch_loop.batch_progress.total.completed
        return cls(savepoint, len(progress.plans), dict(progress.done), ratio, trainer.current_epoch, batches)

    def epochs_since(self, trainer: pl.Trainer) -> float:
        """Epochs of training since the event, at the end of a validation."""
        loop = trainer.fit_loop.epoch_loop.batch_progress
        length = trainer.num_training_batches
        if length < math.inf:
            return (loop.total.completed - self.batches) / length
        return trainer.current_epoch + loop.is_last_batch - self.epoch

    def roll_back(self, trainer: pl.Trainer, pl_module: pl.LightningModule, progress: Progress) -> None:
        """Undo the event; a collective operation."""
        self.savepoint.restore(trainer, pl_module)
        progress.undo(self.plans, self.done)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for checkpoints."""
        return {**vars(self), "savepoint": self.savepoint.to_dict(), "done": dict(self.done)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> RecoveryWindow:
        """The inverse of :meth:`to_dict`."""
        return cls(**{**plain, "savepoint": Savepoint(plain["savepoint"])})


def _restore_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in named_tensors(model).items():
        tensor.grad = None
        if name in tensors:
            tensor.data.copy_(tensors[name])
