"""A way of running a LightningModule that may become an example, and which of them a batch offers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import partial
from typing import Any

import lightning.pytorch as pl
from torch import nn

from lightning_coreset.nested import tensors_in
from lightning_coreset.structure import Example, RunMode
from lightning_coreset.training.examples.batches import first_samples, on_device
from lightning_coreset.training.examples.forward import ForwardRun
from lightning_coreset.training.examples.loss_graph import Link
from lightning_coreset.training.examples.steps import Calls, StepRun, recorded_calls
from lightning_coreset.training.packages import is_overridden, kinds

_MOST_BYTES = 1 << 24
"""Of the whole batch of an extra step, of which there may be several; the first samples are kept in any case."""


def _bytes_of(batch: Any) -> int:
    return sum(one.numel() * one.element_size() for one in tensors_in(batch))


def always(used: Collection[str]) -> bool:
    """Of an example that is needed whatever others have used."""
    return True


@dataclass(frozen=True)
class Shows:
    """Of an example that is needed as long as some parameter or buffer is not used yet.

    Attributes:
        tensors: Their names.
    """

    tensors: frozenset[str]

    def __call__(self, used: Collection[str]) -> bool:
        """Whether one is missing among these."""
        return not self.tensors <= {*used}


class Origin(IntEnum):
    """Where a candidate comes from, the most telling first."""

    GIVEN = 0
    """The user's example inputs."""
    STEP = 1
    """A training step, or the calls that one made."""
    EVALUATION = 2
    """A validation step that ran."""
    PRESENT = 3
    """The first training step once more, at the epoch and step of an event."""
    GUESS = 4
    """A method that did not run, tried on a batch that it may suit."""


@dataclass(eq=False)
class Candidate:
    """A way of running a LightningModule.

    Attributes:
        title: What is run, for messages.
        example: How, with inputs on the CPU.
        origin: Where it comes from.
        whole: The whole batch, of which the inputs are a part, until the self-check has shown that this suffices.
        is_idle: Whether it showed nothing new when the structure was read last, and may later.
        was_tried: Whether the self-check has passed on it.
        is_extra: Whether it runs no layer for the first time, and is left out unless it couples layers otherwise.
        links: How a training step joins layers otherwise, until it is known whether it does when it is run once more.
        must_repeat: Whether what it joins is held if it does not. The first step is an example in any case.
    """

    title: str
    example: Example
    origin: Origin
    whole: Any = None
    is_idle: bool = False
    was_tried: bool = False
    is_extra: bool = False
    links: frozenset[Link] = frozenset()
    must_repeat: bool = True

    @classmethod
    def of_step(
        cls,
        run: StepRun | ForwardRun,
        title: str,
        batch: Any,
        origin: Origin,
        needed: Callable[[Collection[str]], bool] | None = None,
    ) -> Candidate:
        """A step, or ``forward``, on some samples of a batch; an extra one if it is not said what it is needed for."""
        modes: tuple[RunMode, ...] = ("evaluation", "training") if origin is Origin.STEP else ("evaluation",)
        some, is_extra = first_samples(batch), needed is None
        example = replace(Example.of(on_device(some, "cpu")), run=run, modes=modes, needed=needed or always)
        keeps = some is not batch and not (is_extra and _bytes_of(batch) > _MOST_BYTES)
        whole = on_device(batch, "cpu") if keeps else None
        return cls(title, example, origin, whole, is_extra=is_extra)

    @classmethod
    def of_calls(
        cls,
        calls: Calls,
        batch: Any,
        needed: Callable[[Collection[str]], bool] = always,
    ) -> Candidate:
        """The calls of modules that a real step made."""
        kept = on_device(calls, "cpu")
        example = Example(kept, recorded_calls, Example.of(batch).batch_size, needed=needed)
        return cls("the calls of modules in training_step", example, Origin.STEP)

    @property
    def calls_forward(self) -> bool:
        """Whether it was seen to call the module's own ``forward``."""
        if isinstance(self.example.run, StepRun):
            return self.example.run.calls_forward
        return self.origin is Origin.GIVEN or any(name == "" for name, *_ in _calls_of(self.example))

    def at_present(self, needed: Callable[[Collection[str]], bool]) -> Candidate:
        """The same step, as it runs at the epoch and step of an event: a loss may have set in."""
        run = StepRun("training_step", self.example.run.batch_idx if isinstance(self.example.run, StepRun) else 0)
        example = replace(self.example, run=run, needed=needed)
        return Candidate("training_step at present", example, Origin.PRESENT, self.whole)

    def takes_whole_batch(self) -> bool:
        """Use the whole batch from now on; whether there is more of it."""
        if self.whole is None:
            return False
        whole = Example.of(self.whole)
        self.example = replace(self.example, inputs=whole.inputs, batch_size=whole.batch_size)
        self.whole = None
        return True

    def settle(self, modes: tuple[RunMode, ...]) -> None:
        """It ran in these modes, and will from now on."""
        needed = self.example.needed if self.origin is Origin.PRESENT else always
        self.example, self.is_idle = replace(self.example, modes=modes, needed=needed), False

    def mark_tried(self) -> None:
        """The self-check has seen it, unless it has nothing to show so far."""
        if not self.is_idle:
            self.was_tried, self.whole = True, None


def _calls_of(example: Example) -> list[Any]:
    return example.inputs if example.run is recorded_calls else []


def guesses(
    pl_module: pl.LightningModule,
    batch: Any,
    calls_forward: Callable[[], bool],
    shows_more: Callable[[str, Collection[str]], bool],
) -> Iterator[Candidate]:
    """Methods that nothing has called yet, to be tried on a batch.

    What ``forward`` and ``predict_step`` return is what the module is used for later: it keeps its width. Validation
    and test steps may run layers that training does not, or couple them otherwise.

    Args:
        pl_module: The module.
        batch: A batch of training.
        calls_forward: Whether some example calls ``forward``.
        shows_more: Whether a step may show more than the examples that have used these parameters and buffers.
    """

    def guess(run: StepRun | ForwardRun, title: str, needed: Callable[[Collection[str]], bool]) -> Candidate:
        return Candidate.of_step(run, title, batch, Origin.GUESS, needed)

    if has_forward(pl_module):
        yield guess(ForwardRun(), "forward", lambda used: not calls_forward())
    if is_overridden("predict_step", pl_module):
        yield guess(StepRun("predict_step"), "predict_step", always)
    tests = "test_step" if type(pl_module).test_step is not type(pl_module).validation_step else "validation_step"
    for hook in dict.fromkeys(("validation_step", tests)):
        if is_overridden(hook, pl_module):
            yield replace(guess(StepRun(hook), hook, partial(shows_more, hook)), is_extra=True)


def has_forward(pl_module: pl.LightningModule) -> bool:
    """Whether a LightningModule has a ``forward`` of its own."""
    inherited = [kind.forward for kind in (*kinds("LightningModule"), nn.Module)]  # type: ignore[attr-defined]
    return type(pl_module).forward not in inherited


def in_short(errors: Mapping[RunMode, Exception]) -> str:
    """What a network raised, for a message."""
    said: dict[str, RunMode] = {}
    for mode, error in errors.items():
        said.setdefault(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:160]}", mode)
    return " and ".join(f"{text} (in {mode} mode)" if len(said) > 1 else text for text, mode in said.items())
