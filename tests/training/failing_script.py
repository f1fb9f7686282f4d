"""Fail at some point of a pruning event on one of two processes; run by test_failures.py.

Usage: ``failing_script.py DIRECTORY SECONDS POINT...``, started twice by torchrun, with the process group's timeout.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch
from fitting import Classifier, Watcher, make_trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from training.ddp_script import Shares

from lightning_coreset import CoresetPruningCallback, PruningPlan
from lightning_coreset.training import event, event_planner

SECONDS = 60  # that a rank is stuck, where it is


class InjectedError(Exception):
    """Raised where the test wants it."""


def fail(*args: Any, **kwargs: Any) -> Any:
    raise InjectedError("on purpose")


def stick(*args: Any, **kwargs: Any) -> None:
    time.sleep(SECONDS)


def other_plan(plain: Any) -> PruningPlan:
    return replace(ORIGINAL(plain), requested=0.123)


ORIGINAL = PruningPlan.from_dict


@dataclass(frozen=True)
class Point:
    """What is replaced, by what, and on which rank."""

    owner: Any
    name: str
    rank: int
    instead: Callable[..., Any] = fail
    certify: bool = False


POINTS = {
    "structure": Point(event_planner, "analyse", 1),
    "check": Point(event_planner, "tried_groups", 1),
    "reach": Point(event_planner, "check_reachable", 0),
    "certificate": Point(event_planner, "measure_input_norms", 1, certify=True),
    "plan": Point(event_planner, "make_plan", 0),
    "another plan": Point(event_planner.PruningPlan, "from_dict", 1, other_plan),
    "surgery": Point(event, "apply_changes", 1),
    "optimizer": Point(event, "slice_optimizer_state", 0),
    "hook": Point(CoresetPruningCallback, "on_prune", 1),
    "stuck": Point(CoresetPruningCallback, "on_prune", 1, stick),
}


@contextmanager
def failing(point: Point, rank: int) -> Iterator[None]:
    if rank != point.rank:
        yield
        return
    with patch.object(point.owner, point.name, point.instead):
        yield


class Surviving(CoresetPruningCallback):
    """A user's, which lets training go on without the event."""

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        try:
            super().on_train_epoch_start(trainer, pl_module)
        except (InjectedError, RuntimeError):
            self._run._events = {}


def train(timeout: float, pruning: pl.Callback | None, strategy: Callable[..., Any] = DDPStrategy) -> dict[str, Any]:
    """Train for two epochs, with an event in the second; how it ended, and the weights after every step."""
    torch.manual_seed(0)
    module, watcher = Classifier(), Watcher()
    trainer = make_trainer(
        *([] if pruning is None else [pruning]),
        watcher,
        max_epochs=2,
        strategy=strategy(timeout=timedelta(seconds=timeout)),
        devices=2,
        use_distributed_sampler=False,
    )
    began, error = time.monotonic(), None
    try:
        trainer.fit(module, datamodule=Shares())
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    moments = {p: len(s["exp_avg"]) for each in trainer.optimizers for p, s in each.state.items()}
    sizes = [(len(parameter), moments.get(parameter)) for parameter in module.parameters()]
    return {"error": error, "seconds": time.monotonic() - began, "weights": watcher.weights, "sizes": sizes}


def pruning(kind: type[CoresetPruningCallback] = CoresetPruningCallback, *, certify: bool = False) -> pl.Callback:
    return kind(schedule={1: 0.4}, verbose=False, certify=certify)


def refused() -> str | None:
    """What comes of a strategy whose parameters are DTensors."""

    class Parallel(Classifier):
        def configure_model(self) -> None:
            pass

    strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
    trainer = make_trainer(pruning(), max_epochs=2, strategy=strategy, devices=2)
    try:
        trainer.fit(Parallel(), datamodule=Shares())
    except Exception as raised:
        return f"{type(raised).__name__}: {raised}"
    return None


def main() -> None:
    directory, timeout, *names = sys.argv[1:]
    rank = int(os.environ["RANK"])
    run = partial(train, float(timeout))
    seen: dict[str, Any] = {}
    for name in names:
        if name == "survived":
            seen["unpruned"] = run(None)
            with failing(POINTS["surgery"], rank):
                seen[name] = run(pruning(Surviving))
        elif name == "refused":
            seen[name] = refused()
        else:
            with failing(POINTS[name], rank):
                seen[name] = run(pruning(certify=POINTS[name].certify))
    torch.save(seen, Path(directory) / f"{rank}.pt")
    os._exit(0)  # a process group that has timed out is not waited for


if __name__ == "__main__":
    main()
