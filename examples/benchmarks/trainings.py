"""Small trainings with Lightning for measuring time: random data, nothing logged or saved, and a clock."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import lightning as L
import torch
import torch.nn.functional as F
from measuring import now
from torch import Tensor, nn
from torch.utils.data import DataLoader


class Classifier(L.LightningModule):
    """Train any network with cross entropy and AdamW."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.network(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 1e-3)


class Clock(L.Callback):
    """Seconds of training epochs and of validations, including the callbacks between ``first`` and ``last``.

    Used as two callbacks around the others: ``Clock.around(callbacks)``. An epoch lasts from the start of its training
    to the start of the next, including validation; so the last epoch has no time.

    Attributes:
        epochs: Seconds of each epoch except the last.
        validations: Seconds of each validation.
    """

    def __init__(self) -> None:
        self.epochs: list[float] = []
        self.validations: list[float] = []
        self._epoch: float | None = None
        self._validation = 0.0

    def around(self, callbacks: Sequence[L.Callback]) -> list[L.Callback]:
        """The callbacks, with the start of the clock before them and its end after them."""
        return [self, *callbacks, _Behind(self)]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        time = now()
        if self._epoch is not None:
            self.epochs.append(time - self._epoch)
        self._epoch = time

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation = now()

    def validation_ended(self) -> None:
        """Called after all other callbacks."""
        self.validations.append(now() - self._validation)


class _Behind(L.Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.clock.validation_ended()


def batches(count: int, shape: Sequence[int], classes: int = 10) -> DataLoader:
    """Random images or vectors, batched in advance, so that loading takes almost no time."""
    generator = torch.Generator().manual_seed(0)
    made = [
        (torch.randn(*shape, generator=generator), torch.randint(classes, shape[:1], generator=generator))
        for _ in range(count)
    ]
    return DataLoader(made, batch_size=None)  # type: ignore[arg-type]


def trainer(epochs: int, callbacks: Sequence[L.Callback]) -> L.Trainer:
    """A Trainer on one CPU or GPU that prints, logs and saves nothing."""
    quiet()
    return L.Trainer(
        max_epochs=epochs,
        accelerator="auto",
        devices=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def quiet() -> None:
    """Silence messages of Lightning that do not matter here."""
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
