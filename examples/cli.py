"""Train and prune a classifier of handwritten digits from the command line.

Run it in this folder with ``python cli.py fit --config cli.yaml``, after ``pip install ".[examples,cli]"`` in the one
above. It needs no GPU and no download: the digits are part of scikit-learn. ``docs/cli.md`` has more commands.

What to expect: a line for every pruning event. The validation accuracy falls slightly at the first event and has
recovered at the end, with half of the parameters. ``lightning_logs/version_*/`` contains the TensorBoard file, the last
checkpoint, and ``config.yaml`` to repeat the run.
"""

from __future__ import annotations

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LightningCLI
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Digits(pl.LightningDataModule):
    """Images (1, 8, 8) of handwritten digits; a fifth is used for validation.

    Args:
        batch_size: Images in a batch.
    """

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        data = load_digits()
        images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
        labels = torch.tensor(data.target)
        train, val = train_test_split(range(len(labels)), test_size=0.2, stratify=labels, random_state=0)
        self.train_set = TensorDataset(images[train], labels[train])
        self.val_set = TensorDataset(images[val], labels[val])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_set, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_set, self.batch_size)


class Classifier(pl.LightningModule):
    """A multilayer perceptron.

    Args:
        hidden: Widths of the two hidden layers.
        lr: Learning rate of Adam.
    """

    def __init__(self, hidden: tuple[int, int] = (300, 100), lr: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        first, second = hidden
        self.net = nn.Sequential(
            *(nn.Flatten(), nn.Linear(64, first), nn.ReLU()),
            *(nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 10)),
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.net(images), labels)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.log("val_acc", (self.net(images).argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.hparams["lr"])


def square(progress: float) -> float:
    """A custom schedule: most channels are removed late."""
    return progress**2


class Power:
    """A schedule with an option.

    Args:
        exponent: The larger it is, the later channels are removed.
    """

    def __init__(self, exponent: float = 2.0) -> None:
        self.exponent = exponent

    def __call__(self, progress: float) -> float:
        return progress**self.exponent

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Power) and self.exponent == other.exponent

    def __hash__(self) -> int:
        return hash(self.exponent)


def example() -> Tensor:
    """An example input, for the callback to read the structure of ``Classifier.net``."""
    return torch.zeros(1, 1, 8, 8)


if __name__ == "__main__":
    LightningCLI(Classifier, Digits)
