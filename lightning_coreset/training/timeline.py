"""When the events of a training run are, by the length of training that the Trainer knows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn

from lightning_coreset._arguments import is_whole_number
from lightning_coreset._compat import batches_that_stepped, epochs_before_batch_norm_update
from lightning_coreset.schedule import Interval, PruningSchedule, events_of
from lightning_coreset.training.packages import kinds


@dataclass(frozen=True)
class Timeline:
    """When to prune and how much in all; a Trainer gives the length of training.

    Attributes:
        schedule: When.
        pruning_ratio: How much, unless the schedule maps epochs (steps) to ratios.
    """

    schedule: PruningSchedule
    pruning_ratio: float

    @property
    def interval(self) -> Interval:
        """What events are counted in."""
        return self.schedule.interval

    def position(self, trainer: pl.Trainer) -> int:
        """The current time: the epoch, or the number of batches that led to an optimizer step."""
        if self.interval == "epoch":
            return trainer.current_epoch
        return batches_that_stepped(trainer)

    def events(self, trainer: pl.Trainer) -> dict[int, float]:
        """Epochs (steps) and pruning ratios of this fit, once the loaders exist (``on_train_start``).

        ``fast_dev_run`` has one epoch and prunes at its start, whatever the schedule.

        Raises:
            ValueError: If no event falls within training.
            MisconfigurationException: If training has no end, and the schedule needs one.
        """
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return events_of(PruningSchedule("one_shot", start=0), self.target, 1)
        length = training_epochs(trainer) if self.interval == "epoch" else training_steps(trainer)
        if length is None:
            length = self._length_needed(trainer)
        events = events_of(self.schedule, self.pruning_ratio, length)
        curve = self.schedule.curve
        beyond = [time for time in curve if time >= length] if isinstance(curve, Mapping) else []
        if beyond:
            rank_zero_warn(
                f"Training has {length} {self.interval}s: the schedule's events of {self.interval}s {beyond} will not "
                "happen."
            )
        return events

    @property
    def target(self) -> float:
        """The ratio of the last event."""
        curve = self.schedule.curve
        return max(curve.values()) if isinstance(curve, Mapping) else self.pruning_ratio

    def towards(self, target: float | None) -> Timeline:
        """The same times, to a ratio that was found sensible where none was given; ``None`` for the one that was."""
        return self if target is None else replace(self, pruning_ratio=target)

    def _length_needed(self, trainer: pl.Trainer) -> int:
        """The number of epochs (steps) that contain all events, for training without an end."""
        curve = self.schedule.curve
        if isinstance(curve, Mapping):
            return 1 + max(curve)
        start, end = self.schedule.start, self.schedule.end
        times = (start,) if curve == "one_shot" else (start, end)
        if any(not is_whole_number(time) for time in times):
            if self.interval == "epoch" and trainer.max_steps > 0:
                raise MisconfigurationException(
                    f"Expected to know how many batches an epoch has, since start={start!r} and end={end!r} "
                    "are fractions of training in epochs, but the training data does not tell its length: with "
                    f"max_steps={trainer.max_steps} alone, training has an unknown number of epochs. Count events in "
                    "steps, with CoresetPruningCallback(interval='step'), give start and end as epochs (int), or set "
                    "max_epochs as well."
                )
            raise MisconfigurationException(
                f"Expected a Trainer with max_epochs or max_steps, since start={start!r} and end={end!r} are "
                f"fractions of training, which has no end. Set one of them, or give start and end as {self.interval}s "
                "(int)."
            )
        return 1 + int(max(times))


def training_steps(trainer: pl.Trainer) -> int | None:
    """Steps of this fit, as ``Timeline.position`` counts them; ``None`` if nothing bounds them.

    Exact but for ``max_steps`` with manual optimization, see :func:`training_epochs`.
    """
    bounds = []
    max_epochs, batches = _max_epochs(trainer), trainer.num_training_batches
    if max_epochs is not None and batches < math.inf:
        bounds.append(sum(_steps_in_epoch(trainer, epoch) for epoch in range(max_epochs)))
    if trainer.max_steps > 0:
        bounds.append(_max_stepping_batches(trainer))
    return min(bounds, default=None)


def training_epochs(trainer: pl.Trainer) -> int | None:
    """Epochs of this fit, counted from 0; ``None`` if neither ``max_epochs`` nor ``max_steps`` bounds them.

    ``max_steps`` counts if it ends training earlier, which is known once the loaders exist (``on_train_start``). With
    manual optimization it counts the steps of every optimizer, and each is assumed to step once a batch, since that
    cannot be known before. If they step less often, events are earlier than the fraction of training; if more often,
    training may end before the last events, with a warning.
    """
    bounds = []
    max_epochs = _max_epochs(trainer)
    if max_epochs is not None:
        bounds.append(max_epochs)
    if trainer.max_steps > 0 and 0 < trainer.num_training_batches < math.inf:
        steps = epochs = 0
        while steps < _max_stepping_batches(trainer):
            steps += _steps_in_epoch(trainer, epochs)
            epochs += 1
        bounds.append(epochs)
    return min(bounds, default=None)


def _max_epochs(trainer: pl.Trainer) -> int | None:
    if trainer.max_epochs is None or trainer.max_epochs <= 0:
        return None
    # For a network with BatchNorm, SWA copies the averaged weights into the model and adds an epoch that only runs the
    # data through: too late for an event.
    kind = kinds("callbacks.StochasticWeightAveraging")
    averaging = [callback for callback in _callbacks(trainer) if isinstance(callback, kind)]
    return min([trainer.max_epochs, *(epochs_before_batch_norm_update(trainer, callback) for callback in averaging)])


def _max_stepping_batches(trainer: pl.Trainer) -> int:
    """The number of batches with a step that ``max_steps`` allows."""
    module = trainer.lightning_module
    optimizers = 1 if module is None or module.automatic_optimization else max(1, len(trainer.optimizers))
    return math.ceil(trainer.max_steps / optimizers)


def _steps_in_epoch(trainer: pl.Trainer, epoch: int) -> int:
    batches_per_step = trainer.accumulate_grad_batches
    for callback in _callbacks(trainer):
        if isinstance(callback, kinds("callbacks.GradientAccumulationScheduler")):
            batches_per_step = callback.get_accumulate_grad_batches(epoch)
    return math.ceil(trainer.num_training_batches / batches_per_step)  # the last batches of an epoch make a step


def _callbacks(trainer: pl.Trainer) -> list[Any]:
    return trainer.callbacks  # type: ignore[attr-defined]
