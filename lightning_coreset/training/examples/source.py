"""How a LightningModule is run to read its structure: on given inputs, in its own steps, by its own ``forward``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lightning_coreset._compat import methods_before_compile, trainer_of
from lightning_coreset.nested import map_tensors
from lightning_coreset.qualified_names import listed
from lightning_coreset.structure import Example, ExampleInputs, RunMode, Structure, raise_or_warn
from lightning_coreset.training.examples.batches import device_of, fresh, on_device
from lightning_coreset.training.examples.candidate import Candidate, Origin, always, guesses, in_short
from lightning_coreset.training.examples.moment import Moment
from lightning_coreset.training.examples.observer import StepObserver
from lightning_coreset.training.examples.plain_form import to_plain
from lightning_coreset.training.examples.steps import StepRun, can_be_repeated
from lightning_coreset.training.metrics import isolated

_MOST = 32
"""So many examples are kept: each one more is run at every event."""

_FIRST = "training_step"
"""The title of the first one."""

_MOST_EXTRA = 20
"""So many steps that couple layers otherwise are kept between two events."""

_FALLBACKS = 3
"""So many steps are recorded where none can be repeated, before training is ended."""


class ExampleSource:
    """Finds examples of how a LightningModule is run, in the course of a training run.

    - The user's example inputs, or the module's ``example_input_array``.
    - Its own ``training_step`` on the first batch, and on every later one on which it runs a layer that none of the
      examples before runs. With manual optimization, where a step cannot be repeated, the calls of modules in it.
    - Later training steps that put the same layers together in another way, as the graph of their loss shows.
    - The first validation step of each loader, and others that run such layers.
    - ``forward`` and ``predict_step``, if they take what is in a batch, and steps that have not run so far.

    Args:
        example_inputs: The user's, or ``None``.
    """

    def __init__(self, example_inputs: ExampleInputs | None = None) -> None:
        self._given = example_inputs
        self._observer = StepObserver()
        self._forget_all()

    def _forget_all(self) -> None:
        self._candidates: list[Candidate] = []
        self._offered: list[tuple[Candidate, Example]] = []
        self._errors: dict[Candidate, Mapping[RunMode, Exception]] = {}
        self._problems: list[str] = []
        self.held: set[str] = set()
        self._fallbacks = 0
        self._has_begun = self._saw_validation = self.is_resumed = self._starts_over = self._is_other_now = False

    def begin(self, pl_module: pl.LightningModule) -> None:
        """Start a training run."""
        self.end()
        inputs = self._given if self._given is not None else pl_module.example_input_array
        if inputs is not None:
            example = Example.of(inputs)
            title = "example_inputs" if self._given is not None else "example_input_array"
            self._add(Candidate(title, replace(example, run=_OnACopy(example.run)), Origin.GIVEN))
        self._observer.start(pl_module)

    def end(self) -> None:
        """Remove all hooks from the module and drop batches."""
        self._observer.stop()
        self._forget_all()

    # ---- checkpoints

    def to_plain(self, most: int) -> list[dict[str, Any]] | None:
        """The examples as plain data, for :meth:`resume_with`; ``None`` if they are more than so many bytes."""
        return to_plain(self._candidates, most) if self._has_begun else None

    def resume_with(self, pl_module: pl.LightningModule, candidates: Sequence[Candidate]) -> None:
        """Go on with the examples of the run that the checkpoint is of, in place of the first batch."""
        trainer = trainer_of(pl_module)
        for candidate in candidates:
            self._add(candidate)
            run = candidate.example.run
            if candidate.title == _FIRST and isinstance(run, StepRun):
                self._add(candidate.at_present(partial(self._shows_more_now, trainer, run.moment)))
        self.is_resumed = bool(candidates)

    # ---- what the hooks of the Trainer show

    @property
    def has_inputs(self) -> bool:
        """Whether there are inputs before any batch is seen."""
        return self._has(Origin.GIVEN)

    @property
    def has_begun(self) -> bool:
        """Whether there is an example that the structure could be read from."""
        return self._has_begun

    @property
    def has_untried(self) -> bool:
        """Whether there are examples that the self-check has not seen."""
        return any(not one.was_tried and not one.is_idle for one in self._candidates)

    def see_batch(self, pl_module: pl.LightningModule, batch: Any, batch_idx: int = 0) -> bool:
        """Take a batch of training as an example, until one could be read; return whether there is something to run."""
        if self._has_begun:
            return False
        repeats = can_be_repeated(pl_module)
        if pl_module.automatic_optimization and not repeats and not self.has_inputs:
            raise MisconfigurationException(
                "Expected a training_step that takes a batch but got one that takes an iterator, which cannot be "
                "run on an example. Give CoresetPruningCallback(example_inputs=...)."
            )
        if batch is not None and not self._has(Origin.STEP):
            self._candidates = [one for one in self._candidates if one.origin < Origin.PRESENT]
            if repeats:
                trainer = trainer_of(pl_module)
                run = StepRun("training_step", batch_idx, moment=None if trainer is None else Moment.now(trainer))
                first = Candidate.of_step(run, _FIRST, batch, Origin.STEP, always)
                self._add(first)
                self._add(first.at_present(partial(self._shows_more_now, trainer, run.moment)))
            for guess in guesses(pl_module, batch, self._calls_forward, self._more_to_show):
                needed = partial(self._wants_guess, guess.example.needed)
                guess.example = replace(guess.example, needed=needed)
                self._add(guess)
        self._observer.records |= not repeats and not self.has_inputs and not self._has(Origin.STEP)
        return repeats or self.has_inputs

    def before_validation(self) -> None:
        """A validation begins."""
        if self._has_room:
            self._observer.look_at_validation()

    def before_backward(self, loss: Any) -> None:
        """Look at what a training step's loss is made of."""
        if self._has_room:
            self._observer.before_backward(loss)

    def before_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, hook: str, batch: Any, batch_idx: int, loader: int = 0
    ) -> None:
        """Watch a step."""
        self._saw_validation |= hook == "validation_step"
        if batch is not None and len(self._candidates) < _MOST:
            self._observer.before(trainer, pl_module, hook, batch, batch_idx, loader)

    def after_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Keep a step that ran something new; return whether an example may have been found only now."""
        recorded = self._observer.is_recording
        candidate = self._observer.after(trainer, pl_module)
        # Calls of a step that can be repeated are only wanted where that failed, be it on another rank.
        if candidate is not None and not (recorded and self._has(Origin.STEP) and can_be_repeated(pl_module)):
            self._add(candidate)
        found = candidate is not None or self._observer.trained_unseen or trainer.world_size > 1
        return recorded and found and not self._has_begun

    # ---- running the module

    @contextmanager
    def given(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Iterator[Example]:
        """The inputs that were given, on the module's device, to call the module on; there have to be some.

        Side effects on the module of what is run in the block are undone, but for writes into parameters: to look at
        every operation for these takes time, and times may be measured in the block.
        """
        candidate = next(one for one in self._candidates if one.origin is Origin.GIVEN)
        with isolated(pl_module, parameters=False), trainer.precision_plugin.forward_context():
            vars(pl_module).update(methods_before_compile(pl_module))
            inputs = _on_module(trainer, pl_module, candidate)
            yield replace(Example.of(inputs), batch_size=candidate.example.batch_size)

    @contextmanager
    def examples(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *, idle: bool = False
    ) -> Iterator[list[Example]]:
        """The examples on the module's device, the most telling first.

        Side effects on the module of what is run in the block are undone.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            idle: Whether to offer those as well that showed nothing new the last time.
        """

        def placed(candidate: Candidate) -> Example:
            return replace(candidate.example, inputs=_on_module(trainer, pl_module, candidate))

        with isolated(pl_module), trainer.precision_plugin.forward_context():
            # One that was compiled as a whole gets its methods back: those of a copy would run the original.
            vars(pl_module).update(methods_before_compile(pl_module))
            self._hold_what_does_not_repeat(pl_module, placed)
            self._offered = [(one, placed(one)) for one in self._candidates if idle or not one.is_idle]
            present = [example for one, example in self._offered if one.origin is Origin.PRESENT]
            self._is_other_now = idle and any(not self._observer.knows(pl_module, example) for example in present)
            yield [example for _, example in self._offered]

    def _hold_what_does_not_repeat(self, pl_module: pl.LightningModule, placed: Callable[[Candidate], Example]) -> None:
        """Do without steps that join layers otherwise in training only: what they join is held."""
        for candidate in [one for one in self._candidates if one.links]:
            missing = self._observer.missing(pl_module, placed(candidate), candidate.links)
            if missing and candidate.takes_whole_batch():
                missing = self._observer.missing(pl_module, placed(candidate), candidate.links)
            if missing:
                self._candidates.remove(candidate)
            if missing and candidate.must_repeat:
                makers = self._observer.makers(missing)
                self.held |= makers
                rank_zero_warn(
                    f"{candidate.title} joined layers otherwise than when it was run once more: it depends on more "
                    "than its batch, epoch and random numbers. The channels that "
                    f"{listed(_layers(makers), most=4)} make stay. Give "
                    "CoresetPruningCallback(example_inputs=...) if forward shows all."
                )
            candidate.links = frozenset()

    def without_held(self, structure: Structure) -> Structure:
        """The structure without groups of channels that a step joins which could not be repeated."""
        reason = "is joined with other layers in a training step that cannot be repeated"
        held = [
            group.name
            for group in structure.groups
            if any(member.role != "consumer" and member.name in self.held for member in group.members)
        ]
        return structure.without(dict.fromkeys(held, reason))

    def failed(self, example: Example, errors: Mapping[RunMode, Exception]) -> None:
        """Take notice of what the module raised in some modes of an example."""
        candidate = next(candidate for candidate, offered in self._offered if offered is example)
        self._errors[candidate] = errors

    def settle(self, structure: Structure) -> bool:
        """Take notice of how the examples ran; return whether they are to be run again, without those that failed.

        Raises:
            MisconfigurationException: If the module cannot be run on the inputs that were given.
        """
        again = False
        for (candidate, _), modes, showed in zip(self._offered, structure.followed, structure.showed, strict=True):
            errors = self._errors.pop(candidate, {})
            if candidate.is_extra and modes and not showed:
                self._candidates = [one for one in self._candidates if one is not candidate]
            elif modes:
                self._warn_of_mode(candidate, errors)
                candidate.settle(modes)
            elif not errors and candidate.origin is Origin.PRESENT:
                candidate.is_idle = True
            elif not errors:
                self._candidates.remove(candidate)
            else:
                again = True
                if not candidate.takes_whole_batch():
                    self._lose(candidate, errors)
        if not _shows(structure) and not again:  # a step that does nothing, or returns None
            self._candidates = [one for one in self._candidates if one.origin is Origin.GIVEN]
        present = [one for one, _ in self._offered if one.origin is Origin.PRESENT]
        if all(one.is_idle for one in present):  # what it shows is to be seen when it runs: it may show less later
            self._observer.watch.forget_used(structure.used)
        return again

    def agree_to_begin(self, structure: Structure) -> bool:
        """Whether the structure can be read from these examples, or nothing better will come.

        Raises:
            MisconfigurationException: If there is nothing that the module can be run on.
        """
        reads = _shows(structure) or self.has_inputs
        if not reads and (self._observer.trained_unseen or (self._problems and self._fallbacks > _FALLBACKS)):
            tried = "\n  ".join(("\nThis was tried:", *self._problems)) if self._problems else ""
            raise MisconfigurationException(
                "Expected a training_step that can be run on an example, or that calls modules of the LightningModule, "
                "but it calls none that can be seen (a functional model, or one that is compiled in place), so it is "
                "not known what can be pruned. Give CoresetPruningCallback(example_inputs=...) or the module's "
                "example_input_array, for a forward that runs the network."
                + (f" This was tried:{tried}" if tried else "")
            )
        without_step = (bool(self._problems) or self._starts_over) and not self._has(Origin.STEP)
        return reads and (self._fallbacks > 1 or not without_step)

    def fall_back(self) -> None:
        """Begin again with the next batch, and record the calls of its step: on some rank it could not be read."""
        self._fallbacks += 1
        self._has_begun, self._observer.records = False, True

    def have_begun(self) -> None:
        """The structure was read, and what was found was tried, or comes from a checkpoint."""
        if not self._starts_over:
            self.mark_tried()
        self._has_begun, self._observer.records = True, False
        self._starts_over, self._fallbacks = False, 0
        if self._problems:
            rank_zero_warn(_not_followed("; ".join(self._problems)))
            self._problems.clear()

    def mark_tried(self) -> None:
        """The self-check has seen all examples."""
        for candidate in self._candidates:
            candidate.mark_tried()

    def take_whole_batches(self) -> bool:
        """Use whole batches for what the self-check has not seen; return whether there is more of any."""
        taken = [one.takes_whole_batch() for one in self._candidates if not one.is_idle]
        return any(taken)

    # ---- candidates

    @property
    def _has_room(self) -> bool:
        """Whether another extra step may be kept before the next event."""
        return sum(one.is_extra and not one.was_tried for one in self._candidates) < _MOST_EXTRA

    def _add(self, candidate: Candidate) -> None:
        self._candidates = sorted([*self._candidates, candidate], key=lambda one: one.origin)

    def _has(self, origin: Origin) -> bool:
        return any(one.origin is origin for one in self._candidates)

    def _calls_forward(self) -> bool:
        return any(one.calls_forward for one in self._candidates if one.origin is not Origin.GUESS)

    def _wants_guess(self, needed: Callable[[Collection[str]], bool], used: Collection[str]) -> bool:
        # A step that does nothing, as one that returns None, is to be followed by one that does.
        return (bool(used) or not self._has(Origin.STEP)) and needed(used)

    def _more_to_show(self, hook: str, used: Collection[str]) -> bool:
        return not (self._saw_validation and hook == "validation_step")

    def _shows_more_now(self, trainer: pl.Trainer | None, then: Moment | None, used: Collection[str]) -> bool:
        if trainer is None or then is None or (then.epoch, then.step) == (trainer.current_epoch, trainer.global_step):
            return False
        return self._is_other_now or self._observer.watch.has_others(used)

    def _warn_of_mode(self, candidate: Candidate, errors: Mapping[RunMode, Exception]) -> None:
        # A step is really run in training mode only.
        own = candidate.origin is Origin.GIVEN or "training" in errors
        if errors and own:
            raise_or_warn(candidate.example, errors)

    def _lose(self, candidate: Candidate, errors: Mapping[RunMode, Exception]) -> None:
        """Do without an example that does not run, or begin again with the next batch where it did before.

        A step may depend on what the module has kept by now, such as a state with a row for each sample.
        """
        training = (Origin.STEP, Origin.PRESENT)
        if self._has_begun and candidate.origin in training and not candidate.is_extra:
            self._candidates = [one for one in self._candidates if one.origin not in training]
            self._has_begun, self._starts_over = False, True
            self._observer.look_again()
        elif candidate in self._candidates:
            self._drop(candidate, errors)

    def _drop(self, candidate: Candidate, errors: Mapping[RunMode, Exception]) -> None:
        self._candidates.remove(candidate)
        reason = in_short(errors)
        if candidate.origin is Origin.GIVEN:
            raise _wrong_inputs(candidate, reason) from next(iter(errors.values()))
        if candidate.origin is Origin.STEP and not candidate.is_extra:
            self._problems.append(f"{candidate.title} raised {reason}")
        elif candidate.origin < Origin.PRESENT or (candidate.was_tried and candidate.title != "forward"):
            rank_zero_warn(
                f"{candidate.title} ran before, but as an example it now raised {reason}. Layers that only it runs "
                "keep the channels that they may read; layers that only it couples, as by a sum of what they make, "
                "may lose different channels. Give CoresetPruningCallback(example_inputs=...) if forward shows them."
            )
        elif candidate.title == "forward" and not any(isinstance(one, NotImplementedError) for one in errors.values()):
            rank_zero_warn(
                "The LightningModule's own forward is called by no step, and could not be run on a batch "
                f"({reason}), so what it returns may become narrower. Give the module an example_input_array, or "
                "CoresetPruningCallback(example_inputs=...), that forward takes."
            )


def _shows(structure: Structure) -> bool:
    return bool(structure.used) and structure.has_outputs


def _layers(parameters: Collection[str]) -> list[str]:
    return sorted({repr(name.rpartition(".")[0] or name) for name in parameters})


def _wrong_inputs(candidate: Candidate, reason: str) -> MisconfigurationException:
    return MisconfigurationException(
        f"Expected {candidate.title} to be inputs that the LightningModule runs on, called as model(...), but it "
        f"raised {reason}. Give what its forward takes: a tensor, a tuple of arguments or a dict of keyword arguments; "
        "or leave it out, and training_step is run on a batch."
    )


def _not_followed(problems: str) -> str:
    return (
        f"A step could not be run on an example, so its structure is read from the modules that it calls: {problems}\n"
        "What lies between these modules is not known, and their channels stay. Give "
        "CoresetPruningCallback(example_inputs=...) if forward shows more."
    )


def _on_module(trainer: pl.Trainer, pl_module: pl.LightningModule, candidate: Candidate) -> Any:
    """The inputs of a candidate on the module's device, and of its type where they were given."""
    inputs = candidate.example.inputs
    if candidate.origin is not Origin.GIVEN:  # batches are converted already
        return on_device(inputs, device_of(pl_module))
    try:
        return map_tensors(trainer.precision_plugin.convert_input, on_device(inputs, device_of(pl_module)))
    except Exception as error:  # tensors without data, such as on "meta", or what an object's own `to` raises
        raise _wrong_inputs(candidate, in_short({"evaluation": error})) from error


class _OnACopy:
    """Runs on a copy of the inputs: a network may write to them."""

    def __init__(self, run: Callable[[nn.Module, Any], Any]) -> None:
        self._run = run

    def __call__(self, module: nn.Module, inputs: Any) -> Any:
        return self._run(module, fresh(inputs))
