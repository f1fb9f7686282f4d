"""Accuracy right after a pruning event and two epochs later, with and without recomputed BatchNorm statistics.

    python examples/benchmarks/recalibration.py

Trains the convolutional network of ``examples/quickstart.py`` on the digits of scikit-learn, prunes it once during
training, and prints a Markdown table: means over the seeds, in percent. Some minutes on one CPU core with the default
three seeds.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import lightning as L
from torch.utils.data import DataLoader

from lightning_coreset import CoresetPruningCallback
from lightning_coreset.methods import MethodName

sys.path.insert(0, str(Path(__file__).parents[1]))
from quickstart import Classifier, convolutional_network, digits

METHODS: tuple[MethodName, ...] = ("reconstruction", "sensitivity", "magnitude", "random")
RATIOS = (0.3, 0.6, 0.85)
BATCHES = (0, 1, 8)


@dataclass(frozen=True)
class Accuracies:
    """Accuracies of one run: before the event, right after it, and at the end."""

    before: float
    after: float
    end: float


def train(method: MethodName, ratio: float, batches: int, seed: int, epochs: int = 6) -> Accuracies:
    """Train, with one event after two thirds of the epochs."""
    L.seed_everything(seed, verbose=False)
    training, validation = digits()
    pruning = CoresetPruningCallback(
        ratio,
        method=method,
        schedule="one_shot",
        start=2 * epochs // 3,
        recalibrate_batches=batches,
        eval_batches=100,  # larger than the number of batches: all of them
        verbose=False,
    )
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        callbacks=[pruning],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    loaders = DataLoader(training, batch_size=64, shuffle=True), DataLoader(validation, batch_size=256)
    trainer.fit(Classifier(convolutional_network()), *loaders)
    (event,) = pruning.history
    assert event.accuracy_before is not None
    assert event.accuracy_after is not None
    return Accuracies(event.accuracy_before, event.accuracy_after, float(trainer.callback_metrics["val_acc"]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers")

    print("| method | ratio | before | " + " | ".join(f"K = {batches}" for batches in BATCHES) + " |")
    print("| --- | ---: | ---: | " + " | ".join("---:" for _ in BATCHES) + " |")
    for method in METHODS:
        for ratio in RATIOS:
            runs = {
                batches: [train(method, ratio, batches, seed, arguments.epochs) for seed in range(arguments.seeds)]
                for batches in BATCHES
            }
            before = 100 * statistics.mean(run.before for run in runs[0])
            cells = [
                f"{100 * statistics.mean(run.after for run in found):.1f} -> "
                f"{100 * statistics.mean(run.end for run in found):.1f}"
                for found in runs.values()
            ]
            print(f"| {method} | {ratio} | {before:.1f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
