"""A network that groups are tried on, with the runs that are known to work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Generator, Tensor, nn

from lightning_coreset.nested import tensors_in
from lightning_coreset.structure import Example, Examples, RunMode, as_examples
from lightning_coreset.structure.example import call
from lightning_coreset.verification.comparison import difference_between
from lightning_coreset.verification.concerned import Concerned
from lightning_coreset.verification.randomised import randomise_
from lightning_coreset.verification.runs import Run, Runner
from lightning_coreset.verification.virtual import VirtualWeights
from lightning_coreset.verification.ways import ParametersUsed


class TriedNetwork:
    """Finds out how a network with randomised parameters can be run, and runs it.

    Args:
        model: A model that may be changed.
        examples: How to run it.
        dtypes: The precisions to run it in, the preferred one first.
        untouched: Parameters that the model should not use any more.
        around: Modes that see what concerns them in every run.
        virtual: Makes weights of the model whenever they are read; it has to be entered.

    Attributes:
        model: The model.
        dtype: The precision that it has.
        runner: Runs it.
        virtual: See above.
        runs: Those in which groups are tried: in evaluation mode, where it has one.
        runs_in_training: Those in training mode beside these.
        watch: Modes that see whether it uses what it should not.
    """

    def __init__(
        self,
        model: nn.Module,
        examples: Examples,
        *,
        dtypes: Sequence[torch.dtype],
        untouched: ParametersUsed | None = None,
        around: Sequence[Concerned] = (),
        virtual: VirtualWeights | None = None,
    ) -> None:
        self.model, self.virtual = model.eval(), virtual
        self._examples, self._dtypes, self._untouched = as_examples(examples), tuple(dtypes), untouched
        self.watch: list[AbstractContextManager[Any]] = [] if untouched is None else [untouched]
        self._generator = Generator().manual_seed(0)
        self.runner = Runner(around)
        randomise_(self.model, self._generator)

    def prepare(self) -> None:
        """Find a precision in which the model runs, and the examples and modes that work."""
        for number, dtype in enumerate(self._dtypes, 1):
            self.use(dtype)
            try:
                self._read()
                break
            except Exception:  # code that makes single-precision tensors itself cannot run in double precision
                if number == len(self._dtypes):
                    raise
        if self._untouched is not None and self._untouched.found:
            raise RuntimeError("it uses parameters of the original, which its code finds in some other way")
        self.watch = []

    @contextmanager
    def unprepared(self) -> Iterator[list[Run]]:
        """In the block, all runs that should work in the preferred precision, of which nothing is known yet.

        Yields:
            Those of them in evaluation mode, which are all that is left of them afterwards.
        """
        state = self._generator.get_state()
        try:
            self.use(self._dtypes[0])
            for example in (one.to(self.dtype) for one in self._examples):
                if example.run is not call:  # what a step adds to a loss has to be known beforehand
                    self.outputs([Run(example, example.modes[0])], modes=self.watch)
                for number, mode in enumerate(example.modes):
                    runs = alike(example, mode, self._generator)
                    (self.runs_in_training if number else self.runs).extend(runs)
            with self.running([*self.runs, *self.runs_in_training]) as evaluated:
                yield evaluated
        finally:
            self._generator.set_state(state)

    @property
    def uses_others(self) -> bool:
        """Whether it was seen to use parameters that it should not use."""
        return self._untouched is not None and self._untouched.found

    @property
    def is_as_first_tried(self) -> bool:
        """Whether the first run is that of :meth:`unprepared`, once it is known that none draws random numbers."""
        first = self._examples[0].modes[0]
        return self.dtype == self._dtypes[0] and self.runs[0].mode == first and not any(run.draws for run in self.runs)

    @contextmanager
    def running(self, runs: list[Run]) -> Iterator[list[Run]]:
        """In the block, groups are tried in other runs.

        Args:
            runs: These runs.

        Yields:
            Those before.
        """
        before, self.runs = self.runs, runs
        try:
            yield before
        finally:
            self.runs = before

    def outputs(self, runs: Sequence[Run], *, model: nn.Module | None = None, **options: Any) -> list[Tensor]:
        """All floating-point outputs of runs; see :meth:`Runner.outputs`."""
        return self.runner.outputs(runs, self.model if model is None else model, **options)

    def difference(self, found: Sequence[Tensor], expected: Sequence[Tensor]) -> str | None:
        """How outputs differ by more than rounding in its precision; ``None`` if they do not."""
        return difference_between(found, expected, self.dtype)

    def unsteady(self) -> str | None:
        """How two runs of the model as it is differ, though both begin alike; ``None`` if they do not."""
        runs = (*self.runs, *self.runs_in_training)
        return self.difference(self.outputs(runs), self.outputs(runs))

    def use(self, dtype: torch.dtype) -> None:
        """Convert the network to a precision; nothing is known then of how it can be run."""
        self.dtype = dtype
        self.runner.forget()
        if self.virtual is not None:
            self.virtual.convert(self.model, dtype)
        self.model.to(dtype)
        self.runner.leaves_nothing_to_chance = self.runner.runs_steps = False
        self.runs: list[Run] = []
        self.runs_in_training: list[Run] = []

    def _read(self) -> None:
        """Find the runs that work in this precision: the first of every example, and those in training mode as well."""
        for example in self._examples:
            errors, first = [], True
            for mode in example.modes:
                try:
                    runs = self._working(example.to(self.dtype), mode)
                except Exception as error:  # it may want targets: the analysis has warned of that
                    errors.append(error)
                else:
                    (self.runs if first else self.runs_in_training).extend(runs)
                    first = False
            if first:
                raise errors[0]

    def _working(self, example: Example, mode: RunMode) -> list[Run]:
        """The example, and one like it if that runs: a step that checks its inputs may reject random ones."""
        first, *others = alike(example, mode, self._generator)
        try:
            self.outputs([first, *others], modes=self.watch)
            return [first, *others]
        except Exception:
            self.outputs([first], modes=self.watch)
            return [first]


def alike(example: Example, mode: RunMode, generator: torch.Generator) -> list[Run]:
    """A run on an example, and one on others of the same shapes, unless that would be the same."""
    other = example.other(generator)
    pairs = zip(tensors_in(example.inputs), tensors_in(other.inputs), strict=True)
    same = all(one is its for one, its in pairs)
    return [Run(example, mode)] if same else [Run(example, mode), Run(other, mode)]
