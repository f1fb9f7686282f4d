"""Reconstruction by what layers were measured to read, for all groups of a plan.

Before the first group is chosen, one run shows what the consumers of all groups read; the channels that stay are
chosen, and, where that is asked for, their producers moved; a second run shows what the moved channels become. Then,
group by group, the consumers get new weights by least squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from lightning_coreset.coreset import eliminate
from lightning_coreset.layers import (
    GroupView,
    LayerPair,
    MeasuredReader,
    MovedProducers,
    NoCoresetForm,
    measured_readers,
    movable_pair,
    selection_forms,
    written,
)
from lightning_coreset.methods.moving import Move, moved, running_mean_before, with_samples
from lightning_coreset.methods.sampled_rows import NORM_ROWS, rows_of_weight, rows_to_sample
from lightning_coreset.methods.selection import Selection
from lightning_coreset.moments import LayerInput, MeasuringRuns


@dataclass(frozen=True)
class Settings:
    """How channels are chosen and weights found; as in ``Reconstruction``.

    Attributes:
        rounds: Of the elimination.
        ridge: Regularisation.
        refined: The most channels of a group whose producers move; 0 for none.
        refined_share: The most of its channels that may stay if they move, as a part of all.
        sequential: Whether a group's consumers are fitted to what the network pruned so far gives them.
    """

    rounds: int
    ridge: float
    refined: int
    refined_share: float
    sequential: bool


@dataclass(frozen=True, eq=False)
class Prepared:
    """What is known of a group before the plan reaches it.

    Attributes:
        layers: What its consumers read in the network as it was.
        kept: The channels that stay; ``None`` if they are chosen later.
        move: How its producers move, if they do.
    """

    layers: Mapping[str, LayerInput]
    kept: Tensor | None = None
    move: Move | None = None


def prepare(
    views: Sequence[GroupView], sizes: Mapping[str, int], runs: MeasuringRuns, settings: Settings
) -> dict[str, Prepared]:
    """Measure, and choose the channels of all groups that lose some.

    Raises:
        Unmeasurable: If the network cannot be run on the probes or batches.
    """
    wanted: dict[str, tuple[int, int]] = {}
    for view in views:
        wanted |= rows_to_sample(view)
    if any(view.group.weight_norms for view in views):
        # A run of the network pruned so far would make other weights of directions with zeros in them.
        settings = replace(settings, sequential=False)
    movable = {view.name: pair for view in views if (pair := _movable(view, sizes[view.name], settings)) is not None}
    means = {norm for pair in movable.values() if (norm := running_mean_before(pair)) is not None}
    wanted |= {
        pair.path.producer.weight: rows_of_weight(
            view.tensors[pair.path.producer.weight], pair.path.producer.in_dim or 0
        )
        for view in views
        if (pair := movable.get(view.name)) is not None and running_mean_before(pair) is None
    }
    measured = runs.measure(wanted, dict.fromkeys(means, NORM_ROWS))
    prepared: dict[str, Prepared] = {}
    for view in views:
        layers = {name: measured.layers[name] for name in rows_to_sample(view) if name in measured.layers}
        prepared[view.name] = Prepared(layers)
        if settings.sequential:
            continue
        try:
            readers = measured_readers(view, layers)
        except NoCoresetForm:
            continue
        kept = _chosen(readers, view.size, sizes[view.name], settings)
        pair = movable.get(view.name)
        move = None if pair is None else moved(view, pair, kept, readers, measured, settings.ridge)
        prepared[view.name] = Prepared(layers, kept, move)
    moves = {view: one.move for view in views if (one := prepared[view.name]).move is not None}
    return _with_moves(prepared, with_samples(moves, runs))


def _chosen(readers: Sequence[MeasuredReader], classes: int, size: int, settings: Settings) -> Tensor:
    moments, rows, labels = selection_forms(readers, classes)
    positions = len(moments[0]) // classes
    kept = eliminate(moments, rows, size * positions, rounds=settings.rounds, ridge=settings.ridge, classes=labels)
    return kept[::positions] // positions


def reconstructed(view: GroupView, prepared: Prepared, size: int, settings: Settings, label: str) -> Selection:
    """The selection of a group.

    Raises:
        NoCoresetForm: If its consumers are not linear in what was measured.
        Unmeasurable: If the network pruned so far cannot be run.
    """
    readers = measured_readers(view, prepared.layers)
    targets: Mapping[str, LayerInput] = {}
    if prepared.kept is None:
        targets, prepared, readers = _as_it_is_now(view, prepared.layers, readers, size, settings)
    kept, move = prepared.kept, prepared.move
    assert kept is not None
    updates: dict[str, Tensor] = {}
    new: Mapping[str, Tensor] = {}
    if move is not None:
        pair = movable_pair(view)
        assert pair is not None
        producers = MovedProducers.of(pair, move.refinement, move.mean, move.covariance)
        updates, new = producers.in_place_of(kept), move.samples
    fits = [
        reader.fit(
            kept, ridge=settings.ridge, new=new.get(reader.layer.weight), target=targets.get(reader.layer.weight)
        )
        for reader in readers
    ]
    # What is fitted in turn sees smaller variances itself.
    updates |= written(readers, fits, kept, view, rescale=not settings.sequential)
    energy = sum(fit.energy for fit in fits)
    error = sum(fit.error for fit in fits) / energy if energy > 0 else 0.0
    return Selection(kept, label, updates, error)


def _as_it_is_now(
    view: GroupView,
    targets: Mapping[str, LayerInput],
    readers: Sequence[MeasuredReader],
    size: int,
    settings: Settings,
) -> tuple[Mapping[str, LayerInput], Prepared, list[MeasuredReader]]:
    """What the consumers read in the network pruned so far, and the choice that follows."""
    runs = view.state.runs
    assert runs is not None
    pair = _movable(view, size, settings)
    wanted = rows_to_sample(view)
    mean = None if pair is None else running_mean_before(pair)
    if pair is not None and mean is None:
        wanted |= {
            pair.path.producer.weight: rows_of_weight(
                view.tensors[pair.path.producer.weight], pair.path.producer.in_dim or 0
            )
        }
    measured = runs.measure(wanted, {} if mean is None else {mean: NORM_ROWS}, dict(view.tensors))
    layers = {name: measured.layers[name] for name in rows_to_sample(view) if name in measured.layers}
    now = [one.towards(targets[one.layer.weight], ridge=settings.ridge) for one in measured_readers(view, layers)]
    kept = _chosen(now, view.size, size, settings)
    move = None if pair is None else moved(view, pair, kept, now, measured, settings.ridge)
    if move is not None:
        move = with_samples({view: move}, runs, view.tensors)[view.name]
    return targets, Prepared(layers, kept, move), now


def _with_moves(prepared: Mapping[str, Prepared], moves: Mapping[str, Move | None]) -> dict[str, Prepared]:
    return {name: replace(one, move=moves[name]) if name in moves else one for name, one in prepared.items()}


def _movable(view: GroupView, size: int, settings: Settings) -> LayerPair | None:
    if view.size > settings.refined or size > settings.refined_share * view.size:
        return None
    return movable_pair(view)
