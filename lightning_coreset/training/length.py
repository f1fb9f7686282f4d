"""How many epochs a Trainer will train for, as far as it knows."""

from __future__ import annotations

import math

import lightning.pytorch as pl


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
