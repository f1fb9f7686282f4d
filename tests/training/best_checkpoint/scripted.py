"""Runs whose scores are written down beforehand, and what is read back of their checkpoints."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from fitting import Classifier, make_loader, make_trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_coreset import CoresetPruningCallback

EVENTS = {2: 0.3, 4: 0.5}
SCORES = (0.9, 0.95, 0.7, 0.8, 0.75, 0.85)
STEPS = 4  # of an epoch
QUICK = {"method": "magnitude", "self_check": False, "copies": "none", "verbose": False}


class Scripted(Classifier):
    """Logs the scores of a list, one for each epoch, or for each step in a mapping from ``global_step``."""

    def __init__(self, scores: Sequence[float] | Mapping[int, float] = SCORES) -> None:
        super().__init__()
        self.scores = scores

    def score(self) -> torch.Tensor:
        by_step = isinstance(self.scores, Mapping)
        last = len(self.scores) - 1
        return torch.tensor(self.scores[self.global_step if by_step else min(self.current_epoch, last)])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_acc", self.score())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("units", float(self.net[0].out_features))

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self(batch[0])


@contextmanager
def told() -> Iterator[list[str]]:
    """The warnings of a block; those that a user is not told by this package or Lightning are left out."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    found += [str(each.message) for each in caught if each.category is UserWarning]


def saving(folder: Path, **options: Any) -> ModelCheckpoint:
    named = {"monitor": "val_acc", "mode": "max", "filename": "{epoch}-{val_acc:.2f}"}
    return ModelCheckpoint(folder, **(named | {"auto_insert_metric_name": False} | options))


def run(
    *checkpoints: pl.Callback,
    module: pl.LightningModule | None = None,
    pruning: Mapping[str, Any] | None = None,
    resume: str | None = None,
    **options: Any,
) -> tuple[pl.Trainer, pl.LightningModule]:
    """Train six epochs of four steps, with events at the start of the third and fifth."""
    module = Scripted() if module is None else module
    callback = CoresetPruningCallback(**({"schedule": EVENTS} | QUICK | dict(pruning or {})))
    trainer = make_trainer(callback, *checkpoints, **({"max_epochs": 6, "enable_checkpointing": True} | options))
    trainer.fit(module, make_loader(8), make_loader(8), ckpt_path=resume)
    return trainer, module


def names(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix(".ckpt") for path in folder.iterdir())


def name(path: str) -> str:
    return Path(path).name.removesuffix(".ckpt")


def content(path: str | Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def params(path: str | Path) -> int:
    """Parameters of the model in a file, without the record of pruning, which is a tensor among averages."""
    state = content(path)["state_dict"]
    return sum(tensor.numel() for key, tensor in state.items() if re.fullmatch(r"net\.\d.*", key))


def kept(callback: ModelCheckpoint) -> dict[str, float]:
    """The scores that a ModelCheckpoint has of its files."""
    return {name(path): round(float(score), 4) for path, score in callback.best_k_models.items()}


class Files(pl.Callback):
    """Keeps the names of the files in a folder and the best score, at the start of each epoch and at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[list[str]] = []
        self.scores: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._look(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._look(trainer)

    def _look(self, trainer: pl.Trainer) -> None:
        self.seen.append(names(self.folder) if self.folder.exists() else [])
        best: Any = trainer.checkpoint_callback
        if best.best_model_score is not None:
            self.scores.append(float(best.best_model_score))
