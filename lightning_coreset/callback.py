"""The callback: hooks, and the order of the calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_coreset.methods import Method, MethodName, as_method
from lightning_coreset.optimizers import slice_optimizer_state
from lightning_coreset.plan import PruningPlan
from lightning_coreset.planning import (
    Request,
    Unit,
    bottom_up_sizes,
    check_ignore,
    final_sizes,
    layer_inputs,
    make_plan,
    measure,
    prunable,
)
from lightning_coreset.schedule import Schedule
from lightning_coreset.structure import ExampleInputs, Structure, analyse
from lightning_coreset.surgery import apply_changes
from lightning_coreset.training import (
    AccuracyProbe,
    ExampleSource,
    Progress,
    Timeline,
    agreed,
    check_strategy,
    event_scalars,
    log_scalars,
    standing_scalars,
    unwrapped,
)
from lightning_coreset.verification import describe_failures, failing_groups

Order = Literal["together", "bottom_up"]


class CoresetPruningCallback(pl.Callback):
    """Prune channels physically while the model trains, by a schedule.

    At every event the structure of the network is read, a coreset of each group of channels is chosen (Mussay et al.,
    arXiv 2008.08316), the rest is removed from every tensor, and the optimizers' state is sliced along, in place.
    Layers whose channels reach the output or the loss are left alone.

    Args:
        pruning_ratio: The fraction of the ORIGINAL model's ``unit`` that is gone at the end, in [0, 1).
        unit: What the ratio counts: ``"params"``, ``"macs"`` (multiply-accumulates of one sample) or ``"channels"``.
        method: How channels are chosen; see :func:`lightning_coreset.prune`.
        schedule: How the ratio grows from ``start`` to ``end``: ``"one_shot"``, ``"linear"``, ``"cubic"`` (most at
            first, while there is much to remove and much training left to heal), ``"cosine"``; a mapping from epoch to
            the ratio reached there (``pruning_ratio`` is unused then); or a callable from progress in (0, 1] to the
            fraction of the ratio.
        start: The first event; a float is a fraction of training, an int is an epoch.
        end: The last event, likewise; what follows is left to recover.
        every: Epochs between events.
        order: ``"together"`` takes a little from all groups at every event; ``"bottom_up"`` brings the next groups, in
            network order, to their final size, as the paper goes layer by layer.
        ignore: Shell patterns of module names, such as ``"model.stem*"``, whose output channels all stay.
        include_residual: Whether channels coupled by residual additions may go as well.
        example_inputs: A tensor, a tuple of positional arguments or a dict of keyword arguments for the
            LightningModule, to run it once and see its structure. Without it the module's ``example_input_array`` is
            used, and without that its own training step on the first batch, whose side effects are undone.
        eval_batches: How many recent batches ``coreset/accuracy`` is measured on right after an event; 0 turns it off.
        check: Whether to try on a copy of the model, before training, that removing channels of a group does just what
            zeroing their consumers does; groups that fail are left alone with a warning that names them.
        certify: Whether every event computes certificates of its coresets; see :func:`lightning_coreset.prune`.
        input_radius: For certificates: a bound on the norm of the network's own input as its first layer sees it.
        seed: Seed of the random choices; the global generator is never touched.
        verbose: Whether to say what each event did.

    Raises:
        ValueError: For an argument out of its range, here; for an ``ignore`` pattern that matches nothing, a schedule
            that never fires or a model with nothing to prune, before the first training step.
        MisconfigurationException: In ``setup``, for a strategy that cannot follow a change of shapes.

    Example:
        >>> import lightning.pytorch as pl
        >>> from lightning_coreset import CoresetPruningCallback
        >>> trainer = pl.Trainer(
        ...     max_epochs=10, accelerator="cpu", logger=False, callbacks=[CoresetPruningCallback(0.5)]
        ... )
    """

    def __init__(
        self,
        pruning_ratio: float = 0.5,
        *,
        unit: Unit = "params",
        method: Method | MethodName = "reconstruction",
        schedule: Schedule = "cubic",
        start: int | float = 0.1,
        end: int | float = 0.7,
        every: int = 1,
        order: Order = "together",
        ignore: Sequence[str] = (),
        include_residual: bool = False,
        example_inputs: ExampleInputs | None = None,
        eval_batches: int = 8,
        check: bool = True,
        certify: bool = False,
        input_radius: float | None = None,
        seed: int = 0,
        verbose: bool = True,
    ) -> None:
        if order not in ("together", "bottom_up"):
            raise ValueError(f"Expected order to be 'together' or 'bottom_up' but got {order!r}.")
        self.timeline = Timeline(schedule, pruning_ratio, start, end, every)
        self.request = Request(pruning_ratio, unit, as_method(method), ignore, include_residual, seed, input_radius)
        self.order = order
        self.check = check
        self.certify = certify
        self.verbose = verbose
        self._progress = Progress()
        self._events: dict[int, float] = {}
        self._standing: dict[str, float] = {}
        self._source = ExampleSource(example_inputs)
        self._accuracy = AccuracyProbe(eval_batches=eval_batches)

    @property
    def plans(self) -> list[PruningPlan]:
        """What every event of the run did; plans that come from a checkpoint have no ``changes``."""
        return self._progress.plans

    # ---- before training

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a strategy that cannot follow a change of shapes, and begin anew unless training goes on.

        Not later: Lightning loads the state of a checkpoint's callbacks right after this hook.
        """
        if stage != "fit":
            return
        check_strategy(trainer)
        self._events, self._standing = {}, {}
        if trainer.current_epoch == 0 and trainer.global_step == 0:
            self._progress = Progress()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check what can be checked before the loaders are there."""
        check_ignore(pl_module, self.request.ignore)
        self._source.begin(pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lay out the events: by now the length of training is known."""
        self._events = self.timeline.events(trainer)

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Before the first event: try all groups, and remember what the model comes to.

        Raises if nothing can be pruned.
        """
        if self._standing:
            return
        structure = self._structure(trainer, pl_module)
        if self._progress.original is None:
            if self.check:
                self._progress.unsound = self._failing(trainer, pl_module, structure)
                structure = structure.without(self._progress.unsound)
            self._progress.original = measure(pl_module, structure, self.request)
            if self.order == "bottom_up":
                self._progress.final_sizes = final_sizes(pl_module, structure, self.request)
        self._standing = standing_scalars(self._progress.original, prunable(structure, self.request)[0])

    def _failing(self, trainer: pl.Trainer, pl_module: pl.LightningModule, structure: Structure) -> dict[str, str]:
        failures: dict[str, str] = {}
        with self._source.examples(trainer, pl_module) as examples:
            for example in examples:
                sound = [group for group in structure.groups if group.name not in failures]
                failures |= failing_groups(pl_module, sound, example)
        if failures:
            rank_zero_warn(describe_failures(failures))
        return failures

    # ---- in training

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prune if an event is due and the structure can be read already."""
        self._prune_if_due(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take the first batch as an example; prune what ``on_train_epoch_start`` could not.

        A run that resumes from the last step of an epoch never sees the next ``on_train_epoch_start``.
        """
        self._source.see_batch(pl_module, batch)
        if self._source.ready:
            self._measure(trainer, pl_module)
        self._prune_if_due(trainer, pl_module)
        if self._without_validation(trainer):
            self._accuracy.start(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """With manual optimisation the first step shows the structure: only now it can be read."""
        if self._without_validation(trainer):
            self._accuracy.batch_end(batch)  # first, for it watches all calls until then
        if self._source.see_step_end(batch):
            self._measure(trainer, pl_module)
            self._prune_if_due(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log where the model stands."""
        # Private; Lightning logs its own metrics of the epoch here, one step before an event at the next epoch's start.
        step = max(trainer.fit_loop.epoch_loop._batches_that_stepped - 1, 0)
        if self._without_validation(trainer):
            self._log_accuracy(trainer, self._accuracy.compute_and_reset(), step)
        log_scalars(trainer, event_scalars(self.plans[-1]) if self.plans else self._standing, step)

    def _prune_if_due(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        waiting = self._progress.open_events(self._events)
        due = {epoch: ratio for epoch, ratio in waiting.items() if epoch <= trainer.current_epoch}
        if due and self._source.ready:
            self._measure(trainer, pl_module)
            self._prune(trainer, pl_module, max(due.values()))
            self._progress.done.update(due)

    def _structure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Structure:
        with self._source.examples(trainer, pl_module) as examples:
            structure = analyse(pl_module, examples[0])
        names = {group.name for group in structure.groups}
        return structure.without({name: why for name, why in self._progress.unsound.items() if name in names})

    def _prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, ratio: float) -> None:
        """One event: structure, plan, surgery, optimizers, report; nothing is changed before all is planned."""
        structure = self._structure(trainer, pl_module)
        if not prunable(structure, self.request)[0]:
            rank_zero_warn(
                f"The pruning event of epoch {trainer.current_epoch} found nothing left to prune: "
                f"{self._progress.reached:.2%} of the original is gone where {ratio:.2%} was requested."
            )
            return
        plan = agreed(trainer, self._plan(trainer, pl_module, structure, ratio))
        with unwrapped(trainer):
            changed = apply_changes(pl_module, plan.changes, plan.attributes)
        for optimizer in trainer.optimizers:
            reset = slice_optimizer_state(optimizer, changed)
            if reset:
                rank_zero_warn(
                    f"The state of {type(optimizer).__name__} could not be cut along for {', '.join(reset)}; it starts "
                    "anew for these parameters."
                )
        self.plans.append(plan)
        self._report(trainer, pl_module, plan)

    def _plan(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, structure: Structure, ratio: float
    ) -> PruningPlan:
        progress = self._progress
        request = replace(self.request, pruning_ratio=ratio, seed=self.request.seed + len(progress.done))
        sizes = bottom_up_sizes(progress.final_sizes, ratio / max(self._events.values())) or None
        inputs = None
        if self.certify:
            with self._source.examples(trainer, pl_module) as examples:
                inputs = layer_inputs(pl_module, examples[0])
        return make_plan(pl_module, structure, request, original=progress.original, sizes=sizes, inputs=inputs)

    def _report(self, trainer: pl.Trainer, pl_module: pl.LightningModule, plan: PruningPlan) -> None:
        # Later events may well ask for less than a channel, as the last ones of "cubic" do.
        if plan.channels_removed == 0 and plan.reached <= 0:
            rank_zero_warn(f"The pruning event of epoch {trainer.current_epoch} removed no channel:\n{plan}")
        elif self.verbose:
            # What is skipped stays the same: it is told once.
            report = str(plan) if len(self.plans) == 1 else plan.table()
            rank_zero_info(f"Pruned at epoch {trainer.current_epoch}:\n{report}")
        log_scalars(trainer, event_scalars(plan))
        self._log_accuracy(trainer, self._accuracy.evaluate(pl_module))

    def _log_accuracy(self, trainer: pl.Trainer, accuracy: float | None, step: int | None = None) -> None:
        if accuracy is not None:
            log_scalars(trainer, {"coreset/accuracy": accuracy}, step)

    # ---- in validation

    @staticmethod
    def _without_validation(trainer: pl.Trainer) -> bool:
        return not trainer.enable_validation

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch the step."""
        if trainer.state.fn == "fit":
            self._accuracy.start(pl_module)

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
            self._accuracy.batch_end(batch)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the accuracy of this validation."""
        if trainer.state.fn == "fit":
            accuracy = self._accuracy.compute_and_reset()
            if not trainer.sanity_checking:
                self._log_accuracy(trainer, accuracy)

    # ---- afterwards

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take all hooks off the module."""
        self._accuracy.stop()
        self._source.end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the module as ``teardown`` does, which Lightning does not call then."""
        self.teardown(trainer, pl_module, "fit")

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say so loudly if training ended before the schedule did."""
        missed = list(self._progress.open_events(self._events))
        if missed and not trainer.interrupted:
            rank_zero_warn(
                f"Training ended before the pruning events of epochs {missed}; the last ratio reached was "
                f"{self._progress.reached:.2%} of the requested {max(self._events.values()):.2%}."
            )

    # ---- checkpoints

    @property
    def state_key(self) -> str:
        """Tells several callbacks of this class apart in one checkpoint."""
        return self._generate_state_key(unit=self.request.unit, order=self.order, ignore=list(self.request.ignore))

    def state_dict(self) -> dict[str, Any]:
        """What was done, as plain data."""
        return self._progress.to_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where the checkpoint was made."""
        self._progress = Progress.from_dict(state_dict)
