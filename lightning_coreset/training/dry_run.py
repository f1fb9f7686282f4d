"""Plan the whole schedule before training, on a copy of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_coreset.plan import PruningPlan
from lightning_coreset.planning import check_reachable
from lightning_coreset.schedule import Interval
from lightning_coreset.state import duplicate
from lightning_coreset.surgery import apply_changes
from lightning_coreset.training.event_planner import EventPlanner
from lightning_coreset.training.packages import is_overridden
from lightning_coreset.training.progress import Progress
from lightning_coreset.training.timeline import Timeline


@dataclass(frozen=True, eq=False)
class DryRun:
    """What a schedule will do to a model.

    Attributes:
        plans: The plan of every event, by epoch (step).
        interval: What the keys of ``plans`` count.
    """

    plans: Mapping[int, PruningPlan]
    interval: Interval

    def __str__(self) -> str:
        """A table for every event; skipped layers are the same at all events and listed once."""
        first, *later = self.plans.items()
        parts = [f"{self.interval} {first[0]}:\n{first[1]}", *(f"{self.interval} {t}:\n{p.table()}" for t, p in later)]
        return "\n\n".join(parts)


def dry_run(
    trainer: pl.Trainer, pl_module: pl.LightningModule, timeline: Timeline, planner: EventPlanner, batch: Any = None
) -> DryRun:
    """Plan all events of a training run in turn, each applied to a copy of the model before the next.

    Args:
        trainer: The Trainer that would train.
        pl_module: The module; it is only read.
        timeline: When the events are.
        planner: What plans them.
        batch: A batch for ``training_step``, if there are no other example inputs.
    """
    planner.check_rules(pl_module)
    model = duplicate(pl_module)
    model.trainer = trainer
    if timeline.interval == "step" and trainer.max_steps <= 0 and trainer.train_dataloader is None:
        raise MisconfigurationException(
            "Expected a Trainer with max_steps, since events are counted in steps, and how many of them an epoch has "
            "is not known before training."
        )
    timeline.events(trainer)
    planner.start(None)
    planner.source.begin(model)
    try:
        batch = _first_batch(model) if batch is None else batch
        if batch is not None or planner.source.has_inputs:
            planner.source.see_batch(model, batch)
        progress = Progress()
        if not planner.begin(trainer, model, progress):
            raise _no_example()
        if progress.original is None:  # events would wait for layers to run, and none will
            check_reachable(model, planner.structure(trainer, model, progress), planner.request)
        timeline, plans = timeline.towards(progress.target), {}
        for time, ratio in timeline.events(trainer).items():
            plan = planner.plan(trainer, model, progress, ratio / timeline.target)
            if plan is None:
                break
            apply_changes(model, plan.changes, plan.attributes)
            plans[time] = plan.without_tensors()
            progress.plans.append(plans[time])
            progress.done[time] = ratio
        return DryRun(plans, timeline.interval)
    finally:
        planner.source.end()


def _first_batch(model: pl.LightningModule) -> Any:
    if not model.automatic_optimization or not is_overridden("train_dataloader", model):
        return None
    return next(iter(model.train_dataloader()))


def _no_example() -> MisconfigurationException:
    return MisconfigurationException(
        "Expected an example to run the model on but there is none before training. Give dry_run(..., batch=...), "
        "CoresetPruningCallback(example_inputs=...) or the module's example_input_array."
    )
