"""Watches the steps of a training run for layers that no example has run yet."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from lightning_coreset._compat import eager_execution
from lightning_coreset.structure import Example, StepOutputs, local_collectives, preserved
from lightning_coreset.training.examples.batches import shallow
from lightning_coreset.training.examples.candidate import Candidate, Origin, Shows, always
from lightning_coreset.training.examples.loss_graph import Link, LossGraphs
from lightning_coreset.training.examples.moment import Moment
from lightning_coreset.training.examples.steps import Calls, StepRun, can_be_repeated
from lightning_coreset.training.examples.watch import Watch
from lightning_coreset.training.metrics import ForwardRecorder

_ALL_OF_A_RUN, _ALL_OF_AN_EPOCH, _SHARE = 100, 8, 1 / 16
"""The graph of a loss is looked at in so many first steps, and in this share of the later ones: it takes time."""

_GOLDEN_RATIO = 0.6180339887498949

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

    A step of automatic optimization is kept with its batch, also if its loss is made of the same layers in another way,
    and so is the first validation step of each loader. One of manual optimization cannot be repeated: the calls
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
        self._graphs = LossGraphs()
        self._new_links, self._looks_at_graph, self._is_first = frozenset[Link](), False, False
        self._evaluated: set[tuple[str, int]] = set()
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
        self._graphs.start(pl_module)

    def stop(self) -> None:
        """Remove all hooks from the module and drop batches."""
        self._stop_recorder()
        self.watch.stop()
        self.__init__()

    def look_at_validation(self) -> None:
        """A validation begins: its first step of each loader may be another one than in those before."""
        self._evaluated.clear()

    def look_again(self) -> None:
        """Forget which steps were seen: what they showed is not known any more."""
        self._graphs.forget()
        self._evaluated.clear()

    def before_backward(self, loss: Any) -> None:
        """A step differentiates its loss: see whether that is made of its layers as those before were.

        The first one is new as well: the example of it is run on a few samples, before it.
        """
        if self._step is not None and self._looks_at_graph and isinstance(loss, Tensor):
            self._is_first |= self._graphs.is_empty
            self._new_links |= self._graphs.note([loss])

    def knows(self, pl_module: pl.LightningModule, example: Example) -> bool:
        """Whether a training step makes a loss of layers in a way that was seen; or that cannot be told."""
        if self._graphs.is_empty:
            return True
        try:
            return self._graphs.has_all(_losses(pl_module, example))
        except Exception:
            return True

    def missing(self, pl_module: pl.LightningModule, example: Example, links: frozenset[Link]) -> frozenset[Link]:
        """How a training step does not join its layers when it is run once more: it may depend on more than that."""
        if any("Compiled" in name for name, *_ in links):  # which hides what is joined, and is not compiled anew here
            return frozenset()
        try:
            return links - self._graphs.of(_losses(pl_module, example))
        except Exception:
            return links

    def makers(self, links: frozenset[Link]) -> set[str]:
        """The parameters, by name, whose layers made what these links join."""
        return self._graphs.makers(links)

    def before(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, hook: str, batch: Any, batch_idx: int, loader: int = 0
    ) -> None:
        """Right before a step."""
        self._step = None
        trains = hook == "training_step"
        if trains and (self.records or self._patience > 0):
            self._recorder = ForwardRecorder(pl_module, copy_inputs=True)
            self._recorder.start()
        # The last one asks for a signature, which takes as long as a small step.
        self._looks_at_graph = trains and _is_looked_at(trainer.global_step, batch_idx) and can_be_repeated(pl_module)
        self._new_links, self._is_first = frozenset(), False
        is_first = not trains and (hook, loader) not in self._evaluated
        if self._recorder is not None or self.watch.is_on or self._looks_at_graph or is_first:
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
        place = step.run.hook, step.run.dataloader_idx or 0
        is_other = bool(self._new_links) if trains else place not in self._evaluated
        if not trains:
            self._evaluated.add(place)
        if not new and not is_other:
            return None
        candidate = Candidate.of_step(
            step.run,
            f"{step.run.hook} on batch {step.run.batch_idx}",
            step.batch,
            Origin.STEP if trains else Origin.EVALUATION,
            self._shows(new) if new else None,
        )
        candidate.links = self._new_links if trains and not new else frozenset()
        candidate.must_repeat = not self._is_first
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


def _losses(pl_module: pl.LightningModule, example: Example) -> list[Tensor]:
    """What a training step returns on an example, with the graph that it comes from."""
    with preserved(pl_module), local_collectives(), eager_execution(), torch.enable_grad():
        outputs = example.run(pl_module, example.inputs)
        numbers = outputs.numbers if isinstance(outputs, StepOutputs) else outputs
        return [one for one in numbers[:1] if one.requires_grad]


def _is_looked_at(step: int, batch_idx: int) -> bool:
    """Whether the graph of a step's loss is looked at; the same in a run that is resumed, and in no fixed distance."""
    return step < _ALL_OF_A_RUN or batch_idx < _ALL_OF_AN_EPOCH or step * _GOLDEN_RATIO % 1 < _SHARE
