"""Tries groups on a model: which of them fail, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset.state import ran_out_of_memory
from lightning_coreset.structure import ChannelGroup, Examples
from lightning_coreset.verification.concerned import Concerned
from lightning_coreset.verification.influence import Influence
from lightning_coreset.verification.removal import Removal
from lightning_coreset.verification.suspects import suspects_of
from lightning_coreset.verification.tried_network import TriedNetwork
from lightning_coreset.verification.virtual import VirtualWeights
from lightning_coreset.verification.ways import ParametersUsed


class Trial:
    """Tries groups on a model with randomised parameters: changes it, runs it, and puts it back.

    Args:
        model: A model that may be changed: a copy, or one whose parameters are put back afterwards.
        examples: How to run it. Groups have to pass on all of them.
        dtypes: The precisions to run it in, the preferred one first.
        untouched: Parameters that the model should not use any more.
        around: Modes that see what concerns them in every run.
        virtual: Makes weights of the model whenever they are read; it has to be entered.
        prepare: Whether to find out how it can be run. Without that, only :meth:`passes` may be called before
            :meth:`prepare`.

    Attributes:
        model: The model.
        runner: Runs it.

    Raises:
        Exception: What running the model raises in all precisions.
        RuntimeError: If the model uses these parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        examples: Examples,
        *,
        dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32),
        untouched: ParametersUsed | None = None,
        around: Sequence[Concerned] = (),
        virtual: VirtualWeights | None = None,
        prepare: bool = True,
    ) -> None:
        self._network = TriedNetwork(
            model, examples, dtypes=dtypes, untouched=untouched, around=around, virtual=virtual
        )
        self._influence = Influence(self._network)
        self._removal = Removal(self._network, self._influence)
        self.model, self.runner = self._network.model, self._network.runner
        self._raised: str | None = None
        if prepare:
            self.prepare()

    @property
    def dtype(self) -> torch.dtype:
        """The precision that the model has."""
        return self._network.dtype

    def prepare(self) -> None:
        """See :meth:`TriedNetwork.prepare`."""
        self._network.prepare()

    def attempt(self, groups: Sequence[ChannelGroup]) -> str | None:
        """See :meth:`Removal.attempt`."""
        return self._removal.attempt(groups)

    def explained(self, groups: Sequence[ChannelGroup], reason: str) -> str:
        """See :meth:`Removal.explained`."""
        return self._removal.explained(groups, reason)

    def without_effect(self, groups: Sequence[ChannelGroup]) -> dict[str, str]:
        """See :meth:`Influence.without_effect`."""
        return self._influence.without_effect(groups)

    def unsteady(self) -> str | None:
        """See :meth:`TriedNetwork.unsteady`."""
        return self._network.unsteady()

    def passes(self, groups: Sequence[ChannelGroup]) -> bool:
        """Whether the groups pass all at once, in all modes, on all examples and others like these.

        That is nearly always so, and then all there is to know. In a good case it takes half of the runs that it takes
        to find out first how the model can be run, and then to try its modes one after the other. In any other case
        nothing is known: only :meth:`prepare` and what follows tell.
        """
        try:
            with self._network.unprepared() as evaluated:
                reason = self._removal.attempt_once(groups, asked=evaluated)
            self._raised = reason if self._removal.raised_at_first else None
            return reason is None and not self._network.uses_others
        except Exception:  # also where there is no memory for all at once
            return False

    def attempt_after(self, groups: Sequence[ChannelGroup]) -> str | None:
        """:meth:`attempt`, after :meth:`passes` has failed for the same groups, and :meth:`prepare`.

        A network that does not run without some channels, as :meth:`passes` has seen in the first run, does not have to
        be seen again.
        """
        return self._raised if self._raised and self._network.is_as_first_tried else self.attempt(groups)

    def failing(self, groups: Sequence[ChannelGroup], reason: str | None = None) -> dict[str, str]:
        """The groups that fail, with the reasons, found by halving; all of them where they fail only together.

        Args:
            groups: The groups.
            reason: Why they fail together, if that is known.
        """
        try:
            reason = reason or self.attempt(groups)
        except Exception as error:
            if len(groups) == 1 or not ran_out_of_memory(error):
                raise
            return self.failing_in_halves(groups)
        if reason is None:
            return {}
        if len(groups) == 1:
            return {groups[0].name: self.explained(groups, reason)}
        suspects = suspects_of(groups, where) if (where := self._removal.raised_in) else []
        if suspects:
            found = self.failing([group for group in groups if group not in suspects])
            # If no other one fails, several suspects do so together.
            found |= self.failing(suspects, None if found or len(suspects) == 1 else reason)
        else:
            found = self.failing_in_halves(groups)
        if found:
            return found
        reason = self.explained(groups, reason)
        return {group.name: f"together with others, {reason}" for group in groups}

    def failing_in_halves(self, groups: Sequence[ChannelGroup]) -> dict[str, str]:
        """The same for each half of the groups, where there is no memory to try all of them at once."""
        middle = len(groups) // 2
        return self.failing(groups[:middle]) | self.failing(groups[middle:])

    def failing_in_training(self, groups: Sequence[ChannelGroup]) -> dict[str, str]:
        """The groups that fail in training mode, with the reasons; none if no example is run in it as well."""
        if not groups or not self._network.runs_in_training:
            return {}
        with self._network.running(self._network.runs_in_training):
            failures = self.failing(groups)
        return {name: f"in training mode, {reason}" for name, reason in failures.items()}

    @property
    def has_several_runs(self) -> bool:
        """Whether :meth:`screening` leaves out any run."""
        return len(self._network.runs) > 1

    @contextmanager
    def screening(self) -> Iterator[None]:
        """In the block, groups are tried in the first run alone, and once: it shows nearly all errors.

        What fails there fails. What passes is yet to be proven.
        """
        self.runner.repeats = False
        try:
            with self._network.running(self._network.runs[:1]):
                yield
        finally:
            self.runner.repeats = True

    def run(
        self,
        *,
        model: nn.Module | None = None,
        gradients: bool = False,
        modes: Sequence[AbstractContextManager[Any]] = (),
    ) -> list[Tensor]:
        """All floating-point outputs of all runs, in modes, with the same random numbers every time.

        Args:
            model: Another model to run on them.
            gradients: Whether to enable gradients.
            modes: The modes, the innermost last.
        """
        return self._network.outputs(self._network.runs, model=model, gradients=gradients, modes=modes)
