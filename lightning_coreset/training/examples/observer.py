"""Watches the steps of a training run for layers that no example has run yet."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from lightning_coreset.training.examples.batches import shallow
from lightning_coreset.training.examples.candidate import Candidate, Origin, Shows, always
from lightning_coreset.training.examples.moment import Moment
from lightning_coreset.training.examples.steps import Calls, StepRun, can_be_repeated
from lightning_coreset.training.examples.watch import Watch
from lightning_coreset.training.metrics import ForwardRecorder

_PATIENCE = 100
"""So many steps in a row are recorded at most, until one calls again what an earlier one called."""


@dataclass(frozen=True, eq=False)
class _Step:
    """A step that is running, and its batch as it was before."""

    run: StepRun
    batch: Any
    global_step: int


class StepObserver:
    """Makes a candidate of every step that runs a layer which none before has run.

    A step of automatic optimization is kept with its batch. One of manual optimization cannot be repeated: the calls
    that it makes are recorded the next time that it comes.

    Attributes:
        watch: The layers that have not run.
        records: Whether the next step is recorded, whatever it runs.
        trained_unseen: Whether an optimizer stepped in a recorded step that called no module.
    """

    def __init__(self) -> None:
        self.watch = Watch()
        self.records = self.trained_unseen = False
        self._recorder: ForwardRecorder | None = None
        self._step: _Step | None = None
        self._patience = 0

    @property
    def is_recording(self) -> bool:
        """Whether the calls of the present step are recorded."""
        return self._recorder is not None

    def start(self, pl_module: pl.LightningModule) -> None:
        """Begin with all layers."""
        self.stop()
        self.watch.start(pl_module)

    def stop(self) -> None:
        """Remove all hooks from the module and drop batches."""
        self._stop_recorder()
        self.watch.stop()
        self.__init__()

    def before(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, hook: str, batch: Any, batch_idx: int, loader: int = 0
    ) -> None:
        """Right before a step."""
        self._step = None
        trains = hook == "training_step"
        if trains and (self.records or self._patience > 0):
            self._recorder = ForwardRecorder(pl_module, copy_inputs=True)
            self._recorder.start()
        if self._recorder is not None or self.watch.is_on:
            self.watch.ran.clear()
            index = loader if is_param_in_hook_signature(getattr(pl_module, hook), "dataloader_idx", True) else None
            run = StepRun(hook, batch_idx, index, Moment.now(trainer))
            self._step = _Step(run, shallow(batch), trainer.global_step)

    def after(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Candidate | None:
        """Right after it; returns a candidate if it ran something new, or was to be recorded."""
        step, self._step = self._step, None
        if step is None:
            return None
        trains, by_hand = step.run.hook == "training_step", not can_be_repeated(pl_module)
        new, calls = set(self.watch.ran), self._stop_recorder()
        if calls is not None:
            stepped = by_hand and trainer.global_step > step.global_step  # else a step that returned None counts, too
            self.trained_unseen |= stepped and not calls and self.records
            return self._recorded(step, new, calls, by_hand)
        if trains and by_hand:
            self._patience = _PATIENCE if new else self._patience  # it is recorded when it comes again
            return None
        if not new:
            return None
        candidate = Candidate.of_step(
            step.run,
            f"{step.run.hook} on batch {step.run.batch_idx}",
            step.batch,
            Origin.STEP if trains else Origin.EVALUATION,
            self._shows(new),
        )
        self.watch.forget(new)
        return candidate

    def _recorded(self, step: _Step, new: set[str], calls: Calls, by_hand: bool) -> Candidate | None:
        self._patience -= 1
        if not calls or not (new or self.records):
            self.records &= by_hand
            return None
        candidate = Candidate.of_calls(calls, step.batch, always if self.records else self._shows(new))
        self.records, self._patience = False, 0
        self.watch.forget(new)
        return candidate

    def _shows(self, layers: Collection[str]) -> Shows:
        """Whether some of these layers are not used yet."""
        return Shows(self.watch.tensors(layers))

    def _stop_recorder(self) -> Calls | None:
        """The calls that were recorded; ``None`` if nothing was."""
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return None
        recorder.stop()
        calls = [(call.name, *(call.before or (call.args, call.kwargs))) for call in recorder.calls]
        recorder.clear()
        return calls
