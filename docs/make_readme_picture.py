"""Write ``docs/images/readme.svg``: layer widths and accuracy of a network while it is trained and pruned.

    python docs/make_readme_picture.py

Trains the ConvNet of ``examples/quickstart.py`` on scikit-learn's digits, with ``CoresetPruningCallback(0.9)`` and
without the callback. Needs what ``pip install ".[docs,examples]"`` installs; takes less than a minute on one core.
Prints the events and the accuracies.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import lightning as L
import torch
from torch.utils.data import DataLoader

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from drawing import BLUE, GREEN, GREY, INK, PALE, PURPLE, RED, panels, plain, save  # noqa: E402
from quickstart import BATCH_SIZE, EPOCHS, NETWORKS, Classifier, digits, quiet  # noqa: E402

from lightning_coreset import CoresetPruningCallback  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from lightning_coreset.training import History


RATIO = 0.9


class Watch(L.Callback):
    """Record the accuracy of every validation."""

    def __init__(self) -> None:
        self.accuracies: list[float] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.accuracies.append(float(trainer.callback_metrics["val_acc"]))


def trained(*callbacks: L.Callback) -> list[float]:
    """Train the ConvNet as the quickstart does; return the validation accuracy after every epoch."""
    L.seed_everything(0, verbose=False)
    model, watch = Classifier(NETWORKS["ConvNet"]()), Watch()
    train_set, test_set = digits()
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[*callbacks, watch],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    loaders = DataLoader(train_set, batch_size=BATCH_SIZE, shuffle=True), DataLoader(test_set, batch_size=len(test_set))
    trainer.fit(model, *loaders)
    return watch.accuracies


def draw_widths(axes: Axes, history: History) -> None:
    """Draw each layer as a band over the epochs, as wide as its number of channels."""
    epochs = [0, *(event.epoch for event in history), EPOCHS]
    top, ticks = 0.0, {}
    for place, group in enumerate(history[0].groups):
        left = [group.channels_original, *(event.groups[place].channels for event in history)]
        left.append(left[-1])
        middle = top + group.channels_original / 2
        axes.fill_between([0, EPOCHS], top, top + group.channels_original, color=PALE, linewidth=0)
        half = [channels / 2 for channels in left]
        low, high = [middle - part for part in half], [middle + part for part in half]
        axes.fill_between(epochs, low, high, step="post", color=(BLUE, GREEN, PURPLE)[place], linewidth=0)
        axes.text(EPOCHS + 0.4, middle, f"{left[-1]} left", va="center", color=INK)
        ticks[f"conv {place + 1}\n{left[0]} channels"] = middle
        top += group.channels_original + 12
    axes.set(xlim=(0, EPOCHS), ylim=(top - 10, -2), xlabel="epoch", xticks=range(0, EPOCHS + 1, 5))
    axes.set_yticks(list(ticks.values()), list(ticks))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_title("channels of every layer, while it trains")


def draw_accuracy(axes: Axes, history: History, accuracies: list[float], unpruned: list[float]) -> None:
    """Draw the accuracy after every epoch, with and without pruning, and the fraction of removed parameters."""
    steps = [0, *(event.epoch for event in history), EPOCHS]
    gone = [0.0, *(100 * event.sparsity for event in history)]
    lines = (
        ("unpruned", unpruned, {"color": GREY, "linestyle": "--"}),
        ("pruned", accuracies, {"color": RED, "lw": 2}),
    )
    for name, values, style in lines:
        percent = [100 * value for value in values]
        axes.plot(range(1, EPOCHS + 1), percent, label=f"accuracy, {name}: {percent[-1]:.1f}% at the end", **style)
    label = f"parameters gone: {gone[-1]:.0f}% at the end"
    axes.fill_between(steps, [*gone, gone[-1]], step="post", color=BLUE, alpha=0.25, linewidth=0, label=label)
    axes.set(xlim=(0, EPOCHS), ylim=(0, 103), xlabel="epoch", ylabel="%", xticks=range(0, EPOCHS + 1, 5))
    axes.set_title("validation accuracy and sparsity")
    axes.legend(frameon=False, loc="lower right", fontsize=8)


def main() -> None:
    """Train with and without pruning, print and draw."""
    quiet()
    torch.set_num_threads(1)
    pruning = CoresetPruningCallback(RATIO, verbose=False)
    accuracies, unpruned = trained(pruning), trained()
    pruning.summary()
    for name, values in (("pruned", accuracies), ("unpruned", unpruned)):
        print(f"{name:9}" + " ".join(f"{100 * value:.1f}" for value in values))
    figure, (widths, curves) = panels(2, width=8.4, height=3.2)
    draw_widths(widths, pruning.history)
    draw_accuracy(curves, pruning.history, accuracies, unpruned)
    plain(widths, grid=False)
    plain(curves)
    save(figure, "readme.svg")


if __name__ == "__main__":
    main()
