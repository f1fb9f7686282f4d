"""When a step ran, as far as its code may branch on it: epoch, step and random numbers."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_coreset._compat import at_position, trainer_of


@dataclass(frozen=True, eq=False)
class Moment:
    """When a step ran.

    Attributes:
        epoch: ``current_epoch``.
        step: ``global_step``.
    """

    epoch: int
    step: int
    _random: tuple[Any, Any, Any]

    @classmethod
    def now(cls, trainer: pl.Trainer) -> Moment:
        """The present; right before a step."""
        numpy = sys.modules.get("numpy")  # what was never imported draws no numbers
        states = (random.getstate(), None if numpy is None else numpy.random.get_state(), torch.get_rng_state())
        return cls(trainer.current_epoch, trainer.global_step, states)

    @contextmanager
    def again(self, pl_module: Any) -> Iterator[None]:
        """Let a module's code see it once more in the block, so that a step takes the same branches.

        The caller restores the random states.
        """
        python, numpy_state, torch_state = self._random
        random.setstate(python)
        if numpy_state is not None:
            sys.modules["numpy"].random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        with at_position(trainer_of(pl_module), self.epoch, self.step):
            yield
