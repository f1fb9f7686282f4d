"""A training run that can be killed and taken up again; run as a script, it kills itself for real.

Usage: python resume_script.py DIRECTORY OPTIONS, the options of ``train`` as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lightning_coreset import CoresetPruningCallback

EPOCHS, STEPS = 8, 4
# At the start of epochs 2, 4 and 5.
EVENTS = {"schedule": {2: 0.2, 4: 0.35, 5: 0.5}, "verbose": False}


class Model(pl.LightningModule):
    """Its batches are those of an epoch and a number, whatever the loader brings.

    Lightning begins a loader anew when it goes on in the middle of an epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 10, 3), nn.BatchNorm2d(10), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(10 * 4, 12), nn.ReLU(), nn.Linear(12, 3)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = functional.cross_entropy(*self._shown(batch_of(self.current_epoch, batch_idx)))
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        outputs, targets = self._shown(batch)
        self.log("val_loss", functional.cross_entropy(outputs, targets))

    test_step = validation_step

    def _shown(self, batch: Any) -> tuple[Tensor, Tensor]:
        x, targets = batch
        return self(x), targets

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.7)]


def batch_of(*seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(1000**place * number for place, number in enumerate(seed)))
    targets = torch.randint(0, 3, (8,), generator=generator)
    return torch.randn(8, 1, 6, 6, generator=generator) + targets.view(-1, 1, 1, 1), targets


def loaders() -> dict[str, DataLoader]:
    batches = [batch_of(7, number) for number in range(2)]
    data = TensorDataset(torch.cat([x for x, _ in batches]), torch.cat([targets for _, targets in batches]))
    return {
        "train_dataloaders": DataLoader(TensorDataset(torch.arange(STEPS))),
        "val_dataloaders": DataLoader(data, batch_size=8),
    }


class Killed(BaseException):
    """What a process that is killed would be, if it were told."""


def kill_here() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def raise_here() -> None:
    raise Killed


class Kill(pl.Callback):
    """Ends training before the step ``at``, counted from 0 over all epochs, without saying good-bye."""

    def __init__(self, at: int, die: Callable[[], None]) -> None:
        self.at, self.die = at, die

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.at:
            self.die()


def train(
    directory: Path,
    *,
    name: str,
    kill: int | None = None,
    kill_in_event: int | None = None,
    resume: str | None = None,
    pruning: dict[str, Any] | None = None,
    saving: dict[str, Any] | None = None,
    validate: bool = True,
    die: Callable[[], None] = raise_here,
    **options: Any,
) -> pl.Trainer:
    """Train for eight epochs, or until killed.

    Checkpoints are in ``directory / "checkpoints"``, the log and the checkpoint of the end in ``directory / name``.

    Args:
        directory: Of a run, and of those that resume it.
        name: The run.
        kill: The step before which it is killed.
        kill_in_event: The epoch in whose event it is killed, when the model is pruned but nobody knows of it.
        resume: The checkpoint to go on from.
        pruning: Arguments of the pruning callback; there is none if ``None``.
        saving: Arguments of the ModelCheckpoint.
        validate: Whether to validate after every epoch.
        die: How to be killed.
        **options: Arguments of ``fit``.
    """
    folder = directory / name
    callbacks: list[pl.Callback] = [ModelCheckpoint(directory / "checkpoints", **{"save_last": True, **(saving or {})})]
    if pruning is not None:
        callbacks.insert(0, _pruning(pruning, kill_in_event, die))
    if kill is not None:
        callbacks.append(Kill(kill, die))
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=callbacks,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=1,
        logger=CSVLogger(folder, name="", version=""),
        max_epochs=EPOCHS,
        **({} if validate else {"limit_val_batches": 0}),
    )
    trainer.fit(Model(), **loaders(), ckpt_path=resume, **options)
    trainer.save_checkpoint(folder / "end.ckpt")
    return trainer


def _pruning(arguments: dict[str, Any], kill_in_event: int | None, die: Callable[[], None]) -> pl.Callback:
    schedule = arguments.get("schedule", "cubic")
    if isinstance(schedule, dict):  # JSON has no numbers for keys
        schedule = {int(time): ratio for time, ratio in schedule.items()}
    callback = CoresetPruningCallback(**{**arguments, "schedule": schedule})
    if kill_in_event is not None:
        # On the instance: a class of its own would not find the other's state.
        callback.on_prune = lambda plan, trainer, _: die() if trainer.current_epoch == kill_in_event else None
    return callback


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), die=kill_here, **json.loads(sys.argv[2]))
