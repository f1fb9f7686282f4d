"""The callback: hooks, and the order of the calls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, get_args

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torchmetrics import Metric

from lightning_coreset._compat import state_key
from lightning_coreset.checkpoint import make_resizable, store_metadata_as_item
from lightning_coreset.methods import MethodLike, as_method
from lightning_coreset.plan import PruningPlan
from lightning_coreset.planning import Allocation, Request, Rule, Unit
from lightning_coreset.schedule import Interval, Schedule
from lightning_coreset.structure import ExampleInputs
from lightning_coreset.training import (
    DryRun,
    EventPlanner,
    ExampleSource,
    Guard,
    History,
    Mode,
    Monitor,
    OnFailure,
    Order,
    Progress,
    Recalibration,
    Reporter,
    Timeline,
    apply_event,
    average_again,
    averaged_copies,
    check_package,
    check_strategy,
    dry_run,
    last_step,
    load_outgrown_copies,
    logged_step,
    restart_patience,
    run_on_all_ranks,
    settings,
    summary,
)


class CoresetPruningCallback(pl.Callback):
    """Prune channels physically while the model trains, by a schedule.

    At every event the structure of the network is read, a coreset of each group of channels is chosen (Mussay et al.,
    arXiv 2008.08316), the rest is removed from every tensor, and the optimizers' state is sliced along, in place.
    Layers whose channels reach the output or the loss are left alone.

    Args:
        pruning_ratio: The fraction of the ORIGINAL model's ``unit`` that is gone at the end, in [0, 1); or rules, as
            for :func:`lightning_coreset.prune`.
        unit: What the ratio counts: ``"params"``, ``"macs"`` (multiply-accumulates of one sample) or ``"channels"``.
        method: How channels are chosen; see :func:`lightning_coreset.prune`.
        allocation: How the removals are shared out among the layers; see :func:`lightning_coreset.prune`.
        schedule: How the ratio grows from ``start`` to ``end``: ``"one_shot"``, ``"linear"``, ``"cubic"`` (most at
            first, while there is much to remove and much training left to heal), ``"cosine"``; a mapping from epoch
            (step) to the ratio reached there (``pruning_ratio`` is unused then); or a callable from progress in (0, 1]
            to the fraction of the ratio.
        start: The first event; a float is a fraction of training, an int is an epoch (a step).
        end: The last event, likewise; what follows is left to recover.
        every: Epochs (steps) between events; by default one event an epoch, or about ten of them by steps.
        interval: What events are counted in: ``"epoch"``, or ``"step"`` for those who train by optimizer steps.
        order: ``"together"`` takes a little from all groups at every event; ``"bottom_up"`` brings the next groups, in
            network order, to their final size, as the paper goes layer by layer.
        ignore: Layers whose output channels all stay: shell patterns of module names, such as ``"model.stem*"``,
            compiled regular expressions, or module types.
        only: The layers whose output channels may go, likewise; all by default.
        round_to: Numbers of channels are multiples of this where the group allows; 8 suits tensor cores.
        min_channels: No group is left with fewer channels.
        max_ratio: No group loses more than this fraction of its original channels.
        include_residual: Whether channels coupled by residual additions may go as well.
        example_inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments for the
            LightningModule, to run it once and see its structure. Without it the module's ``example_input_array`` is
            used, and without that its own training step on the first batch, whose side effects are undone.
        metric: What ``coreset/accuracy`` is, instead of a classifier's accuracy: a metric of torchmetrics, of which a
            copy is called as ``metric(outputs, targets)`` on what validation shows.
        monitor: Or the name of a metric that the module logs in validation, such as ``"val_acc"``.
        monitor_mode: Whether ``"max"`` or ``"min"`` is better. By default what the metric says of itself; ``"min"`` for
            a name with "loss" or "error" in it; else ``"max"``.
        eval_batches: How many recent validation batches it is measured on right before and after an event; 0 turns
            that off.
        max_drop: The guard: how far the accuracy may be below the best before pruning began, in its own units (0.01 is
            a point of accuracy). An event is taken back, exactly, if training does not bring the accuracy back there
            within ``recover_epochs``; until then no other event happens. ``None`` turns it off.
        recover_epochs: Epochs of training that an event has to heal, as a float also parts of one.
        on_failure: After an event was taken back, ``"stop"`` ends pruning and ``"halve"`` goes on with half its step.
        recalibrate_batches: How many training batches an event recomputes the statistics of BatchNorms on; the first
            of every epoch are kept for that, on the CPU. 0 leaves it to the reconstruction and to training.
        restart_patience: Whether an event lets the Trainer's ``EarlyStopping`` begin anew: a pruned model has to heal
            before it can be better than the one before.
        check: Whether to try on a copy of the model, before training, that removing channels of a group does just what
            zeroing their consumers does; groups that fail are left alone with a warning that names them.
        certify: Whether every event computes certificates of its coresets; see :func:`lightning_coreset.prune`.
        input_radius: For certificates: a bound on the norm of the network's own input as its first layer sees it.
        seed: Seed of the random choices; the global generator is never touched.
        verbose: Whether to say what each event did.

    Raises:
        ValueError: For an argument out of its range, here; for a rule that matches nothing, a schedule that never
            fires, a model with nothing to prune or a ratio that cannot be reached, before the first training step.
        MisconfigurationException: In ``setup``, for a Trainer of the package ``pytorch_lightning``, a strategy that
            cannot follow a change of shapes, or a guard without validation; after the first validation, if ``metric``
            or ``monitor`` cannot be had from it.

    Example:
        >>> import lightning.pytorch as pl
        >>> from lightning_coreset import CoresetPruningCallback
        >>> trainer = pl.Trainer(
        ...     max_epochs=10, accelerator="cpu", logger=False, callbacks=[CoresetPruningCallback(0.5)]
        ... )
    """

    def __init__(
        self,
        pruning_ratio: float | Mapping[Rule, float] = 0.5,
        *,
        unit: Unit = "params",
        method: MethodLike = "reconstruction",
        allocation: Allocation = "uniform",
        schedule: Schedule = "cubic",
        start: int | float = 0.1,
        end: int | float = 0.7,
        every: int | None = None,
        interval: Interval = "epoch",
        order: Order = "together",
        ignore: Sequence[Rule] = (),
        only: Sequence[Rule] = (),
        round_to: int = 1,
        min_channels: int = 1,
        max_ratio: float = 1.0,
        include_residual: bool = False,
        example_inputs: ExampleInputs | None = None,
        metric: Metric | None = None,
        monitor: str | None = None,
        monitor_mode: Mode | None = None,
        eval_batches: int = 8,
        max_drop: float | None = None,
        recover_epochs: int | float = 2,
        on_failure: OnFailure = "stop",
        recalibrate_batches: int = 0,
        restart_patience: bool = True,
        check: bool = True,
        certify: bool = False,
        input_radius: float | None = None,
        seed: int = 0,
        verbose: bool = True,
    ) -> None:
        if order not in get_args(Order):
            raise ValueError(f"Expected order to be 'together' or 'bottom_up' but got {order!r}.")
        self.request = Request(
            pruning_ratio,
            unit,
            as_method(method),
            allocation=allocation,
            ignore=ignore,
            only=only,
            round_to=round_to,
            min_channels=min_channels,
            max_ratio=max_ratio,
            include_residual=include_residual,
            seed=seed,
            input_radius=input_radius,
        )
        if isinstance(schedule, Mapping) and isinstance(pruning_ratio, Mapping):
            raise ValueError(
                "Expected either pruning_ratio or schedule to be a mapping but got both: a schedule that maps epochs "
                "to ratios says how much of the whole model goes, rules say how much of each layer. Give rules with "
                "a schedule such as 'cubic', or a callable."
            )
        self.timeline = Timeline(schedule, self.request.target, start, end, every, interval)
        if isinstance(schedule, Mapping):
            self.request = replace(self.request, pruning_ratio=self.timeline.target)
        self.restart_patience = restart_patience
        self._progress = Progress()
        self._events: dict[int, float] = {}
        self._next_event: float = math.inf
        self._begun = False
        self._validates = False
        self._source = ExampleSource(example_inputs)
        self._planner = EventPlanner(self.request, self._source, order, check, certify)
        self._monitor = Monitor(metric, monitor, monitor_mode, eval_batches)
        self._guard = Guard(max_drop, recover_epochs, on_failure, self._monitor.mode, self._monitor.name)
        self._recalibration = Recalibration(recalibrate_batches)
        self._state_key = state_key(
            self,
            unit=unit,
            order=order,
            ignore=list(map(str, self.request.ignore)),
            only=list(map(str, self.request.only)),
        )
        told = settings(CoresetPruningCallback.__init__, locals() | {"pruning_ratio": self.request.pruning_ratio})
        self._reporter = Reporter(told, certify=certify, verbose=verbose, metric=self._monitor.name)

    @property
    def plans(self) -> list[PruningPlan]:
        """What every event of the run did; plans that come from a checkpoint have no ``changes``."""
        return self._progress.plans

    @property
    def history(self) -> History:
        """What every event of the run came to, in plain numbers, also of those before a checkpoint."""
        return self._progress.history

    def summary(self) -> None:
        """Print the history as a table; ``str(callback.history)`` returns it."""
        print(summary(self.history))

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write the history as a table with a row for every event.

        See :meth:`lightning_coreset.training.History.to_csv`.

        Args:
            path: The file; an existing one is replaced.
        """
        self.history.to_csv(path)

    # ---- before training

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let the model follow checkpoints of other sizes; refuse a strategy that cannot follow a change of shapes.

        Not later: Lightning loads the state of a checkpoint's callbacks right after this hook.
        """
        check_package(trainer)
        if stage == "fit":
            check_strategy(trainer, pl_module)
            self._guard.check(trainer)
        for model in (pl_module, *averaged_copies(trainer)):  # copies that are made after this carry the hooks already
            make_resizable(model)
        if stage != "fit":
            return
        self._events, self._begun = {}, False
        if trainer.current_epoch == 0 and trainer.global_step == 0:
            self._progress = Progress()
            self._guard.reset()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check what can be checked before the loaders are there; by now a checkpoint has been loaded."""
        for copy in averaged_copies(trainer):  # by now all are there
            store_metadata_as_item(copy)
        self.request.check_rules(pl_module)
        load_outgrown_copies(trainer, pl_module)
        self._source.begin(pl_module)
        self._reporter.fit_start(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lay out the events: by now the length of training is known."""
        self._events = self.timeline.events(trainer)
        self._look_ahead()
        self._validates = trainer.enable_validation  # as long as this fit goes on; to ask at every step adds up

    def dry_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any = None) -> DryRun:
        """Plan the whole schedule on a copy of the model as it is, without training; nothing is touched.

        Args:
            trainer: The Trainer that would train it, for the length of training.
            pl_module: The LightningModule.
            batch: A batch for ``training_step``, on the module's device, where there is neither ``example_inputs`` nor
                ``example_input_array``; by default the first of the module's own ``train_dataloader()``.

        Returns:
            A plan for every event; ``print`` shows them as tables. The sizes are those of training; expected errors
            depend on the weights, which training will change in between.

        Raises:
            ValueError: As training would: for a rule that matches nothing, a ratio that cannot be reached, a schedule
                that never fires.
            MisconfigurationException: If the length of training is not known, or there is no example to run.
        """
        return dry_run(trainer, pl_module, self.timeline, self._planner, batch)

    def _begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._begun:
            self._planner.begin(trainer, pl_module, self._progress)
            self._begun = True

    # ---- in training

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take back an event that has failed; prune if one is due and the structure can be read already."""
        self._take_back(trainer, pl_module)
        self._prune_if_due(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take the first batch as an example; do what ``on_train_epoch_start`` could not.

        A run that resumes from the last step of an epoch never sees the next ``on_train_epoch_start``.
        """
        self._source.see_batch(pl_module, batch)
        if self._source.ready:
            self._begin(trainer, pl_module)
        self._recalibration.see_batch(pl_module, batch, batch_idx)
        self._take_back(trainer, pl_module)
        self._prune_if_due(trainer, pl_module)
        self._reporter.batch_start(trainer, self.history)
        if not self._validates:
            self._monitor.start(pl_module, batch, batch_idx)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """With manual optimisation the first step shows the structure: only now it can be read."""
        if not self._validates:
            self._monitor.batch_end(batch)  # first, for it watches all calls until then
        self._recalibration.see_step_end()
        if self._source.see_step_end(batch):
            self._begin(trainer, pl_module)
            self._prune_if_due(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log where the model stands."""
        if not self._validates:
            accuracy = self._monitor.result(trainer)
            self._reporter.accuracy(trainer, accuracy, self.history, last_step(trainer))
        self._reporter.epoch_end(trainer, self.history, self._progress.original)

    def _look_ahead(self) -> None:
        """See when the next event is, for to go through all of them at every step adds up."""
        self._next_event = min(self._progress.open_events(self._events), default=math.inf)

    def _prune_if_due(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = self.timeline.position(trainer)
        if now < self._next_event or not self._source.ready or self._guard.waiting:
            return
        due = {time: ratio for time, ratio in self._progress.open_events(self._events).items() if time <= now}
        if due:
            self._begin(trainer, pl_module)
            self._prune(trainer, pl_module, due)
        self._look_ahead()

    def _prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, due: Mapping[int, float]) -> None:
        """One event; nothing is changed before all is planned, and all is undone if a part of it fails."""
        scheduled = max(due.values())
        ratio = self._guard.limit(scheduled, self._progress)
        on_progress = self._reporter.planning(trainer)
        plan = self._planner.plan(trainer, pl_module, self._progress, ratio / self.timeline.target, on_progress)
        if plan is None:
            rank_zero_warn(
                f"The pruning event of {self._now(trainer)} found nothing left to prune: "
                f"{self._progress.reached:.2%} of the original is gone where {ratio:.2%} was requested."
            )
            self._progress.done.update(due)
            return
        savepoint = self._guard.before_event(trainer, pl_module) if plan.channels_removed else None
        before = self._monitor.evaluate(trainer, pl_module)
        after = apply_event(trainer, pl_module, plan, then=lambda: self._complete(trainer, pl_module, plan))
        if plan.channels_removed:
            self._guard.after_event(trainer, pl_module, savepoint, self._progress, ratio)
            if self.restart_patience:
                restart_patience(trainer)
        else:
            self._guard.stop_if_exhausted(ratio, scheduled, self._progress)
        # Recorded before it is told: if a logger fails, a checkpoint made in the face of that must know of the event.
        self.plans.append(plan)
        self._progress.done.update({time: min(asked, ratio) for time, asked in due.items()})
        assert self._progress.original is not None, "it was measured before the first event"
        self.history.add(
            plan,
            self._progress.original,
            epoch=trainer.current_epoch,
            step=logged_step(trainer),
            accuracy_before=before,
            accuracy_after=after,
        )
        self._reporter.event(trainer, plan, self.history, self._now(trainer))

    def _complete(self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: PruningPlan) -> float | None:
        """The last part of an event, which is undone if this raises; returns how well the pruned model does."""
        self._recalibration.run(trainer, pl_module)
        run_on_all_ranks(trainer, lambda: self.on_prune(plan, trainer, pl_module))
        return self._monitor.evaluate(trainer, pl_module)

    def on_prune(self, plan: PruningPlan, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called at the end of every event, on every rank, for subclasses to act on it.

        The model and the optimizers are pruned by now. If this raises, the whole event is undone.

        Args:
            plan: What was done.
            trainer: The Trainer.
            pl_module: Its module, with the new shapes.
        """

    def _take_back(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, over: bool = False) -> bool:
        """Outside of validation, for there a ModelCheckpoint may still save what was validated."""
        taken_back = self._guard.take_back(trainer, pl_module, self._progress, over=over)
        if taken_back:
            self._look_ahead()
            self._reporter.taken_back(trainer, self.history, self._progress.original)
        return taken_back

    def _now(self, trainer: pl.Trainer) -> str:
        return f"{self.timeline.interval} {self.timeline.position(trainer)}"

    # ---- in validation

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See how many batches there will be."""
        if trainer.state.fn == "fit":
            self._monitor.validation_start(trainer)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch the step."""
        if trainer.state.fn == "fit":
            self._monitor.start(pl_module, batch, batch_idx, dataloader_idx)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count right answers."""
        if trainer.state.fn == "fit":
            self._monitor.batch_end(batch)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the accuracy of this validation, and judge the last event by it."""
        if trainer.state.fn == "fit":
            accuracy = self._monitor.result(trainer)
            self._reporter.accuracy(trainer, accuracy, self.history)
            self._guard.watch(trainer, accuracy)

    # ---- afterwards

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take back the last event if training has ended before it could heal."""
        if self._take_back(trainer, pl_module, over=True):
            average_again(trainer, pl_module, before=self)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take all hooks off the module."""
        self._monitor.stop()
        self._recalibration.stop()
        self._source.end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the module as ``teardown`` does, which Lightning does not call then."""
        self.teardown(trainer, pl_module, "fit")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say so loudly if training ended before the schedule did."""
        self._reporter.fit_end(trainer, self.history)
        missed = list(self._progress.open_events(self._events))
        if missed and not trainer.interrupted and not self._guard.stopped:
            rank_zero_warn(
                f"Training ended before the pruning events of {self.timeline.interval}s {missed}; the last ratio "
                f"reached was {self._progress.reached:.2%} of the requested {max(self._events.values()):.2%}."
            )

    # ---- checkpoints

    @property
    def state_key(self) -> str:
        """Tells several callbacks of this class apart in one checkpoint."""
        return self._state_key  # made beforehand: Lightning asks for it at every call of every hook

    def state_dict(self) -> dict[str, Any]:
        """What was done, as plain data."""
        return {**self._progress.to_dict(), "guard": self._guard.to_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint was made."""
        self._progress = Progress.from_dict(state_dict)
        self._guard.load(state_dict["guard"])
