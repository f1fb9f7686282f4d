"""Reconstruction by what layers were measured to read, for all groups of a plan.

Before the first group is chosen, one run shows what the consumers of all groups read; the channels that stay are
chosen, and, where that is asked for, their producers moved; a second run shows what the moved channels become. Then,
group by group, the consumers get new weights by least squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_coreset.coreset import eliminate
from lightning_coreset.layers import (
    GroupView,
    LayerPair,
    MeasuredReader,
    NoCoresetForm,
    SelectionForm,
    closed_form_pairs,
    measured_readers,
    movable_pair,
    selection_form,
    written,
)
from lightning_coreset.methods.batches import in_batches
from lightning_coreset.methods.moving import Move, moved, with_samples
from lightning_coreset.methods.ranking import rank_by_norms
from lightning_coreset.methods.refining import Refining
from lightning_coreset.methods.rotating import Rotation, rotation
from lightning_coreset.methods.rotating_streams import StreamRotation, stream_rotation
from lightning_coreset.methods.rotation_check import that_hold
from lightning_coreset.methods.sampled_rows import all_to_sample, layers_of, norms_of, sampled, worth_sampling
from lightning_coreset.methods.selection import Selection
from lightning_coreset.methods.stream_check import holds
from lightning_coreset.moments import LayerInput, MeasuredInputs, MeasuringRuns, NormInput


@dataclass(frozen=True)
class Settings:
    """How channels are chosen and weights found; as in ``Reconstruction``.

    Attributes:
        rounds: Of the elimination.
        ridge: Regularisation.
        refining: How far producers move.
        sequential: Whether a group's consumers are fitted to what the network pruned so far gives them.
    """

    rounds: int
    ridge: float
    refining: Refining
    sequential: bool


@dataclass(frozen=True, eq=False)
class Prepared:
    """What is known of a group before the plan reaches it.

    Attributes:
        layers: What its consumers read in the network as it was.
        kept: The channels that stay; ``None`` if they are chosen later.
        move: How its producers move, if they do.
        stream: How it rotates, if it is a stream that does.
        norms: What norms over its channels read in the network as it was.
        refined: Whether its producers may move.
    """

    layers: Mapping[str, LayerInput]
    kept: Tensor | None = None
    move: Move | Rotation | None = None
    stream: StreamRotation | None = None
    norms: Mapping[str, NormInput] = field(default_factory=dict)
    refined: bool = False


@dataclass(frozen=True, eq=False)
class Waiting:
    """Groups that are measured once the plan reaches the first of them, and not before: samples are what takes memory.

    What is measured is the network as it was, whatever was chosen meanwhile.

    Attributes:
        views: The groups, with the network's tensors as they were.
        sizes: How many channels each is to keep.
        movable: The layers that may move, by the names of their groups.
        runs: The network with inputs.
        settings: As for the plan.
        least_runs: How many runs to make at least.
        compared: The groups whose consumers have to read the same when heads rotate: all of the plan.
    """

    views: Sequence[GroupView]
    sizes: Mapping[str, int]
    movable: Mapping[str, LayerPair]
    runs: MeasuringRuns
    settings: Settings
    least_runs: int
    compared: Sequence[GroupView]

    def prepared(self) -> dict[str, Prepared]:
        """Measure, and choose the channels.

        Raises:
            Unmeasurable: If the network cannot be run on the probes or batches.
        """
        movable = {view.name: self.movable[view.name] for view in self.views if view.name in self.movable}
        counting = worth_sampling(self.views, streams=bool(self.settings.refining))
        measured = sampled(counting, movable.values(), self.runs, least_runs=self.least_runs)
        rotations: Mapping[str, Rotation] = {}
        if not self.settings.sequential:
            rotations = _rotations(self.views, measured, self.runs, self.settings, compared=self.compared)
        found = {}
        for view in self.views:
            movable_here = rotations.get(view.name) or movable.get(view.name)
            found[view.name] = self._of(view, measured, movable_here, refined=view.name in movable)
        moves = {view: move for view in self.views if isinstance(move := found[view.name].move, Move)}
        return _with_moves(found, with_samples(moves, self.runs))

    def _of(
        self, view: GroupView, measured: MeasuredInputs, movable: LayerPair | Rotation | None, *, refined: bool
    ) -> Prepared:
        """What is known of one group."""
        settings, layers, size = self.settings, layers_of(view, measured), self.sizes[view.name]
        measured_only = Prepared(layers, norms=norms_of(view, measured), refined=refined)
        if settings.sequential:
            return measured_only
        stream = stream_rotation(view, measured, size, ridge=settings.ridge) if settings.refining else None
        if stream is not None and holds(stream, view, self.runs):
            return Prepared(layers, stream=stream)
        try:
            readers = _readers(view, layers, movable if isinstance(movable, Rotation) else None)
        except NoCoresetForm:
            return measured_only
        return Prepared(layers, *_chosen(view, readers, size, movable, measured, settings))


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
    found, least = in_batches([view for view in views if view.name in worth], runs)
    # The others need no samples, but are compared where heads rotate.
    first, *later = [[*found[0], *(view for view in views if view.name not in worth)], *found[1:]]
    waiting = [Waiting(batch, sizes, movable, runs, settings, least, views) for batch in later]
    return {
        **Waiting(first, sizes, movable, runs, settings, least, views).prepared(),
        **{view.name: one for one in waiting for view in one.views},
    }


def _has_closed_form(view: GroupView) -> bool:
    """Whether moments of the same law are derived, which is exact and takes no run."""
    try:
        closed_form_pairs(view)
    except NoCoresetForm:
        return False
    return True


def _rotations(
    views: Sequence[GroupView],
    measured: MeasuredInputs,
    runs: MeasuringRuns,
    settings: Settings,
    tensors: Mapping[str, Tensor] | None = None,
    *,
    compared: Sequence[GroupView] | None = None,
) -> dict[str, Rotation]:
    """How the dimensions within heads rotate, by group; those that are seen to change nothing of what is computed."""
    if not settings.refining:
        return {}
    found = [one for view in views if (one := rotation(view, measured, ridge=settings.ridge)) is not None]
    asked = all_to_sample(worth_sampling(views, streams=True))
    # What reads streams that cannot rotate, or is measured later, is compared as well.
    every = all_to_sample(views if compared is None else compared)
    wanted = {name: rows for name, rows in every.items() if name in measured.layers or name not in asked}
    return {one.view.name: one for one in that_hold(found, wanted, runs, tensors)}


def _readers(view: GroupView, layers: Mapping[str, LayerInput], turned: Rotation | None) -> list[MeasuredReader]:
    """The consumers of a group; none of queries and keys that rotate, whose products are all that counts."""
    return [] if turned is not None and not view.group.by_role("consumer") else measured_readers(view, layers)


def _kept_in_heads(
    view: GroupView, turned: Rotation, readers: Sequence[MeasuredReader], size: int, settings: Settings
) -> Tensor:
    """The classes of dimensions that stay: the leading ones of heads that rotate."""
    if turned.turns_all:
        return torch.arange(size)
    if turned.turns_values:
        return rank_by_norms(view, size, "").kept
    return _eliminated(view, selection_form(readers, view.size), size, settings)


def _chosen(
    view: GroupView,
    readers: Sequence[MeasuredReader],
    size: int,
    movable: LayerPair | Rotation | None,
    measured: MeasuredInputs,
    settings: Settings,
) -> tuple[Tensor, Move | Rotation | None]:
    """The classes that stay, int64 (m,), ascending; and how their producers move, if these are heads or a pair's."""
    if isinstance(movable, Rotation):
        return _kept_in_heads(view, movable, readers, size, settings), movable
    form = selection_form(readers, view.size)
    kept = _eliminated(view, form, size, settings)
    if movable is None or form.labels is not None:
        return kept, None
    centred = all(reader.centred for reader in readers)
    return kept, moved(movable, kept, torch.cat(form.rows), measured, centred=centred, ridge=settings.ridge)


def _eliminated(view: GroupView, form: SelectionForm, size: int, settings: Settings) -> Tensor:
    positions = len(form.moments[0]) // view.size
    kept = eliminate(
        form.moments,
        form.rows,
        size * positions,
        rounds=settings.rounds,
        ridge=settings.ridge,
        classes=form.labels,
    )
    return kept[::positions] // positions


def reconstructed(view: GroupView, prepared: Prepared, size: int, settings: Settings, label: str) -> Selection:
    """The selection of a group.

    Raises:
        NoCoresetForm: If its consumers are not linear in what was measured.
        Unmeasurable: If the network pruned so far cannot be run.
    """
    targets: Mapping[str, LayerInput] = {}
    in_turn = prepared.kept is None
    if settings.sequential and prepared.norms and settings.refining:
        prepared = _stream_as_it_is_now(view, prepared, size, settings)
    if prepared.stream is not None:
        return Selection(prepared.stream.basis.kept, label, prepared.stream.updates(view), prepared.stream.error)
    if in_turn:
        if view.group.by_role("consumer"):
            measured_readers(view, prepared.layers)  # there are none where the network as it was showed nothing
        targets = prepared.layers
        prepared, readers = _as_it_is_now(view, prepared, size, settings)
    else:
        readers = _readers(view, prepared.layers, prepared.move if isinstance(prepared.move, Rotation) else None)
    kept, move = prepared.kept, prepared.move
    assert kept is not None
    updates: dict[str, Tensor] = {}
    new: Mapping[str, Tensor] = {}
    if move is not None:
        updates, new = move.in_place_of(view, kept), move.samples_for(readers, kept)
    fits = [
        reader.fit(
            kept, ridge=settings.ridge, new=new.get(reader.layer.weight), target=targets.get(reader.layer.weight)
        )
        for reader in readers
    ]
    # What is fitted in turn sees smaller variances itself.
    updates |= written(readers, fits, kept, view, rescale=not in_turn)
    energy = sum(fit.energy for fit in fits)
    error = sum(fit.error for fit in fits) / energy if energy > 0 else 0.0
    return Selection(kept, label, updates, error)


def _stream_as_it_is_now(view: GroupView, prepared: Prepared, size: int, settings: Settings) -> Prepared:
    """With the rotation of a stream, if it can rotate, fitted to the network pruned so far."""
    runs = view.state.runs
    assert runs is not None
    measured = sampled([view], [], runs, view.tensors)
    stream = stream_rotation(view, measured, size, ridge=settings.ridge, targets=prepared.norms)
    if stream is None or not holds(stream, view, runs, view.tensors):
        return prepared
    return replace(prepared, stream=stream)


def _as_it_is_now(
    view: GroupView,
    before: Prepared,
    size: int,
    settings: Settings,
) -> tuple[Prepared, list[MeasuredReader]]:
    """What the consumers read in the network pruned so far, and the choice that follows."""
    runs = view.state.runs
    assert runs is not None
    pair = movable_pair(view) if before.refined else None
    measured = sampled([view], [] if pair is None else [pair], runs, view.tensors)
    layers = layers_of(view, measured)
    turned = _rotations([view], measured, runs, settings, view.tensors).get(view.name)
    now = [one.towards(before.layers[one.layer.weight], ridge=settings.ridge) for one in _readers(view, layers, turned)]
    kept, move = _chosen(view, now, size, turned or pair, measured, settings)
    if isinstance(move, Move):
        move = with_samples({view: move}, runs, view.tensors)[view.name]
    return Prepared(layers, kept, move), now


def _with_moves(prepared: Mapping[str, Prepared], moves: Mapping[str, Move | None]) -> dict[str, Prepared]:
    return {name: replace(one, move=moves[name]) if name in moves else one for name, one in prepared.items()}
