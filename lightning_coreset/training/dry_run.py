"""Plan the whole schedule before training, on a copy of the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_coreset.plan import PruningPlan
from lightning_coreset.planning import check_reachable
from lightning_coreset.qualified_names import not_pruned
from lightning_coreset.schedule import Interval
from lightning_coreset.state import duplicate
from lightning_coreset.surgery import apply_changes
from lightning_coreset.tables import html_details, html_lines, html_table, text_table
from lightning_coreset.training.event_planner import EventPlanner
from lightning_coreset.training.packages import is_overridden
from lightning_coreset.training.progress import Progress
from lightning_coreset.training.timeline import Timeline


@dataclass(frozen=True, eq=False)
class DryRun:
    """What a schedule will do to a model.

    It has a length, and is iterated over as ``plans.values()``: one plan after the other.

    Attributes:
        plans: The plan of every event, by epoch (step).
        interval: What the keys of ``plans`` count.
    """

    plans: Mapping[int, PruningPlan]
    interval: Interval

    def __len__(self) -> int:
        """How many events there are."""
        return len(self.plans)

    def __iter__(self) -> Iterator[PruningPlan]:
        """The plans, one for every event in their order."""
        return iter(self.plans.values())

    def __str__(self) -> str:
        """Tables of the events and of the groups, and the layers that stay; ``print(plans[time])`` shows one event."""
        if not self.plans:
            return "No event would take place."
        first = next(iter(self.plans.values()))
        parts = [text_table(self.rows(), names=False), "", text_table(self.group_rows()), *not_pruned(first.skipped)]
        return "\n".join(parts)

    def __repr__(self) -> str:
        if not self.plans:
            return "<DryRun: no events>"
        times, plans = list(self.plans), list(self.plans.values())
        events = f"{len(plans)} events, {self.interval}s {times[0]} to {times[-1]}"
        if len(plans) == 1:
            events = f"1 event, {self.interval} {times[0]}"
        return f"<DryRun: {events}, {plans[0].params_before:,} -> {plans[-1].params_after:,} parameters>"

    def _repr_html_(self) -> str:
        """What notebooks show: the events, with groups and reasons folded away."""
        if not self.plans:
            return html_lines([str(self)])
        first = next(iter(self.plans.values()))
        groups, reasons = self.group_rows(), not_pruned(first.skipped)
        folded = html_details(f"{len(groups) - 1} groups", html_table(groups))
        folded += html_details(f"{len(first.skipped)} layers not pruned", html_lines(reasons)) if reasons else ""
        return f"<div>{html_table(self.rows(), names=False)}{folded}</div>"

    def rows(self) -> list[tuple[str, ...]]:
        """The cells of the table of events, with a row of headings."""
        heads = (self.interval, "requested", "reached", "sparsity", "params", "MACs", "channels removed")
        cells = [
            (
                str(time),
                *(f"{ratio:.2%}" for ratio in (plan.requested, plan.reached, plan.sparsity)),
                *(f"{count:,}" for count in (plan.params_after, plan.macs_after, plan.channels_removed)),
            )
            for time, plan in self.plans.items()
        ]
        return [heads, *cells]

    def group_rows(self) -> list[tuple[str, ...]]:
        """The cells of the table of groups before the first event and after the last, with a row of headings."""
        before: dict[str, int] = {}
        after: dict[str, int] = {}
        for plan in self.plans.values():
            for group in plan.groups:
                before.setdefault(group.name, group.channels_before)
                after[group.name] = group.channels_after
        cells = [(name, f"{size:,} -> {after[name]:,}", f"{after[name] / size:.0%}") for name, size in before.items()]
        return [("group", "channels", "left"), *cells]


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
