"""What is measured before the first group of a plan is chosen, or, where memory is scarce, before the first of some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lightning_coreset.layers import GroupView, LayerPair, NoCoresetForm, closed_form_pairs
from lightning_coreset.methods.batches import in_batches
from lightning_coreset.methods.choosing import chosen, readers_of, rotations_that_hold
from lightning_coreset.methods.prepared import Prepared, Settings, with_moved_samples
from lightning_coreset.methods.rotating import Rotation
from lightning_coreset.methods.rotating_streams import stream_rotation
from lightning_coreset.methods.sampled_rows import layers_of, norms_of, sampled, weights_to_sample, worth_sampling
from lightning_coreset.methods.stream_check import holds
from lightning_coreset.moments import MeasuredInputs, MeasuringRuns


@dataclass(frozen=True, eq=False)
class Waiting:
    """Groups that are measured once the plan reaches the first of them, and not before: samples are what takes memory.

    What is measured is the network as it was, whatever was chosen meanwhile.

    Attributes:
        views: The groups, with the network's tensors as they were.
        everything: All groups of the plan that are to be measured.
        sizes: How many channels each is to keep.
        movable: The layers that may move, by the names of their groups.
        runs: The network with inputs.
        settings: As for the plan.
        least_runs: How many runs to make at least: those that all groups together need, so that samples are the same.
    """

    views: Sequence[GroupView]
    everything: Sequence[GroupView]
    sizes: Mapping[str, int]
    movable: Mapping[str, LayerPair]
    runs: MeasuringRuns
    settings: Settings
    least_runs: int = 1

    def prepared(self) -> dict[str, Prepared]:
        """Measure, and choose the channels.

        Raises:
            Unmeasurable: If the network cannot be run on the probes or batches.
        """
        return self.chosen(self.measured())

    def measured(self, *, first: bool = False) -> MeasuredInputs:
        """What these groups are chosen by.

        Args:
            first: Whether it is the first batch: what all others read decides too how many runs there are, and is to be
                finite.

        Raises:
            Unmeasurable: If the network cannot be run on the probes or batches.
        """
        views = worth_sampling(self.views, streams=bool(self.settings.refining))
        movable = [self.movable[view.name] for view in self.views if view.name in self.movable]
        together = weights_to_sample(self.everything, self.movable.values())
        return sampled(views, movable, self.runs, together=together, counted=first, least_runs=self.least_runs)

    def chosen(self, measured: MeasuredInputs) -> dict[str, Prepared]:
        """The channels that stay, unless they are chosen in turn, and how producers, heads and streams move."""
        rotations: Mapping[str, Rotation] = {}
        if not self.settings.sequential:
            rotations = rotations_that_hold(self.views, measured, self.runs, self.settings, compared=self.everything)
        found = {
            view: self._of(view, measured, rotations.get(view.name) or self.movable.get(view.name))
            for view in self.views
        }
        return with_moved_samples(found, self.runs)

    def _of(self, view: GroupView, measured: MeasuredInputs, movable: LayerPair | Rotation | None) -> Prepared:
        """What is known of one group."""
        settings, layers, size = self.settings, layers_of(view, measured), self.sizes[view.name]
        measured_only = Prepared(layers, norms=norms_of(view, measured), refined=view.name in self.movable)
        if settings.sequential:
            return measured_only
        stream = stream_rotation(view, measured, size, ridge=settings.ridge) if settings.refining else None
        if stream is not None and holds(stream, view, self.runs):
            return Prepared(layers, stream=stream)
        try:
            readers = readers_of(view, layers, movable if isinstance(movable, Rotation) else None)
        except NoCoresetForm:
            return measured_only
        return Prepared(layers, *chosen(view, readers, size, movable, measured, settings))


def prepare(
    views: Sequence[GroupView], sizes: Mapping[str, int], runs: MeasuringRuns, settings: Settings
) -> dict[str, Prepared | Waiting]:
    """Measure, and choose the channels of all groups that lose some, or of as many as memory is for at once.

    Args:
        views: The groups.
        sizes: How many channels each is to keep.
        runs: The network with inputs.
        settings: As for the plan.

    Returns:
        By the name of the group, what is known of it, or that with which it waits.

    Raises:
        Unmeasurable: If the network cannot be run on the probes or batches.
    """
    if any(view.group.weight_norms for view in views):
        # A run of the network pruned so far would make other weights of directions with zeros in them.
        settings = replace(settings, sequential=False)
    if runs.independent:
        views = [view for view in views if not _has_closed_form(view)]
    movable = settings.refining.pairs(views, sizes)
    worth = {view.name for view in worth_sampling(views, streams=bool(settings.refining))}
    batches = in_batches([view for view in views if view.name in worth], runs)
    # The others need no samples, but are compared where heads rotate.
    batches[0] += [view for view in views if view.name not in worth]
    first, *later = (Waiting(batch, views, sizes, movable, runs, settings) for batch in batches)
    # Later batches, and groups that need no samples, count too: samples are what they would be of all at once.
    measured = first.measured(first=True)
    waiting = [replace(batch, least_runs=measured.runs) for batch in later]
    return {**first.chosen(measured), **{view.name: batch for batch in waiting for view in batch.views}}


def _has_closed_form(view: GroupView) -> bool:
    """Whether moments of the same law are derived, which is exact and takes no run."""
    try:
        closed_form_pairs(view)
    except NoCoresetForm:
        return False
    return True
