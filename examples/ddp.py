"""Train and prune a classifier of handwritten digits with DDP in two processes.

Run it with ``torchrun --nproc-per-node 2 examples/ddp.py``, or with ``python examples/ddp.py``; then Lightning starts
the second process. It needs no GPU and no download: the digits are part of scikit-learn, and the processes communicate
with gloo.

What to expect: a table of the pruning events, printed once and not by each process; then the accuracy on the validation
images of all processes; then the number of parameters, which is half of the original, and a hash of the weights for
each process. The hashes are equal: all processes have identical networks.
"""

from __future__ import annotations

import argparse
import hashlib
import os
from collections.abc import Sequence

import lightning as L
import torch
import torch.nn.functional as F
from report import quiet
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset, random_split
from torchmetrics.classification import MulticlassAccuracy

from lightning_coreset import CoresetPruningCallback

BATCH_SIZE = 64  # of all processes together
EPOCHS = 12


class Classifier(L.LightningModule):
    """An ordinary LightningModule, without any code for pruning or for several processes."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )
        self.accuracy = MulticlassAccuracy(num_classes=10, average="micro")

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.accuracy(self.network(images), labels)
        self.log("val_acc", self.accuracy)  # a metric object is reduced over all processes

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def digits() -> list[Subset]:
    """Return the training images and the validation images (one in five), the same in every process."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    every = TensorDataset(images, torch.tensor(data.target, dtype=torch.long))
    return random_split(every, [0.8, 0.2], torch.Generator().manual_seed(0))


def fingerprint(module: nn.Module) -> str:
    """Return a hash of all weights."""
    weights = b"".join(parameter.detach().numpy().tobytes() for parameter in module.parameters())
    return hashlib.sha256(weights).hexdigest()[:12]


def main() -> None:
    """Train in all processes, and compare their final weights."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs (default: %(default)s)")
    epochs = parser.parse_args().epochs
    quiet()
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 2))  # set by torchrun
    model = Classifier()
    before = sum(parameter.numel() for parameter in model.parameters())
    pruning = CoresetPruningCallback(0.5)
    trainer = L.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=processes,
        max_epochs=epochs,
        callbacks=[pruning],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    train_set, val_set = digits()
    size = BATCH_SIZE // processes
    # Lightning distributes the batches over the processes.
    trainer.fit(model, DataLoader(train_set, batch_size=size, shuffle=True), DataLoader(val_set, batch_size=size))

    after = sum(parameter.numel() for parameter in model.parameters())
    mine = f"rank {trainer.global_rank}: {after:,} of {before:,} parameters, weights {fingerprint(model)}"
    everyone = [mine] * trainer.world_size
    torch.distributed.all_gather_object(everyone, mine)
    if trainer.is_global_zero:
        pruning.summary()
        print(f"validation accuracy {trainer.callback_metrics['val_acc']:.1%}", *everyone, sep="\n")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()  # Lightning does not; gloo's threads may abort a process that exits first


if __name__ == "__main__":
    main()
