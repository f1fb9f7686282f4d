"""Prune as far as accuracy allows: prune, train, measure, and undo an event from which accuracy does not recover.

    python examples/iterative.py

It needs no GPU and no download: the digits are part of scikit-learn.

What to expect: the schedule asks for more than is possible without losing accuracy, so the guard has to act. Two to
four warnings say that an event is undone, because accuracy did not recover to within one point (``--max-drop``) of its
best value before pruning; the next steps are half as large. The table of events marks events that were undone. In the
end 85 to 90 % of the parameters have been removed, and the accuracy is within about one point of the unpruned
network's. A last warning says that training ended before the schedule did, because the guard delayed it. With
``--on-failure stop`` the first event that fails ends pruning, with about half of the parameters left.
"""

from __future__ import annotations

import argparse

import lightning as L
import torch
from data import digits, loaders
from quickstart import Classifier, convolutional_network
from report import Result, quiet, show

from lightning_coreset import CoresetPruningCallback


def main() -> None:
    """Train, prune until accuracy no longer recovers, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60, help="epochs in total (default: %(default)s)")
    parser.add_argument("--start", type=int, default=15, help="epoch of the first event (default: %(default)s)")
    parser.add_argument("--max-drop", type=float, default=0.01, help="accuracy that may be lost (default: %(default)s)")
    parser.add_argument("--on-failure", choices=["stop", "halve"], default="halve", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(1)  # the network is too small to gain from more threads
    L.seed_everything(args.seed, verbose=False)

    pruning = CoresetPruningCallback(
        0.99,  # more than is possible without losing accuracy: the guard finds the limit
        schedule="cosine",
        start=args.start,
        end=args.epochs - 5,
        every=4,
        max_drop=args.max_drop,
        recover_epochs=3,
        on_failure=args.on_failure,
    )
    model = Classifier(convolutional_network())
    images = digits()
    train_loader, test_loader = loaders(images, batch_size=64)
    trainer = L.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        callbacks=[pruning],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, train_loader, test_loader)

    pruning.summary()
    first = pruning.history[0]
    before = Result(first.params_original, first.macs_original, first.accuracy_before)
    # Not the value that training logged last, which may belong to an event that was undone.
    (metrics,) = trainer.validate(model, test_loader, verbose=False)
    show(f"ConvNet, {args.epochs} epochs", before, Result.of(model.network, images.example, metrics["val_acc"]))


if __name__ == "__main__":
    main()
