"""Train two classifiers on handwritten digits, with and without pruning during training.

Run it with ``python examples/quickstart.py``. It needs no GPU and no download: the digits are part of scikit-learn.

What to expect: one table for a multilayer perceptron and one for a small convolutional network. Each compares the
network trained without pruning ("before") with the same network trained for as many epochs with
``CoresetPruningCallback()`` ("after"). By default the callback removes half of the parameters. A line on the way says
what is done, with its seconds; all of it takes about a minute on one CPU core.
"""

from __future__ import annotations

if __name__ == "__main__":
    print("Importing torch and Lightning ...", flush=True)  # which takes some seconds

import argparse
import io
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_coreset import CoresetPruningCallback, count_macs

EPOCHS = 20
BATCH_SIZE = 64


def multilayer_perceptron() -> nn.Module:
    """Return LeNet-300-100 for 8 x 8 images."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 300),
        nn.ReLU(),
        nn.Linear(300, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def convolutional_network() -> nn.Module:
    """Return three convolutions with BatchNorm and a linear classifier."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


NETWORKS = {"MLP": multilayer_perceptron, "ConvNet": convolutional_network}


class Classifier(L.LightningModule):
    """An ordinary LightningModule, without any code for pruning."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.accuracy = MulticlassAccuracy(num_classes=10, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.accuracy(self(images), labels)
        self.log("val_acc", self.accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@cache
def digits() -> tuple[TensorDataset, TensorDataset]:
    """Return the training images and the validation images (one in five)."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(data.target, dtype=torch.long)
    train, test = train_test_split(range(len(labels)), test_size=0.2, stratify=data.target, random_state=0)
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


@dataclass(frozen=True)
class Trained:
    """A trained network and its accuracy on the validation images."""

    network: nn.Module
    accuracy: float


def train(name: str, *, prune: bool, epochs: int = EPOCHS, logdir: Path) -> Trained:
    """Train the network ``name``, with pruning if ``prune``, and log to ``logdir``."""
    L.seed_everything(0, verbose=False)
    model = Classifier(NETWORKS[name]())
    train_set, test_set = digits()
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[CoresetPruningCallback()] if prune else [],
        logger=TensorBoardLogger(logdir, name=name, version="pruned" if prune else "dense"),
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(
        model,
        DataLoader(train_set, batch_size=BATCH_SIZE, shuffle=True),
        DataLoader(test_set, batch_size=len(test_set)),
    )
    return Trained(model.network.eval(), trainer.callback_metrics["val_acc"].item())


def file_size(network: nn.Module) -> int:
    """Return the size in bytes of the file that ``torch.save(network.state_dict())`` writes."""
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    return file.tell()


@torch.inference_mode()
def latencies(networks: Sequence[nn.Module], *, batch_size: int = 32, repeats: int = 300) -> list[float]:
    """Return the median time of each network for one batch, in seconds.

    The networks are measured alternately, so that other load on the machine affects all of them.
    """
    images = torch.randn(batch_size, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    seconds: list[list[float]] = [[] for _ in networks]
    for repeat in range(repeats + repeats // 10):
        for network, times in zip(networks, seconds, strict=True):
            start = time.perf_counter()
            network(images)
            if repeat >= repeats // 10:  # the first runs warm up the caches
                times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def compare(before: Trained, after: Trained) -> list[tuple[str, ...]]:
    """Return the rows of the table: quantity, before, after, after / before."""

    def row(what: str, old: float, new: float, unit: str = "", scale: float = 1, places: int = 0) -> tuple[str, ...]:
        return what, f"{old / scale:,.{places}f}{unit}", f"{new / scale:,.{places}f}{unit}", f"{new / old:.2f}"

    def parameters(network: nn.Module) -> int:
        return sum(p.numel() for p in network.parameters())

    example = digits()[1][:1][0]
    old, new = before.network, after.network
    slow, fast = latencies([old, new])
    return [
        row("parameters", parameters(old), parameters(new)),
        row("MACs per image", count_macs(old, example), count_macs(new, example)),
        row("validation accuracy", before.accuracy, after.accuracy, " %", 0.01, 1),
        row("file size", file_size(old), file_size(new), " kB", 1e3, 1),
        row("latency, batch of 32", slow, fast, " ms", 1e-3, 3),
    ]


def show(title: str, rows: Sequence[tuple[str, ...]]) -> None:
    """Print the table, with rich if it is installed."""
    head = ("", "before", "after", "after / before")
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(f"\n{title}")
        for what, *figures in [head, *rows]:
            print(f"{what:<22}" + "".join(f"{figure:>16}" for figure in figures))
        return
    table = Table(title=title, title_justify="left")
    for column in head:
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


@contextmanager
def stage(what: str) -> Iterator[None]:
    """Print what is done in the block, and behind it the seconds that it took."""
    print(f"{what} ...", end=" ", flush=True)
    start = time.perf_counter()
    yield
    print(f"{time.perf_counter() - start:.0f} s", flush=True)


def quiet() -> None:
    """Silence messages of Lightning that do not matter here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # The images are in memory, so worker processes would only cost time.
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    # The networks are too small to gain from a GPU.
    warnings.filterwarnings("ignore", message="GPU available but not used")
    # Lightning up to 2.6 uses a name that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")


def main() -> None:
    """Train, compare, and print where the logs are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs per training (default: %(default)s)")
    parser.add_argument("--logdir", type=Path, help="folder for TensorBoard's files (default: a new temporary one)")
    args = parser.parse_args()
    logdir = args.logdir or Path(tempfile.mkdtemp(prefix="lightning-coreset-"))
    quiet()
    torch.set_num_threads(1)  # the networks are too small to gain from more threads
    for name in NETWORKS:
        with stage(f"{name}: {args.epochs} epochs without pruning"):
            before = train(name, prune=False, epochs=args.epochs, logdir=logdir)
        with stage(f"{name}: {args.epochs} epochs with CoresetPruningCallback()"):
            after = train(name, prune=True, epochs=args.epochs, logdir=logdir)
        with stage(f"{name}: measuring both"):
            rows = compare(before, after)
        show(f"{name}, {args.epochs} epochs", rows)
    print(f"\nSee how it went, event by event: tensorboard --logdir {logdir}")


if __name__ == "__main__":
    main()
