"""Take a pruning event back if training does not recover the accuracy in time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn

from lightning_coreset.plain_data import as_type, from_plain
from lightning_coreset.training.accuracy_guard import AccuracyGuard
from lightning_coreset.training.metrics import Mode
from lightning_coreset.training.progress import Progress
from lightning_coreset.training.rollback import RecoveryWindow, Savepoint


class Guard:
    """Watches a number after every validation, and takes the last event back if the number does not recover.

    The number may be ``max_drop`` below the best of the validations before the first event. After an event training has
    ``recover_epochs`` to bring it back there; the event is accepted at the first validation that finds it there. Until
    then no other event happens: events that are due wait. If the number is not back in time, or when training ends, the
    event is taken back: at the next hook of training, not within validation, where other callbacks still save the model
    that was validated.

    Args:
        options: How far the number may fall, and what happens then; ``None`` turns the guard off.
        mode: Whether ``"max"`` or ``"min"`` is better.
        name: The name of the number, for messages.
    """

    def __init__(self, options: AccuracyGuard | None, mode: Mode, name: str) -> None:
        self.options = options
        self.mode = mode
        self.name = name
        self.reset()

    def reset(self) -> None:
        """Start another training run."""
        self._best: float | None = None  # of the validations before the first event
        self._has_pruned = False
        self._max_step: float | None = None  # how much an event may add to the pruning ratio
        self._window: RecoveryWindow | None = None
        self.stopped = False

    # ---- before training and in validation

    def check(self, trainer: pl.Trainer) -> None:
        """Raise ``MisconfigurationException`` if the Trainer does not validate."""
        if self._is_on(trainer) and not trainer.enable_validation:
            raise MisconfigurationException(
                f"Expected a Trainer that validates, since max_drop={self._max_drop} watches a number of validation, "
                "but got none. Give it validation data and the module a validation_step, without limit_val_batches=0, "
                "or leave max_drop out."
            )

    def check_first_event(self, trainer: pl.Trainer, epoch: float) -> None:
        """Raise ``MisconfigurationException`` if the first event comes before any validation, once training begins.

        Args:
            trainer: The Trainer.
            epoch: The epoch at whose start it is.
        """
        every = trainer.check_val_every_n_epoch
        if not self._is_on(trainer) or self._best is not None or every is None or math.isinf(epoch):
            return
        if (trainer.current_epoch // every + 1) * every > epoch:
            raise self._nothing_to_compare(trainer)

    def watch(self, trainer: pl.Trainer, value: float | None) -> None:
        """Take in the value of a validation, or ``None`` if it has none: an old value would say nothing of the event.

        The sanity check before training counts only if it goes over all of the data (``num_sanity_val_steps=-1``).

        Raises:
            MisconfigurationException: If there is no value.
        """
        if not self._is_on(trainer):
            return
        if trainer.sanity_checking and (value is None or trainer.num_sanity_val_steps < math.inf):
            return
        if value is None and self._best is None:
            raise self._without_value()
        if not self._has_pruned and value is not None and not math.isnan(value):
            better = max if self.mode == "max" else min
            self._best = value if self._best is None else better(self._best, value)
        if self._window is not None:
            self._judge(trainer, self._window, value)

    def _judge(self, trainer: pl.Trainer, window: RecoveryWindow, value: float | None) -> None:
        """Accept the event if the number is back; without a new number it is not."""
        if value is not None and self._is_allowed(value):
            self._window = None
            return
        if value is None:
            value = math.nan if window.value is None else window.value
        assert self.options is not None
        time_is_over = window.epochs_since(trainer) >= self.options.recover_epochs
        self._window = replace(window, value=value, failed=time_is_over)

    def _without_value(self) -> MisconfigurationException:
        return MisconfigurationException(
            f"Expected validation to give the {self.name}, since max_drop={self._max_drop} watches it, but got "
            "nothing: the model is not recognised as a classifier, or validation did not contain all classes. "
            "Give the name of a metric that the module logs, as in monitor='val_acc', or a metric of torchmetrics, "
            "as in metric=..."
        )

    def _nothing_to_compare(self, trainer: pl.Trainer) -> MisconfigurationException:
        every = trainer.check_val_every_n_epoch or 1
        start = (trainer.current_epoch // every + 1) * every
        return MisconfigurationException(
            f"Expected a validation that gives the {self.name} before the first pruning event, since "
            f"max_drop={self._max_drop} compares with it, but there is none. Begin to prune later, as with "
            f"start={start}, or let the sanity check go over all of the data with Trainer(num_sanity_val_steps=-1)."
        )

    def _is_allowed(self, value: float) -> bool:
        assert self._best is not None
        assert self.options is not None
        fall = self._best - value if self.mode == "max" else value - self._best
        return fall <= self.options.max_drop  # False for NaN

    # ---- at events

    @property
    def waiting(self) -> bool:
        """Whether no event may happen now: the last one has to recover first, or pruning has ended."""
        return self.stopped or self.recovering

    @property
    def recovering(self) -> bool:
        """Whether the last event has to recover first, and may be taken back."""
        return self._window is not None

    def limit(self, ratio: float, progress: Progress) -> float:
        """The pruning ratio that an event may ask for, where the schedule asks for ``ratio``."""
        reached = max(progress.done.values(), default=0.0)
        return ratio if self._max_step is None else min(ratio, reached + self._max_step)

    def before_event(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Savepoint | None:
        """Copy everything that the event may change; ``None`` if the guard is off.

        Raises:
            MisconfigurationException: If there was no validation yet to compare with.
        """
        if not self._is_on(trainer):
            return None
        if self._best is None:
            raise self._nothing_to_compare(trainer)
        return Savepoint.take(trainer, pl_module)

    def after_event(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        savepoint: Savepoint | None,
        progress: Progress,
        ratio: float,
    ) -> None:
        """Open the recovery window of an event that has removed channels.

        Args:
            trainer: The Trainer.
            pl_module: Its module, already pruned.
            savepoint: From ``before_event``.
            progress: As it was before the event.
            ratio: What the event asked for.
        """
        if savepoint is None:
            return
        self._has_pruned = True
        self._window = RecoveryWindow.open(trainer, savepoint.after(pl_module), progress, ratio)

    def stop_if_exhausted(self, asked: float, scheduled: float, progress: Progress) -> None:
        """End pruning after an event that removed nothing because its step had become too small."""
        if asked < scheduled:
            self.stopped = True
            rank_zero_warn(
                f"Pruning stops at {progress.reached:.2%}: the largest step that the guard allows removes less than "
                "one channel."
            )

    def take_back(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, progress: Progress, *, over: bool = False
    ) -> bool:
        """Take the last event back if it has failed; a collective operation then.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            progress: Goes back as well.
            over: Whether training has ended, and with it the time to recover.

        Returns:
            Whether it was taken back.
        """
        window = self._window
        if window is None or not (window.failed or over):
            return False
        if window.value is None:
            rank_zero_warn(
                f"Training ended before a validation could measure the {self.name} after the pruning event of epoch "
                f"{window.epoch}: the event is kept."
            )
            return False
        window.roll_back(trainer, pl_module, progress)
        self._window = None
        assert self.options is not None
        if self.options.on_failure == "stop":
            self.stopped = True
        else:
            self._max_step = (window.ratio - max(window.done.values(), default=0.0)) / 2
        self._warn_of_rollback(window, window.value, progress)
        return True

    def _warn_of_rollback(self, window: RecoveryWindow, value: float, progress: Progress) -> None:
        step = self._max_step
        consequence = "Pruning stops" if step is None else f"It continues in steps of at most {step:.2%}"
        model = f"The model is as it was before the event, with {progress.reached:.2%} pruned"
        if math.isnan(value):
            rank_zero_warn(
                f"The pruning event of epoch {window.epoch} is taken back: the {self.name} that max_drop watches was "
                "not logged since, or is not a number, which counts as not recovered. Log it in every validation, or "
                f"let recover_epochs reach to one that does. {model}. {consequence}."
            )
        else:
            rank_zero_warn(
                f"The pruning event of epoch {window.epoch} is taken back: the {self.name} is {value:.4g} and was "
                f"{self._best:.4g} before pruning, a larger drop than max_drop={self._max_drop} allows. {model}. "
                f"{consequence}."
            )

    @property
    def _max_drop(self) -> float | None:
        return None if self.options is None else self.options.max_drop

    def _is_on(self, trainer: pl.Trainer) -> bool:
        return self.options is not None and not trainer.fast_dev_run  # type: ignore[attr-defined]

    # ---- checkpoints

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the number to compare with and, during recovery, the state before the event."""
        return {
            "best": self._best,
            "watched": self._watched,
            "begun": self._has_pruned,
            "step": self._max_step,
            "stopped": self.stopped,
            "window": None if self._window is None else self._window.to_dict(),
        }

    def load(self, plain: Any, progress: Progress) -> None:
        """The inverse of :meth:`to_dict`.

        Args:
            plain: What it returned.
            progress: What was done until then.

        Raises:
            ValueError: If it is something else, or does not go with what was done. Nothing is changed then.
        """
        state = from_plain(_State, as_type(plain, dict[str, Any], "guard"))
        window = None if state.window is None else RecoveryWindow.from_dict(state.window)
        if window is not None and (state.best is None or window.plans != len(progress.plans) - 1):
            raise ValueError(
                f"Expected the guard to watch the last of {len(progress.plans)} pruning events but got an event after "
                f"{window.plans}, and {state.best} to compare with."
            )
        if self.options is None or state.watched not in (None, self._watched):
            self._begin_anew(state, window)
            return
        self._best, self._has_pruned, self._max_step = state.best, state.begun, state.step
        self.stopped, self._window = state.stopped, window

    def _begin_anew(self, state: _State, window: RecoveryWindow | None) -> None:
        """Without the guard of the checkpoint, or with one that watches something else, what it knew says nothing."""
        self.reset()
        if window is not None:
            now = "no guard" if self.options is None else f"one that watches {self._watched}"
            rank_zero_warn(
                f"The guard of the checkpoint had not accepted the pruning event of epoch {window.epoch} yet, by its "
                f"{state.watched or 'number'}, and the callback has {now}: the event is kept."
            )

    @property
    def _watched(self) -> str:
        return f"{self.name} ({self.mode})"


@dataclass(frozen=True)
class _State:
    """The guard's state in a checkpoint."""

    best: float | None
    begun: bool
    step: float | None
    stopped: bool
    window: dict[str, Any] | None
    watched: str | None = None
