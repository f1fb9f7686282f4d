"""Small LightningModules, data and Trainers for tests that train, and callbacks that look on."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def make_trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    """A Trainer on one CPU process that writes and prints nothing unless told to."""
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(**(quiet | options), callbacks=list(callbacks))


def make_loader(*shape: int, samples: int = 64, batch_size: int = 16, shuffle: bool = False) -> DataLoader:
    """Samples of three classes that a small network can tell apart; the same in every call."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(samples) % 3
    centres = 2 * torch.randn(3, *shape, generator=generator)
    inputs = centres[targets] + torch.randn(samples, *shape, generator=generator)
    return DataLoader(TensorDataset(inputs, targets), batch_size=batch_size, shuffle=shuffle)


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLUs in between."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convnet() -> nn.Sequential:
    """Two convolutions with BatchNorm for images (1, 6, 6)."""
    return nn.Sequential(
        *(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Conv2d(12, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(16 * 4, 3)),
    )


class Classifier(pl.LightningModule):
    """A classifier as users write them."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = mlp(8, 32, 24, 3) if net is None else net
        self.losses: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.losses.append(loss.item())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Validated(Classifier):
    """A classifier that is validated as well."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_acc", (self(x).argmax(1) == y).float().mean())


class Watcher(pl.Callback):
    """Keeps weights and learning rates after every step, and parameters counted in every epoch."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.rates: list[list[float]] = []
        self.params: dict[int, int] = {}

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.weights.append(copy.deepcopy(pl_module.state_dict()))
        self.rates.append([group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups])
        self.params[trainer.current_epoch] = count_params(pl_module)


class MemoryLogger(DummyLogger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, dict(metrics)))

    def of(self, tag: str) -> list[tuple[int | None, float]]:
        """What was logged under a tag, with its steps."""
        return [(step, row[tag]) for step, row in self.rows if tag in row]


def count_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def widths(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Input and output channels of every layer as the modules tell them, checked against the tensors."""
    found: dict[str, tuple[int, ...]] = {}
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            assert layer.weight.shape == (layer.out_features, layer.in_features)
            found[name] = (layer.in_features, layer.out_features)
        elif isinstance(layer, nn.Conv2d):
            assert layer.weight.shape[:2] == (layer.out_channels, layer.in_channels)
            found[name] = (layer.in_channels, layer.out_channels)
        elif isinstance(layer, nn.BatchNorm2d):
            assert len(layer.weight) == len(layer.running_mean) == layer.num_features
            found[name] = (layer.num_features,)
    return found


def hooks_of(module: nn.Module) -> int:
    """Forward hooks on a module and all within it."""
    return sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in module.modules())


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Two state dicts are bitwise equal."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def assert_same_data(one: Any, other: Any) -> None:
    """Two pieces of plain data are equal, tensors and numbers bitwise, NaN to NaN."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same_data(value, other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for value, expected in zip(one, other, strict=True):
            assert_same_data(value, expected)
    elif isinstance(one, (Tensor, float)):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    else:
        assert one == other
