"""The pruning events of one training run: when one is due, the order of its parts, what is remembered of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_coreset.optimizers import optimizers_stay
from lightning_coreset.plain_data import as_type
from lightning_coreset.plan import PruningPlan
from lightning_coreset.training.best_checkpoint import BestCheckpoints
from lightning_coreset.training.early_stopping import restart_patience
from lightning_coreset.training.event import apply_event
from lightning_coreset.training.event_planner import EventPlanner
from lightning_coreset.training.examples import Candidate, read_candidates
from lightning_coreset.training.guard import Guard
from lightning_coreset.training.metrics import Monitor
from lightning_coreset.training.progress import Progress
from lightning_coreset.training.recalibration import Recalibration
from lightning_coreset.training.report import Outlook, Reporter, logged_step
from lightning_coreset.training.strategies import from_rank_zero, run_on_all_ranks
from lightning_coreset.training.timeline import Timeline

_MOST_BYTES = 1 << 20
"""Of examples in a checkpoint."""
_MOST_BATCH_BYTES = 1 << 26
"""Of the batches on which layers are measured: some hundred small images."""

OnPrune: TypeAlias = Callable[[PruningPlan, pl.Trainer, pl.LightningModule], None]


@dataclass(repr=False)
class PruningRun:
    """The state of a training run with pruning events, and the parts that carry them out.

    Attributes:
        requested: When the events are, and the ratio that is requested.
        planner: Plans an event.
        monitor: Measures the model before and after an event.
        guard: Takes an event back if the model does not recover.
        recalibration: Recomputes the statistics of BatchNorms at an event.
        reporter: Reports an event.
        checkpoints: Decides which checkpoint is the best.
        restarts_patience: Whether an event restarts the patience of EarlyStopping.
        progress: What has been done so far; part of every checkpoint.
        saves_examples: Whether checkpoints hold the examples that the structure is read from, for the first event after
            a resume.
        others: The runs of other pruning callbacks of the Trainer. While the guard of one waits for recovery, no other
            has an event: taking back means to restore the model before, which would undo theirs.
    """

    requested: Timeline
    planner: EventPlanner
    monitor: Monitor
    guard: Guard
    recalibration: Recalibration
    reporter: Reporter
    checkpoints: BestCheckpoints
    restarts_patience: bool
    progress: Progress = field(default_factory=Progress)
    saves_examples: bool = True
    others: list[PruningRun] = field(default_factory=list, repr=False)
    _examples: list[Candidate] = field(default_factory=list, repr=False)
    _moment_batches: list[Any] = field(default_factory=list, repr=False)
    _events: dict[int, float] = field(default_factory=dict)
    _next_event: float = math.inf
    _waits_in_epoch: int = -1

    def __post_init__(self) -> None:
        self._go_on_from(self.progress)

    def start(self, trainer: pl.Trainer) -> None:
        """Start a fit; a Trainer that has not trained yet starts a new run."""
        self._events, self._waits_in_epoch = {}, -1
        self._examples = []
        if trainer.current_epoch == 0 and trainer.global_step == 0:
            self._go_on_from(Progress())
            self.guard.reset()
            self.checkpoints.start()
            self.monitor.was_logged = False

    def _go_on_from(self, progress: Progress) -> None:
        """Take over what was done; only this run knows what is measured."""
        self.progress = progress
        progress.history.metric = self.monitor.name

    def watch_checkpoints(self, trainer: pl.Trainer) -> None:
        """Watch what the Trainer's ModelCheckpoints save in this fit."""
        self.checkpoints.begin(trainer, self, *self.others)

    def resume_examples(self, pl_module: pl.LightningModule) -> None:
        """Go on with the examples of a checkpoint; once, when the source of examples has begun."""
        self.planner.source.resume_with(pl_module, self._examples)
        self.planner.moments.resume_with(self._moment_batches)
        self._examples, self._moment_batches = [], []

    def lay_out_events(self, trainer: pl.Trainer) -> None:
        """Compute the events of this fit, once the length of training is known."""
        self.planner.start(self.progress.target)
        self._events = self.timeline.events(trainer)
        self.progress.is_resumed = trainer.global_step > 0
        reached, last = max(self.progress.done.values(), default=0.0), max(self._events.values(), default=0.0)
        if reached > last:
            rank_zero_warn(
                f"The checkpoint is of a run with a pruning ratio of {reached:g}, and {last:g} is requested now: "
                "nothing more is pruned, and channels do not come back. To prune less, begin from a checkpoint before."
            )
        self._find_next_event()
        if self.timeline.interval == "epoch":
            self.guard.check_first_event(trainer, self._next_event)

    @optimizers_stay()
    def begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, event: bool = False) -> bool:
        """Check the model once in a fit, as soon as there is an example to run it on.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            event: Whether an event is about to happen. Before the first one, the module is looked at once more.

        Returns:
            Whether the ratios of events are others now, since none was given and less than half can go.
        """
        if not self._has_begun or (event and not self.progress.plans):
            before = self.timeline
            with self.reporter.timed():
                begun = self.planner.begin(trainer, pl_module, self.progress)
            changed = self.timeline != before
            if changed:
                self._events = self.timeline.events(trainer)
                self._find_next_event()
            if not self.progress.is_resumed and not self.progress.plans:
                self.reporter.note_original(pl_module)
            if begun and self.progress.original is not None:
                self.reporter.structure_known(trainer, lambda: self._outlook(self.timeline.position(trainer)))
            return changed
        return False

    def _outlook(self, now: int) -> Outlook:
        """What will be pruned in this fit, for people."""
        request, curve = self.planner.request, self.timeline.schedule.curve
        groups, skipped = self.planner.offered
        return Outlook(
            unit=request.unit,
            whole=getattr(self.progress.original, request.unit, None),
            reached=self.progress.reached,
            target=None if request.method.chooses_sizes else self.timeline.target,
            rules=isinstance(request.pruning_ratio, Mapping),
            groups=groups,
            skipped=skipped,
            times=sorted({max(time, now) for time in self.progress.open_events(self._events)}),
            interval=self.timeline.interval,
            curve=curve if isinstance(curve, str) else getattr(curve, "__name__", "given"),
        )

    @property
    def timeline(self) -> Timeline:
        """When the events are, and the ratio of the last one."""
        return self.requested.towards(self.progress.target)

    @property
    def awaits_events(self) -> bool:
        """Whether there is an event to come."""
        return self._next_event < math.inf

    def is_due(self, trainer: pl.Trainer) -> bool:
        """Whether it is time for an event."""
        return self.timeline.position(trainer) >= self._next_event

    @optimizers_stay()
    def prune_if_due(self, trainer: pl.Trainer, pl_module: pl.LightningModule, on_prune: OnPrune) -> None:
        """Carry out all events that are due, as one.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            on_prune: Called at the end of an event, on every rank. If it raises, the event is undone.
        """
        now = self.timeline.position(trainer)
        if now < self._next_event or self.guard.waiting:
            return
        if not self._has_begun and self.planner.source.is_resumed:
            self.begin(trainer, pl_module)  # the structure can be read before the first batch
        if not self._has_begun:
            return
        if trainer.current_epoch <= self._waits_in_epoch and not self._has_more_to_read(trainer):
            return
        if any(other.guard.recovering for other in self.others):
            return
        due = self._due(now)
        if due and self.begin(trainer, pl_module, event=True):
            due = self._due(now)
        if due and self._has_begun and self.progress.original is None:  # as below
            self._waits_in_epoch = trainer.current_epoch
        elif due and self._has_begun:
            self._waits_in_epoch = -1
            with self.reporter.timed():
                self._prune(trainer, pl_module, due, on_prune)
        self._find_next_event()

    def _due(self, now: int) -> dict[int, float]:
        return {time: ratio for time, ratio in self.progress.open_events(self._events).items() if time <= now}

    @property
    def _has_begun(self) -> bool:
        """Whether the structure could be read in this fit."""
        return self.planner.source.has_begun

    def _has_more_to_read(self, trainer: pl.Trainer) -> bool:
        """Whether layers have run since that an event may have waited for: it comes at once if steps count."""
        source = self.planner.source
        return self.timeline.interval == "step" and from_rank_zero(trainer, lambda: source.has_untried)

    @optimizers_stay()
    def take_back(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, over: bool = False) -> bool:
        """Take the last event back if it has failed, and return whether it was.

        Not within validation, where a ModelCheckpoint may still save the model that was validated.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            over: Whether training has ended.
        """
        taken_back = self.guard.take_back(trainer, pl_module, self.progress, over=over)
        if taken_back:
            self._tell_checkpoints(trainer)
            self._find_next_event()
            self.reporter.taken_back(trainer, self.progress.history, self.progress.original)
        return taken_back

    def end(self, trainer: pl.Trainer) -> None:
        """Warn if training ended before the schedule did, or the best checkpoint is less pruned than requested."""
        missed = list(self.progress.open_events(self._events))
        is_over = trainer.interrupted or self.guard.stopped
        if trainer.limit_train_batches == 0:
            rank_zero_warn("Training had no batches, so that there was no pruning event.")
        if missed and not is_over:
            rank_zero_warn(
                f"Training ended before the pruning events of {self.timeline.interval}s {missed}; the last ratio "
                f"reached was {self.progress.reached:.2%} of the requested {max(self._events.values()):.2%}."
            )
        if not is_over:
            self.planner.late.explain(self.progress.reached, max(self._events.values(), default=0.0))

        requested = self.timeline.target
        is_missed = max(self.progress.done.values(), default=0.0) < requested
        self.checkpoints.fit_end(requested, is_missed=is_missed and not is_over)

    def state_dict(self) -> dict[str, Any]:
        """What was done, as plain data."""
        state = {**self.progress.to_dict(), "guard": self.guard.to_dict()}
        checkpoints = self.checkpoints.to_dict()
        if checkpoints:
            state["checkpoints"] = checkpoints
        if self.monitor.was_logged:
            state["was_logged"] = True
        if self.saves_examples and self.progress.open_events(self._events) and not self.guard.stopped:
            examples = self.planner.source.to_plain(_MOST_BYTES)
            if examples:
                state["examples"] = examples
            batches = self.planner.moments.to_plain(_MOST_BATCH_BYTES)
            if batches is not None:
                state["moment_batches"] = batches
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue where the checkpoint was made.

        Raises:
            ValueError: If it is not what :meth:`state_dict` returned. Nothing is changed then.
        """
        try:
            progress = Progress.from_dict(state_dict)
            examples = read_candidates(state_dict.get("examples", []))
            batches = as_type(state_dict.get("moment_batches", []), list[Any], "moment_batches")
            checkpoints = self.checkpoints.read(state_dict.get("checkpoints", {}))
            self.guard.load(state_dict.get("guard"), progress)
        except ValueError as error:
            raise ValueError(
                f"Expected the state of a CoresetPruningCallback in the checkpoint but cannot read it ({error}) The "
                "file is damaged, or was written by a newer lightning_coreset. Resume from another checkpoint, or "
                "start a new run from its weights: load_pruned reads them alone."
            ) from error
        self._go_on_from(progress)
        self._examples, self._moment_batches = examples, batches
        self.checkpoints.load(*checkpoints)
        self.monitor.was_logged = state_dict.get("was_logged") is True

    def _find_next_event(self) -> None:
        # Kept, since going through all events at every step is measurable.
        self._next_event = min(self.progress.open_events(self._events), default=math.inf)

    def _prune(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, due: Mapping[int, float], on_prune: OnPrune
    ) -> None:
        """One event: nothing is changed before all is planned, and all is undone if a part of it fails."""
        scheduled = max(due.values())
        ratio = self.guard.limit(scheduled, self.progress)
        on_progress = self.reporter.planning(trainer)
        plan = self.planner.plan(trainer, pl_module, self.progress, ratio / self.timeline.target, on_progress)
        if not self._has_begun:  # it comes once the structure could be read from the next batch
            return
        if plan is None and self.planner.waits:  # what may run in this epoch is looked at in the next one
            self._waits_in_epoch = trainer.current_epoch
            return
        if plan is None:
            rank_zero_warn(
                f"The pruning event of {self._now(trainer)} found nothing left to prune: "
                f"{self.progress.reached:.2%} of the original is removed, {ratio:.2%} was requested."
            )
            self.progress.done.update(due)
            return
        savepoint = self.guard.before_event(trainer, pl_module) if plan.channels_removed else None
        if plan.channels_removed:
            self._tell_checkpoints(trainer)
        before = self.monitor.evaluate(trainer, pl_module)

        def complete() -> float | None:
            self.recalibration.run(trainer, pl_module)
            run_on_all_ranks(trainer, lambda: on_prune(plan, trainer, pl_module))
            return self.monitor.evaluate(trainer, pl_module)

        after = apply_event(trainer, pl_module, plan, then=complete)
        self.monitor.event(trainer)
        if plan.channels_removed:
            self.guard.after_event(trainer, pl_module, savepoint, self.progress, ratio)
            if self.restarts_patience:
                restart_patience(trainer)
        else:
            self.guard.stop_if_exhausted(ratio, scheduled, self.progress)
        # Recorded before it is reported: after Ctrl-C in a report, an on-exception checkpoint must contain the event.
        self._record(trainer, plan, {time: min(asked, ratio) for time, asked in due.items()}, before, after)
        done = plan
        if plan.channels_removed and ratio >= max(self._events.values()):
            measured = self.planner.latency.measured(trainer, pl_module, plan, self.planner.request)
            if measured is not None:
                self.progress.note_measured(measured)
                done = replace(plan, latency_measured=measured)
        self.reporter.event(trainer, done, self.progress.history, self._now(trainer))

    def _tell_checkpoints(self, trainer: pl.Trainer) -> None:
        for run in (self, *self.others):
            run.checkpoints.model_changes(trainer)

    def _record(
        self,
        trainer: pl.Trainer,
        plan: PruningPlan,
        done: Mapping[int, float],
        accuracy_before: float | None,
        accuracy_after: float | None,
    ) -> None:
        self.progress.add(
            plan,
            done,
            epoch=trainer.current_epoch,
            step=logged_step(trainer),
            accuracy_before=accuracy_before,
            accuracy_after=accuracy_after,
        )

    def _now(self, trainer: pl.Trainer) -> str:
        return f"{self.timeline.interval} {self.timeline.position(trainer)}"
