"""Train with two processes that each log scores of their own; run by test_best_on_ranks.py.

Usage: ``best_ddp_script.py DIRECTORY``, started twice by torchrun.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from training.best_checkpoint.scripted import Scripted, kept, name, run, saving

OPTIONS: dict[str, dict[str, Any]] = {
    "epochs": {"saving": {"save_top_k": 2}},
    "seldom": {"saving": {"save_top_k": -1, "save_on_train_epoch_end": True}, "check_val_every_n_epoch": 2},
    "steps": {"saving": {"every_n_train_steps": 1}, "pruning": {"interval": "step", "schedule": {5: 0.3, 9: 0.5}}},
    "guarded": {"pruning": {"schedule": {2: 0.5}, "max_drop": 0.1, "monitor": "val_acc", "eval_batches": 0}},
}


class Reduced(Scripted):
    """Logs the mean of what the processes found, which is what is written down."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        shift = 0.01 if self.global_rank else -0.01
        self.log("val_acc", self.score() + (shift if self.trainer.world_size > 1 else 0.0), sync_dist=True)


def train(directory: Path, kind: str, **options: Any) -> dict[str, Any]:
    named = dict(OPTIONS[kind])
    best = saving(directory / kind, **named.pop("saving", {}))
    trainer, _ = run(best, module=Reduced(), **named, **options)
    return {
        "rank": trainer.global_rank,
        "scores": kept(best),
        "best": (name(best.best_model_path), round(float(best.best_model_score), 4)),
        "worst": name(best.kth_best_model_path),
    }


def main() -> None:
    directory = Path(sys.argv[1])
    warnings.simplefilter("ignore")
    seen = {kind: train(directory, kind, strategy="ddp", devices=2) for kind in OPTIONS}
    torch.save(seen, directory / f"{seen['epochs']['rank']}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()  # else gloo's threads may abort a process that ends first


if __name__ == "__main__":
    main()
