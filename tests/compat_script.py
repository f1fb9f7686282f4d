"""Prunes with one private name of torch or Lightning taken away, each in a process of its own; prints JSON.

Run by ``test_compat.py``. torch and Lightning are imported once, before the processes are forked: what they took from
the modules by ``from ... import`` stays whole, and this package finds the name missing.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch._dynamo  # a name in it is to be taken away
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import flop_registry  # noqa: F401 - its module too takes a name when it is imported
from torch.utils.tensorboard.summary import hparams  # noqa: F401 - so that it is imported before the fork

# torch and Lightning look these up when they run. This package does so when it is imported, and finds them missing.
NEEDED_BY_OTHERS = {"tree_map", "tree_leaves", "_BatchNorm"}


class Convolutions(nn.Module):
    """Layers of every type that the package recognises by a private base class, and a product that is put off."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding="same"),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 12, 2, stride=2),
            nn.InstanceNorm2d(12),
            nn.ReLU(),
            nn.Conv2d(12, 8, 3, padding=1, padding_mode="reflect"),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Linear(8 * 16 * 16, 64), nn.Dropout(), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters({"width": 32, "nested": {"depth": 3}})
        self.body = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 3)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        features = checkpoint(self.body, batch[0].requires_grad_(), use_reentrant=True)
        logits = self.head(features)
        return nn.functional.cross_entropy(logits, batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def plain_pruning() -> dict[str, Any]:
    from lightning_coreset import plan_pruning, prune

    torch.manual_seed(0)
    model, x = Convolutions(), torch.randn(8, 3, 8, 8)
    certified = plan_pruning(model, x, 0.4, only=["features.*"], certify=True)
    plan = prune(model, x, 0.4)
    return {
        "groups": {group.name: (group.channels_before, group.channels_after) for group in plan.groups},
        "certified": [round(float(group.certified_error or 0), 4) for group in certified.groups],
        "output": round(float(model.eval()(x).abs().sum()), 3),
    }


def training() -> dict[str, Any]:
    from lightning_coreset import CoresetPruningCallback, make_plain

    torch.manual_seed(0)
    x = torch.randn(64, 8)
    data = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=16)
    model = Classifier()
    pruning = CoresetPruningCallback(0.5, schedule="one_shot", start=1, verbose=False)
    averaging = StochasticWeightAveraging(1e-3, swa_epoch_start=2)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=4,
            callbacks=[pruning, averaging],
            logger=TensorBoardLogger(folder, name="", version=""),
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, data)
        saved = torch.load(
            next(Path(folder).rglob("*.ckpt")), weights_only=False
        )  # SWALR of torch 2.6 holds a function
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(folder).Reload()
        # The hyperparameters of a run lie in the data of a plugin; their names tell.
        text = b"".join(path.read_bytes() for path in Path(folder).rglob("events*"))
        logged = [name in text for name in (b"coreset/pruning_ratio", b"nested/depth", b"hp_metric")]
        tags = sorted(tag for tag in events.Tags()["scalars"] if tag.startswith("coreset"))
        accuracies = [round(event.value, 4) for event in events.Scalars("coreset/accuracy")]
    make_plain(model)
    return {
        "sparsity": round(pruning.plans[-1].sparsity, 4),
        "shapes": [list(parameter.shape) for parameter in model.parameters()],
        "keys": [key for key in saved["callbacks"] if key.startswith("Coreset")],
        "tags": tags,
        "accuracies": accuracies,
        "logged": logged,
    }


def outcome(missing: str) -> dict[str, Any]:
    """What comes out without a name; errors as text."""
    path, _, name = missing.rpartition(".")
    if missing:
        module = importlib.import_module(path)
        taken = vars(module)[name]
        delattr(module, name)
        if name in NEEDED_BY_OTHERS:
            importlib.import_module("lightning_coreset")
            setattr(module, name, taken)
    results: dict[str, Any] = {}
    for work in (plain_pruning, training):
        try:
            results[work.__name__] = work()
        except Exception as error:
            results[work.__name__] = f"{type(error).__name__}: {error}"
    return results


def in_a_fork(missing: str) -> Any:
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        with os.fdopen(writer, "w") as file:
            json.dump(outcome(missing), file)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        text = file.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else "it died"


if __name__ == "__main__":
    torch.set_num_threads(1)
    assert "lightning_coreset" not in sys.modules
    json.dump({missing: in_a_fork(missing) for missing in ("", *sys.argv[1:])}, sys.stdout)
