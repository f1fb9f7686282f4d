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
from torch import Tensor

from lightning_coreset._compat import at_position, trainer_of
from lightning_coreset.plain_data import as_type


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

    def to_plain(self) -> dict[str, Any]:
        """Numbers, strings, lists and tensors."""
        (version, words, gauss), numpy_state, torch_state = self._random
        numpy_plain = None
        if numpy_state is not None:
            kind, keys, *rest = numpy_state
            numpy_plain = [kind, torch.tensor([int(key) for key in keys]), *rest]
        return {
            "epoch": self.epoch,
            "step": self.step,
            "random": [version, torch.tensor(words), gauss],
            "numpy": numpy_plain,
            "torch": torch_state.clone(),
        }

    @classmethod
    def from_plain(cls, plain: Any) -> Moment:
        """The inverse of :meth:`to_plain`.

        Raises:
            ValueError: If it is something else.
        """
        plain = as_type(plain, dict[str, Any], "a moment")
        epoch, step = (as_type(plain.get(name), int, name) for name in ("epoch", "step"))
        version, words, gauss = _three(plain.get("random"))
        numpy_state = plain.get("numpy")
        if numpy_state is not None:
            kind, keys, *rest = as_type(numpy_state, tuple[Any, ...], "the state of numpy's generator")
            numpy_state = (kind, as_type(keys, Tensor, "the state of numpy's generator").tolist(), *rest)
        torch_state = as_type(plain.get("torch"), Tensor, "the state of torch's generator")
        return cls(epoch, step, ((version, tuple(words.tolist()), gauss), numpy_state, torch_state))

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


def _three(plain: Any) -> tuple[int, Tensor, float | None]:
    state = as_type(plain, tuple[Any, ...], "the state of a generator")
    if len(state) != 3:
        raise ValueError(f"Expected three values of the state of a generator but got {len(state)}.")
    version, words, gauss = state
    return version, as_type(words, Tensor, "the state of a generator"), gauss
