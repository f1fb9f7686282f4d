"""Train in processes that the main one spawns or forks, and write what comes back to it; run by test_spawn.py.

Usage: ``spawn_script.py FILE STRATEGY...``
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from fitting import Classifier, make_trainer, widths
from lightning.pytorch.callbacks import ModelCheckpoint
from training.ddp_script import EPOCHS, EVENTS, Shares

from lightning_coreset import CoresetPruningCallback, load_pruned, make_resizable


def train(model: Classifier, *strategy: str) -> dict[str, Any]:
    """Train a module, and look at what the main process has then."""
    checkpoint, pruning = ModelCheckpoint(), CoresetPruningCallback(schedule=EVENTS, verbose=False)
    options = {"strategy": strategy[0], "devices": 2} if strategy else {}
    trainer = make_trainer(
        checkpoint,
        pruning,
        max_epochs=EPOCHS,
        precision="64-true",
        use_distributed_sampler=False,
        enable_checkpointing=True,
        **options,
    )
    trainer.fit(model, datamodule=Shares())
    return {
        "weights": model.state_dict(),
        "widths": widths(model),
        "plans": len(pruning.plans),
        "saved": load_pruned(Classifier, checkpoint.best_model_path).double().state_dict(),
    }


def outcome(*strategy: str, resizable: bool = True) -> dict[str, Any]:
    torch.manual_seed(0)
    model = Classifier().double()
    try:
        return train(make_resizable(model) if resizable else model, *strategy)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "widths": widths(model)}


def main() -> None:
    file, *strategies = sys.argv[1:]
    seen = {"alone": outcome()}
    for strategy in strategies:
        seen[strategy] = outcome(strategy)
    seen["as built"] = outcome(strategies[-1], resizable=False)
    torch.save(seen, file)


if __name__ == "__main__":
    main()
