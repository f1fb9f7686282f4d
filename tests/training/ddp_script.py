"""Train with two processes, and write what each of them saw; run by test_ddp.py.

Usage: ``ddp_script.py DIRECTORY VARIANT...``, started twice by torchrun, or once for Lightning to start the second.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from fitting import Classifier, MemoryLogger, Validated, Watcher, make_loader, make_trainer, mlp
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Subset

from lightning_coreset import CoresetPruningCallback

BATCH = 16  # of all processes together


class Partly(Classifier):
    """Has a layer that no step uses, which DDP must be told."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = mlp(8, 4, 3)


class ByHand(Classifier):
    """Optimizes by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(cross_entropy(self.net(x), y))
        optimizer.step()


# name: (module, strategy, options of the callback, options of the Trainer)
VARIANTS: dict[str, tuple[type[pl.LightningModule], Any, dict[str, Any], dict[str, Any]]] = {
    "ddp": (Classifier, lambda: "ddp", {}, {}),
    "validated": (Validated, lambda: "ddp", {}, {}),
    "find_unused": (Partly, lambda: "ddp_find_unused_parameters_true", {"method": "magnitude"}, {}),
    "static_graph": (Classifier, lambda: DDPStrategy(static_graph=True), {}, {}),
    "bucket_view": (Classifier, lambda: DDPStrategy(gradient_as_bucket_view=True), {"order": "bottom_up"}, {}),
    "comm_hook": (Classifier, lambda: DDPStrategy(ddp_comm_hook=allreduce_hook), {"method": "random"}, {}),
    "accumulating": (Classifier, lambda: "ddp", {}, {"accumulate_grad_batches": 2}),
    "by_hand": (ByHand, lambda: "ddp_find_unused_parameters_true", {"method": "sensitivity"}, {}),
    "static_graph_by_hand": (ByHand, lambda: DDPStrategy(static_graph=True), {}, {}),
}


def share(rank: int, processes: int) -> DataLoader:
    """The part of every global batch that belongs to one process."""
    dataset = make_loader(8).dataset
    size = BATCH // processes
    mine = [i for i in range(len(dataset)) if i % BATCH // size == rank]  # type: ignore[arg-type]
    return DataLoader(Subset(dataset, mine), batch_size=size)


def train(variant: str, rank: int = 0, processes: int = 1) -> dict[str, Any]:
    """Train for three epochs with two pruning events; the weights after every step, what was logged, and the plans."""
    kind, strategy, arguments, options = VARIANTS[variant]
    torch.manual_seed(0)
    module, watcher, logger = kind(), Watcher(), MemoryLogger()
    pruning = CoresetPruningCallback(schedule={1: 0.3, 2: 0.5}, verbose=False, **arguments)
    if processes > 1:
        options = options | {"strategy": strategy(), "devices": processes}
    trainer = make_trainer(
        pruning, watcher, max_epochs=3, precision="64-true", use_distributed_sampler=False, logger=logger, **options
    )
    loader = share(rank, processes)
    trainer.fit(module, loader, *[loader] * (kind is Validated))
    logged = [(step, row) for step, row in logger.rows if any(tag.startswith("coreset/") for tag in row)]
    sizes = [[(group.name, group.channels_before, group.kept) for group in plan.groups] for plan in pruning.plans]
    return {"weights": watcher.weights, "logged": logged, "sizes": sizes, "world": trainer.world_size}


def main() -> None:
    directory, *variants = sys.argv[1:]
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    seen = {variant: train(variant, rank, 2) for variant in variants}
    torch.save(seen, Path(directory) / f"{rank}.pt")


if __name__ == "__main__":
    main()
