"""The callback: its arguments, and what each hook of the Trainer calls."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_coreset._compat import state_key
from lightning_coreset._deprecated import takes_old_names
from lightning_coreset._settings import given_arguments, readable_settings, short_call
from lightning_coreset.checkpoint import make_resizable, store_metadata_as_item
from lightning_coreset.latency import LatencyLike
from lightning_coreset.methods import MethodLike
from lightning_coreset.plan import PruningPlan
from lightning_coreset.planning import Allocation, PruningRatio, Rule, Unit
from lightning_coreset.schedule import Interval, Order, PruningSchedule, Schedule
from lightning_coreset.structure import ExampleInputs, Heads
from lightning_coreset.training import (
    AccuracyGuard,
    AccuracyMonitor,
    BestCheckpoint,
    BestCheckpoints,
    Callback,
    Copies,
    DryRun,
    EventPlanner,
    ExampleSource,
    Guard,
    History,
    Mode,
    Monitor,
    OnFailure,
    Options,
    OutgrownCopies,
    PruningRun,
    Recalibration,
    Reporter,
    Timeline,
    UntrainedFinder,
    average_again,
    averaged_copies,
    check_no_lazy_layers,
    check_strategy,
    dry_run,
    has_lazy_layers,
    last_step,
    load_outgrown_copies,
    printable,
    settings,
    summary,
)


@readable_settings
class CoresetPruningCallback(Callback):
    """Prune channels physically while the model trains, by a schedule.

    At every event the structure of the network is read, a coreset of each group of channels is chosen (Mussay et al.,
    arXiv 2008.08316), and the other channels are removed from all tensors and from the optimizers' state, in place.
    Layers whose channels reach the output or the loss are not pruned. It is a callback for Trainers of both packages,
    ``lightning`` and ``pytorch_lightning``. All arguments are attributes under their names, as they were given.

    All arguments but the first are given by name. They are in the order of their purpose: how much goes, when, from
    which layers, how channels are chosen, examples, accuracy, guard, what else an event does to training, checks,
    output. :class:`PruningSchedule`, :class:`AccuracyMonitor` and :class:`AccuracyGuard` hold those that belong
    together, and may be given instead of them.

    Args:
        pruning_ratio: The fraction of the ORIGINAL model's ``unit`` that is gone at the end, in [0, 1); or rules, as
            for :func:`lightning_coreset.prune`. By default half, or, with a warning that says what holds the rest, as
            much as goes if no layer loses more than half of its channels; then not even a model of which nothing can go
            ends training.
        unit: What the ratio counts: ``"params"``, ``"macs"`` (multiply-accumulates of one sample), ``"channels"`` or
            ``"latency"`` (the seconds of the module's ``forward`` on ``example_inputs`` or ``example_input_array``).
        latency: For ``unit="latency"``: a table of :func:`lightning_coreset.measure_latency`, or a function that says
            how long a layer takes; by default layers are measured before the first event.
        allocation: How the removals are distributed over the layers; see :func:`lightning_coreset.prune`.
        round_to: Numbers of channels are multiples of this where the group allows; 8 suits tensor cores.
        min_channels: No group is left with fewer channels.
        max_layer_ratio: No group loses more than this fraction of its original channels.
        schedule: How the ratio grows from ``start`` to ``end``: ``"one_shot"``, ``"linear"``, ``"cubic"`` (most at
            first, when much is redundant and much training is left to recover in), ``"cosine"``; a mapping from epoch
            (step) to the ratio reached there (``pruning_ratio`` is its last one then); or a callable from progress in
            (0, 1] to the fraction of the ratio, 1 in the end. Or a :class:`PruningSchedule`, which has the five
            arguments after it as well.
        start: The first event; a float is a fraction of training, an int is an epoch (a step).
        end: The last event, likewise; the training after it is left for recovery.
        every: Epochs (steps) between events; by default as many as make about ten events, an epoch at least.
        interval: The unit of ``start``, ``end`` and ``every``: ``"epoch"``, or ``"step"`` for optimizer steps.
        order: ``"together"`` removes a few channels of all groups at every event; ``"bottom_up"`` reduces the next
            groups, in network order, to their final size, layer by layer as in the paper.
        ignore: Layers that keep all output channels: shell patterns of module names, such as ``"model.stem*"``,
            compiled regular expressions, or module types.
        only: The layers whose output channels may be removed, likewise; all by default.
        never_run: Modules that nothing ever runs, such as a spare head: rules as for ``ignore``. Channels that other
            layers could read or write which have not run before an event stay, with a warning.
        include_residual: Whether channels that are coupled by residual additions or normalised by LayerNorm, RMSNorm
            and the like, such as the width of a transformer, may be removed as well.
        heads: What attention loses: ``"whole"`` heads, or dimensions ``"within"`` all of them.
        copies: What to do with parts of the module that are copies of others, which nothing trains: momentum encoders,
            target networks, averages. ``"find"`` finds them by their structure and values; a mapping says which module
            is a copy of which, such as ``{"target": "online"}``; with ``"none"`` there are none. A copy loses the
            channels that its original loses.
        method: How channels are chosen; see :func:`lightning_coreset.prune`.
        seed: Seed of the random choices; the global generator is not used.
        example_inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments for the
            LightningModule, to run it once and read its structure. Without it the module's ``example_input_array`` is
            used, and without that its own training step on the first batch, whose side effects are undone.
        save_examples: Whether checkpoints hold, until the last event, the few samples of batches that the structure is
            read from, if they are small (1 MB) and plain tensors. A resumed run then has its first event exactly when
            the uninterrupted one would have it; without them at its first batch.
        accuracy: What the accuracy is, as an :class:`AccuracyMonitor`, instead of the four arguments after it.
        metric: What ``coreset/accuracy`` is, instead of a classifier's accuracy: a metric of torchmetrics, of which a
            copy is called as ``metric(outputs, targets)`` on the outputs and targets of validation.
        monitor: Or the name of a metric that the module logs in validation, such as ``"val_acc"``.
        monitor_mode: Whether ``"max"`` or ``"min"`` is better. By default the metric's own ``higher_is_better``;
            ``"min"`` for a name with "loss", "error", "rmse" or the like in it; else ``"max"``.
        eval_batches: The number of recent validation batches that it is measured on right before and after an event; 0
            turns that off.
        guard: The guard, as an :class:`AccuracyGuard`, instead of the three arguments after it.
        max_drop: The guard: how far the accuracy may be below the best before the first event, in its own units (0.01
            is a point of accuracy). An event is taken back, exactly, if training does not bring the accuracy back there
            within ``recover_epochs``; until then no other event happens. ``None`` turns the guard off.
        recover_epochs: Epochs of training that an event has for recovery; a float may be a part of one.
        on_failure: After an event was taken back, ``"stop"`` ends pruning and ``"halve"`` goes on with half its step.
        recalibrate_batches: The number of training batches on which an event recomputes the statistics of BatchNorms;
            the first of every epoch are kept for that, on the CPU. 0 leaves it to the reconstruction and to training.
        restart_patience: Whether an event restarts the patience and the best score of the Trainer's ``EarlyStopping``:
            a pruned model has to recover before it can be better than the one before.
        best_checkpoint: What the Trainer's ``ModelCheckpoint`` callbacks take for the best model, as for
            ``trainer.test(ckpt_path="best")``: with ``"most_pruned"`` the one with the best score among the most
            pruned, with ``"any"`` the one with the best score of all, which often is one from before the pruning.
        self_check: Whether to test on a copy of the model, before training, that removing channels of a group gives the
            same outputs as zeroing their consumers; groups that fail are not pruned, with a warning that names them.
        change_attributes: Whether numbers that modules remember, such as ``self.dim_head``, are changed with groups
            that fail otherwise; see :func:`lightning_coreset.prune`.
        certify: Whether every event computes certificates of its coresets; see :func:`lightning_coreset.prune`.
        input_radius: For certificates: a bound on the norm of the network's own input as its first layer sees it.
        verbose: Whether to print what each event did.
        max_ratio: Old name of ``max_layer_ratio``.
        check: Old name of ``self_check``.

    Raises:
        ValueError: For an argument out of its range, here; for a rule that matches nothing, a schedule that never
            fires, a model with nothing to prune or a ratio that cannot be reached, before the first training step.
        MisconfigurationException: In ``setup``, for a strategy that cannot follow a change of shapes, or a guard
            without validation; after the first validation, if it does not give ``metric`` or ``monitor``.

    Example:
        >>> import lightning.pytorch as pl
        >>> from lightning_coreset import CoresetPruningCallback
        >>> trainer = pl.Trainer(
        ...     max_epochs=10, accelerator="cpu", logger=False, callbacks=[CoresetPruningCallback(0.5)]
        ... )
    """

    @takes_old_names
    def __init__(
        self,
        pruning_ratio: PruningRatio | None = None,
        *,
        unit: Unit = "params",
        latency: LatencyLike | None = None,
        allocation: Allocation = "uniform",
        round_to: int = 1,
        min_channels: int = 1,
        max_layer_ratio: float = 1.0,
        schedule: PruningSchedule | Schedule = "cubic",
        start: int | float = 0.1,
        end: int | float = 0.7,
        every: int | None = None,
        interval: Interval = "epoch",
        order: Order = "together",
        ignore: Sequence[Rule] = (),
        only: Sequence[Rule] = (),
        never_run: Sequence[Rule] = (),
        include_residual: bool = False,
        heads: Heads = "whole",
        copies: Copies = "find",
        method: MethodLike = "reconstruction",
        seed: int = 0,
        example_inputs: ExampleInputs | None = None,
        save_examples: bool = True,
        accuracy: AccuracyMonitor | None = None,
        metric: Metric | None = None,
        monitor: str | None = None,
        monitor_mode: Mode | None = None,
        eval_batches: int = 8,
        guard: AccuracyGuard | None = None,
        max_drop: float | None = None,
        recover_epochs: int | float = 2,
        on_failure: OnFailure = "stop",
        recalibrate_batches: int = 0,
        restart_patience: bool = True,
        best_checkpoint: BestCheckpoint = "most_pruned",
        self_check: bool = True,
        change_attributes: bool = True,
        certify: bool = False,
        input_radius: float | None = None,
        verbose: bool = True,
        max_ratio: float | None = None,
        check: bool | None = None,
    ) -> None:
        self._given = given_arguments(CoresetPruningCallback.__init__, locals())
        options = self._options = Options.of(CoresetPruningCallback.__init__, locals())
        self.request = options.request
        self.timeline = Timeline(options.schedule, self.request.target)
        self._source = ExampleSource(example_inputs)
        self._untrained = UntrainedFinder(copies)
        self._outgrown = OutgrownCopies()
        self._planner = EventPlanner(
            self.request,
            self._source,
            options.schedule.order,
            self_check,
            certify,
            change_attributes,
            self._untrained,
            never_run,
            verbose,
        )
        self._monitor = Monitor(options.accuracy)
        self._guard = Guard(options.guard, self._monitor.mode, self._monitor.name)
        self._recalibration = Recalibration(recalibrate_batches)
        shown = settings(CoresetPruningCallback.__init__, options.arguments)
        self._reporter = Reporter(
            shown, certify=certify, verbose=verbose, metric=self._monitor.name, mode=self._monitor.mode
        )
        self._run = PruningRun(
            self.timeline,
            self._planner,
            self._monitor,
            self._guard,
            self._recalibration,
            self._reporter,
            BestCheckpoints(best_checkpoint),
            restart_patience,
            saves_examples=save_examples,
        )
        self._validates = False
        self._has_stepped = self._has_shapes = False
        self._state_key = state_key(
            self,
            unit=unit,
            order=options.schedule.order,
            ignore=list(map(str, self.request.ignore)),
            only=list(map(str, self.request.only)),
        )

    def __repr__(self) -> str:
        call = short_call(type(self).__name__, CoresetPruningCallback.__init__, self._given)
        return f"<{call} after {repr(self.history).removeprefix('<History: ')}" if self.history else call

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Arguments are attributes, see ``readable_settings``."""

    @property
    def plans(self) -> list[PruningPlan]:
        """The plan of every event of the run that was not taken back, without ``changes``, which ``on_prune`` gets."""
        return self._run.progress.plans

    @property
    def history(self) -> History:
        """Every event of the run in plain numbers, including those before a checkpoint."""
        return self._run.progress.history

    def summary(self) -> None:
        """Print the history as a table; ``str(callback.history)`` returns it."""
        print(printable(summary(self.history)))

    def to_csv(self, path: str | PathLike[str]) -> None:
        """Write the history as a table with a row for every event.

        See :meth:`lightning_coreset.training.History.to_csv`.

        Args:
            path: The file; an existing one is replaced.
        """
        self.history.to_csv(path)

    def dry_run(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any = None) -> DryRun:
        """Plan the whole schedule on a copy of the model as it is, without training; nothing is changed.

        Args:
            trainer: The Trainer that would train it, for the length of training.
            pl_module: The LightningModule.
            batch: A batch for ``training_step``, on the module's device, if there is neither ``example_inputs`` nor
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

    def on_prune(self, plan: PruningPlan, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called at the end of every event, on every rank; for subclasses to override.

        The model and the optimizers are already pruned. If this raises, the whole event is undone.

        Args:
            plan: What was done.
            trainer: The Trainer.
            pl_module: Its module, with the new shapes.
        """

    # ---- before training

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let the model load checkpoints of other sizes; refuse a strategy that cannot follow a change of shapes.

        Not later: Lightning loads the state of a checkpoint's callbacks right after this hook.
        """
        if stage == "fit":
            check_strategy(trainer, pl_module)
            self._guard.check(trainer)
        # Copies that are made later inherit the hooks. Frameworks save the network within their LightningModule alone.
        for model in (pl_module, *_networks_in(pl_module), *averaged_copies(trainer)):
            make_resizable(model)
        if stage == "fit":
            self._outgrown.remember(trainer, pl_module)
            self._run.start(trainer)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check what can be checked without loaders; a checkpoint has been loaded by now."""
        for copy in averaged_copies(trainer):  # all exist by now
            store_metadata_as_item(copy)
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        pruning = [callback for callback in callbacks if isinstance(callback, CoresetPruningCallback)]
        self._run.others = [callback._run for callback in pruning if callback is not self]
        self._run.watch_checkpoints(trainer)
        self._planner.check_rules(pl_module)
        load_outgrown_copies(trainer, pl_module)
        self._outgrown.renew(trainer, pl_module)
        self._source.begin(pl_module)
        self._run.resume_examples(pl_module)
        self._untrained.begin(pl_module)
        self._reporter.fit_start(trainer)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute the events: the length of training is known by now."""
        self._run.lay_out_events(trainer)
        self._has_stepped = self._has_shapes = False
        if not has_lazy_layers(pl_module):
            self._see_shapes(trainer, pl_module)
        self._validates = trainer.enable_validation  # kept for this fit: asking at every step is measurable

    # ---- in training

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take back an event that has failed; prune if an event is due and the structure can be read already."""
        self._run.take_back(trainer, pl_module)
        self._run.prune_if_due(trainer, pl_module, self.on_prune)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take the first batch as an example; then the same as in ``on_train_epoch_start``.

        A run that resumes from the last step of an epoch never gets the next ``on_train_epoch_start``.
        """
        if not self._waits_for_shapes(trainer, pl_module) and self._source.see_batch(pl_module, batch, batch_idx):
            self._run.begin(trainer, pl_module)
        self._recalibration.see_batch(pl_module, batch, batch_idx)
        self._planner.moments.see_batch(batch, batch_idx)
        self._run.take_back(trainer, pl_module)
        self._run.prune_if_due(trainer, pl_module, self.on_prune)
        self._reporter.batch_start(trainer, self.history)
        if not self._validates:
            self._monitor.start(pl_module, batch, batch_idx)
        self._source.before_step(trainer, pl_module, "training_step", batch, batch_idx)

    def _waits_for_shapes(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Whether a step has to give lazy layers their shapes first: any step before the first event."""
        is_first, self._has_stepped = not self._has_stepped, True
        if self._has_shapes:
            return False
        if has_lazy_layers(pl_module) and (is_first or not self._run.is_due(trainer)):
            return True
        check_no_lazy_layers(pl_module)
        self._see_shapes(trainer, pl_module)
        return False

    def _see_shapes(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._has_shapes = True
        self._untrained.see(trainer, pl_module)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """See whether a step puts layers together otherwise than those before it, as long as there are events."""
        if self._run.awaits_events:
            self._source.before_backward(loss)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep a step that ran something new; one that could only be recorded may make an event due now."""
        if not self._validates:
            self._monitor.batch_end(batch)  # first: it records all calls until then
        self._recalibration.see_step_end()
        if self._source.after_step(trainer, pl_module):
            self._run.begin(trainer, pl_module)
            self._run.prune_if_due(trainer, pl_module, self.on_prune)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the size of the model, and an accuracy of training: without validation, or as the module logs it."""
        accuracy = self._monitor.epoch_end(trainer) if self._validates else self._monitor.result(trainer)
        self._reporter.accuracy(trainer, accuracy, self.history, last_step(trainer))
        if accuracy is not None and self._validates:
            self._guard.watch(trainer, accuracy)
        self._reporter.epoch_end(trainer, self.history, self._run.progress.original)

    # ---- in validation

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find out which batches will be the last; outside of a fit, say if the best checkpoint is pruned less."""
        if trainer.state.fn == "fit":
            self._monitor.validation_start(trainer)
            if self._run.awaits_events:
                self._source.before_validation()
        else:
            self._run.checkpoints.loaded(trainer)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch the step."""
        if trainer.state.fn == "fit":
            self._monitor.start(pl_module, batch, batch_idx, dataloader_idx)
            self._source.before_step(trainer, pl_module, "validation_step", batch, batch_idx, dataloader_idx)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count right answers; keep a step that ran something new."""
        if trainer.state.fn == "fit":
            self._source.after_step(trainer, pl_module)
            self._monitor.batch_end(batch)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the accuracy of this validation, and let the guard compare it."""
        if trainer.state.fn == "fit":
            self._run.checkpoints.validated(trainer)
            accuracy = self._monitor.validation_end(trainer)
            self._reporter.accuracy(trainer, accuracy, self.history)
            if not self._monitor.is_awaited:
                self._guard.watch(trainer, accuracy)

    # ---- afterwards

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say if the best checkpoint that was loaded is less pruned than requested."""
        self._run.checkpoints.loaded(trainer)

    on_predict_start = on_test_start

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take back the last event if training has ended before the accuracy recovered."""
        if self._run.take_back(trainer, pl_module, over=True):
            average_again(trainer, pl_module, before=self)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Complete the reports; warn if training ended before the schedule did, or the best model is pruned less."""
        self._reporter.fit_end(trainer, pl_module, self.history)
        self._run.end(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Remove all hooks from the module."""
        self._monitor.stop()
        self._recalibration.stop()
        self._planner.moments.stop()
        self._source.end()
        self._run.checkpoints.end()
        self._run.others = []

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Do what ``teardown`` does: Lightning does not call it after an exception. Complete the loggers' settings."""
        self._reporter.interrupted(trainer)
        self.teardown(trainer, pl_module, "fit")

    # ---- checkpoints

    @property
    def state_key(self) -> str:
        """Distinguishes several callbacks of this class in one checkpoint."""
        return self._state_key  # computed once: Lightning asks for it at every call of every hook

    def state_dict(self) -> dict[str, Any]:
        """What was done, as plain data."""
        return self._run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint was made."""
        self._run.load_state_dict(state_dict)


def _networks_in(pl_module: pl.LightningModule) -> list[nn.Module]:
    """The parts of a LightningModule that may be saved alone, and say then how they were pruned."""
    children = [child for child in pl_module.children() if next(child.parameters(), None) is not None]
    return [child for child in children if not isinstance(child, torch.jit.ScriptModule)]  # these take no hooks
