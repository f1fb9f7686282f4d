"""Train LeNet-300-100 on handwritten digits, once without pruning and once with ``CoresetPruningCallback``.

    python examples/mnist_lenet.py                    # scikit-learn's digits, 8 x 8: no download
    python examples/mnist_lenet.py --data mnist.npz   # MNIST from a file, see examples/data.py
    python examples/mnist_lenet.py --data folder      # MNIST, downloaded by torchvision into this folder

What to expect: a line for every pruning event, then a table. A tenth of the parameters is left, and the final accuracy
is within about one point of the unpruned network's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from data import Images, digits, loaders, mnist
from report import Result, quiet, show
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from lightning_coreset import CoresetPruningCallback


class LeNet(L.LightningModule):
    """An ordinary LightningModule, without any code for pruning."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            *(nn.Flatten(), nn.Linear(pixels, 300), nn.ReLU()),
            *(nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)),
        )
        self.accuracy = MulticlassAccuracy(num_classes=10, average="micro")

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.accuracy(self.network(images), labels)
        self.log("val_acc", self.accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def train(images: Images, epochs: int, seed: int, callbacks: list[L.Callback]) -> Result:
    """Train a new network, always from the same initial weights."""
    L.seed_everything(seed, verbose=False)
    model = LeNet(images.example.numel())
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, *loaders(images, batch_size=64))
    return Result.of(model.network, images.example, trainer.callback_metrics["val_acc"].item())


def main() -> None:
    """Train with and without pruning, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="MNIST: an .npz file or a folder (default: scikit-learn's digits)")
    parser.add_argument("--epochs", type=int, default=20, help="epochs of each training (default: %(default)s)")
    parser.add_argument(
        "--ratio", type=float, default=0.9, help="fraction of the parameters to remove (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(1)  # the network is too small to gain from more threads
    images = digits() if args.data is None else mnist(args.data)

    before = train(images, args.epochs, args.seed, [])
    pruning = CoresetPruningCallback(args.ratio)
    after = train(images, args.epochs, args.seed, [pruning])

    pruning.summary()
    show(f"LeNet-300-100, {args.epochs} epochs", before, after)


if __name__ == "__main__":
    main()
