"""Prune as much as the accuracy bears: prune a little, train, look, and take back what training could not heal.

    python examples/iterative.py

It needs no GPU and no download: the digits ship with scikit-learn.

What to expect: the schedule asks for more than the network can bear, so the guard has to step in. Two to four times a
warning says that an event is taken back, because the accuracy did not come back to within a point (``--max-drop``) of
the best before pruning; the next steps are half as large. The table of events marks those that were taken back. In the
end some 85 to 90 % of the parameters are gone, with an accuracy within about a point of the unpruned network's. A last
warning says that training ended before the schedule did: the guard held it up. With ``--on-failure stop`` the first
event that fails ends pruning, at about half of the parameters.
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
    """Train, prune until it hurts, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=60, help="epochs, of all phases (default: %(default)s)")
    parser.add_argument("--start", type=int, default=15, help="the first epoch that prunes (default: %(default)s)")
    parser.add_argument("--max-drop", type=float, default=0.01, help="accuracy that may go (default: %(default)s)")
    parser.add_argument("--on-failure", choices=["stop", "halve"], default="halve", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(1)  # the network is so small that more threads mostly wait for each other
    L.seed_everything(args.seed, verbose=False)

    pruning = CoresetPruningCallback(
        0.99,  # more than this network can bear: the guard finds out how much it can
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
    # Not what training logged last, which may be that of a network that was taken back.
    (metrics,) = trainer.validate(model, test_loader, verbose=False)
    show(f"ConvNet, {args.epochs} epochs", before, Result.of(model.network, images.example, metrics["val_acc"]))


if __name__ == "__main__":
    main()
