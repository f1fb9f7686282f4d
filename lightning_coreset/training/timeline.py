"""When the events of a training run are, as far as the Trainer knows how long it will be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn

from lightning_coreset.schedule import Schedule, check_schedule, pruning_events


@dataclass(frozen=True)
class Timeline:
    """The arguments of :func:`lightning_coreset.schedule.pruning_events`, checked, until a Trainer is there."""

    schedule: Schedule
    pruning_ratio: float
    start: int | float
    end: int | float
    every: int

    def __post_init__(self) -> None:
        check_schedule(self.schedule, self.pruning_ratio, start=self.start, end=self.end, every=self.every)

    def events(self, trainer: pl.Trainer) -> dict[int, float]:
        """Epochs and pruning ratios of this fit, known once the loaders are (``on_train_start``).

        ``fast_dev_run`` has one epoch and prunes at its start, whatever the schedule.

        Raises:
            ValueError: If no event falls within training.
            MisconfigurationException: If training has no end, and the schedule needs one.
        """
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return pruning_events("one_shot", self._last_ratio, start=0, end=0, every=1, epochs=1)
        epochs = training_epochs(trainer)
        if epochs is None:
            epochs = self._epochs_needed()
        events = pruning_events(
            self.schedule, self.pruning_ratio, start=self.start, end=self.end, every=self.every, epochs=epochs
        )
        beyond = [epoch for epoch in self.schedule if epoch >= epochs] if isinstance(self.schedule, Mapping) else []
        if beyond:
            rank_zero_warn(f"Training has {epochs} epochs: the schedule's events of epochs {beyond} will not happen.")
        return events

    @property
    def _last_ratio(self) -> float:
        return max(self.schedule.values()) if isinstance(self.schedule, Mapping) else self.pruning_ratio

    def _epochs_needed(self) -> int:
        """Epochs that hold all events, where training has no end."""
        if isinstance(self.schedule, Mapping):
            return 1 + max(self.schedule)
        times = (self.start,) if self.schedule == "one_shot" else (self.start, self.end)
        if any(isinstance(time, float) for time in times):
            raise MisconfigurationException(
                f"Expected a Trainer with max_epochs or max_steps, since start={self.start!r} and end={self.end!r} are "
                "fractions of training, which has no end. Set one of them, or give start and end as epochs (int)."
            )
        return 1 + int(max(times))


def training_epochs(trainer: pl.Trainer) -> int | None:
    """Epochs of this fit, counted from 0; ``None`` if neither ``max_epochs`` nor ``max_steps`` bounds them.

    ``max_steps`` counts where it ends training earlier, which is known once the loaders are (``on_train_start``).
    """
    bounds = []
    if trainer.max_epochs is not None and trainer.max_epochs > 0:
        bounds.append(trainer.max_epochs)
    batches = trainer.num_training_batches
    if trainer.max_steps is not None and trainer.max_steps > 0 and 0 < batches < math.inf:
        steps = math.ceil(batches / trainer.accumulate_grad_batches)
        bounds.append(math.ceil(trainer.max_steps / steps))
    return min(bounds) if bounds else None
