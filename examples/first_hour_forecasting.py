"""A first hour with the callback and a forecasting model: train, prune, keep the best, load it, deploy it.

    python examples/first_hour_forecasting.py

It needs no GPU and no download: the series are made up, hourly values with a daily and a weekly cycle. There are no
classes here and so no accuracy: ``monitor="val_mae"`` names a metric that the module logs in validation, which the
callback then measures before and after every event.

What to expect: a table of how the network shrank, event by event, with the error before and after each, and an account
of it. 60 % of the parameters of this N-BEATS (Oreshkin et al., 2020) have been removed, its mean absolute error is
within a tenth of that of the network trained without pruning, and far below that of last week's values.

Which other forecasting models can be pruned, and how far: docs/guide.md.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from report import quiet
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_coreset import CoresetPruningCallback, load_pruned, make_plain

WEEK, DAY = 168, 24  # hours: what a forecast sees, and what it forecasts


class Block(nn.Module):
    """A block of N-BEATS: what it explains of the past, and what it adds to the forecast."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(WEEK, width), nn.ReLU()),
            *(nn.Linear(width, width), nn.ReLU()),
            *(nn.Linear(width, width), nn.ReLU()),
        )
        self.backcast, self.forecast = nn.Linear(width, WEEK), nn.Linear(width, DAY)

    def forward(self, past: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.layers(past)
        return self.backcast(hidden), self.forecast(hidden)


class Forecaster(L.LightningModule):
    """N-BEATS with generic blocks, on series that are shifted and scaled by their past."""

    def __init__(self, width: int = 96, blocks: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()  # so that a checkpoint can tell how to build the model
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))

    def forward(self, past: Tensor) -> Tensor:
        """Forecast ``(N, 24)`` values from the ``(N, 168)`` before."""
        mean, scale = past.mean(1, keepdim=True), past.std(1, keepdim=True) + 1e-6
        residual, forecast = (past - mean) / scale, past.new_zeros(())
        for block in self.blocks:
            explained, part = block(residual)
            residual, forecast = residual - explained, forecast + part
        return forecast * scale + mean

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        past, future = batch
        return F.l1_loss(self(past), future)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        past, future = batch
        self.log("val_mae", F.l1_loss(self(past), future))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        past, future = batch
        self.log("test_mae", F.l1_loss(self(past), future))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def make_series(count: int = 12, weeks: int = 16) -> Tensor:
    """Made-up hourly series ``(count, hours)``: a daily and a weekly cycle, a slow wave, noise."""
    generator = torch.Generator().manual_seed(0)
    hours = torch.arange(weeks * WEEK, dtype=torch.float32)

    def wave(period: float) -> Tensor:
        phase, height = torch.rand(2, count, 1, generator=generator)
        return (0.5 + height) * torch.sin(2 * math.pi * (hours / period + phase))

    noise = 0.3 * torch.randn(count, len(hours), generator=generator)
    return 10 + wave(DAY) + wave(WEEK) + wave(DAY / 2) * (hours % WEEK < 5 * DAY) + wave(5 * WEEK) + noise


def make_loaders(series: Tensor) -> tuple[DataLoader, DataLoader, DataLoader]:
    """Windows of a week and the day after it: the first weeks for training, then validation, then test."""
    parts = []
    for start, end, step in ((0, 11, 7), (10, 13, 24), (12, 16, 24)):  # weeks; hours between windows
        windows = series[:, start * WEEK : end * WEEK].unfold(1, WEEK + DAY, step).flatten(0, 1)
        parts.append(TensorDataset(windows[:, :WEEK], windows[:, WEEK:]))
    train, val, test = parts
    return DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=256), DataLoader(test, 256)


def train(epochs: int, folder: Path, *callbacks: L.Callback) -> tuple[ModelCheckpoint, float]:
    """Train with ``callbacks``; return what kept the best checkpoint, and the test error of this one."""
    L.seed_everything(0, verbose=False)
    train_loader, val_loader, test_loader = make_loaders(make_series())
    best = ModelCheckpoint(folder, monitor="val_mae")
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[*callbacks, best],
        logger=False,
        enable_model_summary=False,
        enable_progress_bar=False,  # leave it on in a terminal of your own
    )
    trainer.fit(Forecaster(), train_loader, val_loader)
    (metrics,) = trainer.test(dataloaders=test_loader, ckpt_path="best", verbose=False)
    return best, metrics["test_mae"]


def parameters(model: nn.Module) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    """Train twice, compare, load, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20, help="epochs of each training (default: %(default)s)")
    epochs = parser.parse_args().epochs
    quiet()
    torch.set_num_threads(1)  # the network is too small to gain from more threads
    past, future = make_loaders(make_series())[2].dataset.tensors
    last_week = F.l1_loss(past[:, :DAY], future).item()  # the same day of the week before
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        print(f"Training {epochs} epochs without pruning ...", flush=True)
        _, error_before = train(epochs, folder / "unpruned")

        print(f"Training {epochs} epochs, pruning 60% of the parameters on the way ...", flush=True)
        pruning = CoresetPruningCallback(0.6, monitor="val_mae", verbose=False)  # lower is better, as the name says
        best, error = train(epochs, folder / "pruned", pruning)
        pruning.summary()

        model = load_pruned(Forecaster, best.best_model_path).eval()
        size_before, size = parameters(Forecaster()), parameters(model)

        expected = model(past)
        torch.save(make_plain(model).blocks, folder / "blocks.pt")  # the layers; `Block` is all that they need
        blocks = torch.load(folder / "blocks.pt", weights_only=False)
        deployed = Forecaster()
        deployed.blocks = blocks
        same = torch.allclose(deployed.eval()(past), expected, atol=1e-5)

        size_of_file = (folder / "blocks.pt").stat().st_size
        print()
        print(f"parameters:  {size_before:,} -> {size:,} ({size / size_before:.0%} left)")
        print(f"test error:  {error_before:.3f} -> {error:.3f} (last week's values: {last_week:.3f})")
        print(f"deployed:    blocks.pt, {size_of_file / 1e3:,.0f} kB, {'the same' if same else 'OTHER'} forecasts")


if __name__ == "__main__":
    main()
