"""Train with two processes under a guard, and write what each of them saw; run by test_steering.py."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from fitting import Classifier, MemoryLogger, Watcher, convnet, make_loader, make_trainer
from torch.utils.data import DataLoader, Subset
from torchmetrics.classification import MulticlassF1Score

from lightning_coreset import CoresetPruningCallback

SHAPE, BATCH, KEPT = (1, 6, 6), 8, 3
HIGH, LOW = 0.9, 0.5


def shares(ranks: int = 2) -> list[DataLoader]:
    """What each of two processes trains and validates on."""
    dataset = make_loader(*SHAPE).dataset
    return [DataLoader(Subset(dataset, range(rank, 64, ranks)), batch_size=BATCH) for rank in range(ranks)]


class Scored(Classifier):
    """Logs a score that falls where rank zero looks, and on the other rank does not."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])

    def on_validation_epoch_end(self) -> None:
        falls = self.trainer.current_epoch >= 1 and self.global_rank == 0
        self.log("score", LOW if falls else HIGH, sync_dist=False)


class Pruning(CoresetPruningCallback):
    """Keeps the network right after its event."""

    def on_prune(self, plan: Any, trainer: pl.Trainer, pl_module: Any) -> None:
        self.net = copy.deepcopy(pl_module.net)


def train(strategy: str, **options: Any) -> dict[str, Any]:
    """Train and return what this process saw."""
    torch.manual_seed(0)
    module, watcher, logger = Scored(convnet()), Watcher(), MemoryLogger()
    callback = Pruning(schedule={1: 0.5}, verbose=False, recalibrate_batches=KEPT, eval_batches=99, **options)
    trainer = make_trainer(
        callback, watcher, strategy=strategy, devices=2, max_epochs=4, logger=logger, use_distributed_sampler=False
    )
    mine = shares()[trainer.global_rank]
    trainer.fit(module, mine, mine)
    return {
        "weights": [*watcher.weights, copy.deepcopy(module.state_dict())],
        "history": callback.history.to_dicts(),
        "plans": len(callback.plans),
        "net": callback.net,
        "accuracy": logger.of("coreset/accuracy"),
        "rank": trainer.global_rank,
    }


def main() -> None:
    seen = {
        "guarded": train("ddp", monitor="score", max_drop=0.1, recover_epochs=1),
        "halved": train("ddp", monitor="score", max_drop=0.1, recover_epochs=1, on_failure="halve"),
        "metric": train("ddp", metric=MulticlassF1Score(3)),
    }
    torch.save(seen, Path(sys.argv[1]) / f"{seen['metric']['rank']}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()  # else gloo's threads may abort a process that ends first


if __name__ == "__main__":
    main()
