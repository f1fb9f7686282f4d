"""Removes channels of groups, and compares outputs with those of a network in which they have no effect."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from torch import Tensor

from lightning_coreset.state import ran_out_of_memory
from lightning_coreset.structure import ChannelGroup, RunMode
from lightning_coreset.surgery import Snapshot, apply_changes, named_tensors, scale_counts, slice_members
from lightning_coreset.verification.choices import MadeChoices
from lightning_coreset.verification.comparison import by_mode, has_numbers
from lightning_coreset.verification.cut_weights import cut
from lightning_coreset.verification.influence import Influence
from lightning_coreset.verification.reasons import leaks, raised_with_other_values, raised_without_channels
from lightning_coreset.verification.reference import FixedWeights, Removed, kept_weights, twin_run, zero_consumers_
from lightning_coreset.verification.removed import paired_at_random, removed_classes, unlike_classes
from lightning_coreset.verification.runs import Run
from lightning_coreset.verification.suspects import raised_in
from lightning_coreset.verification.tried_network import TriedNetwork

NOT_FINITE = "no output is a finite number, so that nothing can be compared"
"""In the reasons of a trial on too few samples, of which a step may make several parts."""


class Removal:
    """Tries groups on a network, which is put back after each attempt.

    Args:
        network: The network.
        influence: Is shown the gradients of runs.

    Attributes:
        raised_in: The module in which the last attempt raised an error.
        raised_at_first: Whether it did so in its first run.
    """

    def __init__(self, network: TriedNetwork, influence: Influence) -> None:
        self._network, self._influence = network, influence
        self.raised_in: str | None = None
        self.raised_at_first = False

    def attempt(self, groups: Sequence[ChannelGroup]) -> str | None:
        """Remove channels, and at another time zero their consumers: both must compute the same.

        With the consumers at zero, no output may notice what their producers compute. A network that draws random
        numbers in evaluation mode, too, may draw others once channels are gone; then the means of these are compared.

        Returns:
            A reason if that fails: what the first run that shows an error shows. See :meth:`explained`.
        """
        return self._attempt_or_expect(groups, False)

    def explained(self, groups: Sequence[ChannelGroup], reason: str) -> str:
        """Why groups fail that do, by the weightiest of the errors in all runs, as messages tell it.

        Args:
            groups: The groups.
            reason: What :meth:`attempt` said.
        """
        return reason if len(self._network.runs) < 2 else self._attempt_or_expect(groups, True) or reason

    def _attempt_or_expect(self, groups: Sequence[ChannelGroup], explain: bool) -> str | None:
        reason = self.attempt_once(groups, explain=explain)
        if reason is None or not any(run.draws for run in self._network.runs):
            return reason
        self._network.runner.leaves_nothing_to_chance = True
        try:
            return self.attempt_once(groups, explain=explain)
        finally:
            self._network.runner.leaves_nothing_to_chance = False

    def attempt_once(
        self, groups: Sequence[ChannelGroup], asked: Collection[Run] = (), explain: bool = False
    ) -> str | None:
        """With classes that are unlike the others of their group, once they go, and once they stay."""
        groups = [paired_at_random(group).with_copies for group in groups]
        ways = (True, False) if any(map(unlike_classes, groups)) else (None,)
        reasons = (self._attempt(groups, removed_classes(groups, unlike=way), asked, explain) for way in ways)
        return next((reason for reason in reasons if reason is not None), None)

    def _attempt(
        self, groups: Sequence[ChannelGroup], removed: Removed, asked: Collection[Run] = (), explain: bool = False
    ) -> str | None:
        """In the first run, then in the others: most groups that fail do so in each. To explain it, all are needed."""
        self.raised_in = None
        runs = self._network.runs
        parts = [runs] if explain or len(runs) < 2 else [runs[:1], runs[1:]]
        finite: dict[RunMode, list[bool]] = {}
        for place, part in enumerate(parts, 1):
            reason = self._compared(groups, removed, part, asked, finite, last=place == len(parts))
            self.raised_at_first = self.raised_in is not None and place == 1
            if reason is not None:
                return reason
        return None

    def _compared(
        self,
        groups: Sequence[ChannelGroup],
        removed: Removed,
        runs: Sequence[Run],
        asked: Collection[Run],
        finite: dict[RunMode, list[bool]],
        *,
        last: bool,
    ) -> str | None:
        """Why what some of the runs compute is not what it should be.

        Args:
            groups: The groups.
            removed: What goes of them.
            runs: The runs.
            asked: See :meth:`_narrowed`.
            finite: Of each mode, which outputs have finite numbers; those of these runs are added.
            last: Whether there are no more runs.
        """
        choices = MadeChoices()
        try:
            expected, disturbed = self._reference(groups, removed, runs, choices)
        except Exception as error:
            if ran_out_of_memory(error):
                raise
            return raised_with_other_values(error)
        for mode, outputs in by_mode(runs, expected).items():
            finite.setdefault(mode, []).extend(map(has_numbers, outputs))
        if last and any(known and not any(known) for known in finite.values()):
            return NOT_FINITE
        leak = self._network.difference(disturbed, expected)
        if leak is not None:
            return leaks(leak)
        del disturbed
        try:
            found = self._narrowed(groups, removed, runs, choices, asked)
        except Exception as error:
            if ran_out_of_memory(error):
                raise
            self.raised_in = raised_in(error, self._network.model)
            return raised_without_channels(error)
        difference = self._network.difference(found, expected)
        return None if difference is None else f"its removal changes what the network computes ({difference})"

    def _reference(
        self, groups: Sequence[ChannelGroup], removed: Removed, runs: Sequence[Run], choices: MadeChoices
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What the network computes with the consumers of removed channels at zero.

        Where it normalises over channels, the statistics are those of the channels that stay; queries and keys are
        multiplied without those that go.

        Args:
            groups: The groups.
            removed: What goes of them.
            runs: The runs.
            choices: Notes what the network chooses.

        Returns:
            The outputs, and the outputs where the producers of removed channels have other weights.
        """
        fixed, virtual = FixedWeights(named_tensors(self._network.model), groups), self._network.virtual
        with self._forgetting(), kept_weights(fixed.tensors, groups, removed, virtual) as before:
            zero_consumers_(fixed.tensors, groups, removed)
            twins = twin_run(fixed.tensors, before, groups, removed, virtual, self._network.runner.runs_steps)
            outputs = self._network.outputs(runs, modes=fixed.modes, layers=[choices, twins])
        disturbed = [twins.twin(tensor) for tensor in outputs]
        twins.close()
        return outputs, [tensor if twin is None else twin for tensor, twin in zip(outputs, disturbed, strict=True)]

    def _narrowed(
        self,
        groups: Sequence[ChannelGroup],
        removed: Removed,
        runs: Sequence[Run],
        choices: MadeChoices,
        asked: Collection[Run],
    ) -> list[Tensor]:
        """What the network computes without the removed classes; it is put back.

        Args:
            groups: The groups.
            removed: What goes of them.
            runs: The runs.
            choices: What the network chose before.
            asked: Runs that may show, by the way, which consumers have influence.
        """
        model = self._network.model
        kept = [(group, sorted(set(range(group.size)) - removed[group.name])) for group in groups]
        options: dict[str, Any] = {"modes": self._network.watch, "as_before": True}
        first = [run for run in runs[:1] if run in self._network.runs[:1] and run in asked]
        before = Snapshot(model)
        with self._forgetting():
            try:
                changes = slice_members(named_tensors(model), kept)
                apply_changes(
                    model,
                    changes,
                    scale_counts(model, kept),
                    cut=partial(cut, virtual=self._network.virtual),
                    record=False,
                )
                found = [output for run in first for output in self._looked_at(run, groups, choices, options)]
                return found + self._network.outputs(runs[len(first) :], concerned=[choices.repeated()], **options)
            finally:
                before.restore()

    def _looked_at(
        self, run: Run, groups: Sequence[ChannelGroup], choices: MadeChoices, options: dict[str, Any]
    ) -> list[Tensor]:
        """What a run computes, with a look at its gradient if it has one.

        Code that makes arrays of its activations, or writes into leaves, runs without gradients alone; so does a
        network for whose gradients there is no memory.
        """
        try:
            return self._influence.look(run, groups, choices, **options)
        except Exception:
            return self._network.outputs([run], concerned=[choices.repeated()], **options)

    def _forgetting(self) -> AbstractContextManager[None]:
        """In the block, weights may be made that nothing needs afterwards."""
        virtual = self._network.virtual
        return nullcontext() if virtual is None else virtual.forgetting()
