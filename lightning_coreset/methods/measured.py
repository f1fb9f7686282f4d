"""Reconstruction by what layers were measured to read, for all groups of a plan.

Before the first group is chosen, one run shows what the consumers of all groups read; the channels that stay are
chosen, and, where that is asked for, their producers moved; a second run shows what the moved channels become. Then,
group by group, the consumers get new weights by least squares.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from lightning_coreset.coreset import (
    Refinement,
    eliminate,
    elimination_curve,
    refine_producers,
    sample_moments,
)
from lightning_coreset.layers import (
    GroupView,
    LayerPair,
    MeasuredReader,
    MovedProducers,
    NoCoresetForm,
    measured_readers,
    movable_pair,
    selection_forms,
    single_channel_pairs,
    written,
)
from lightning_coreset.methods.selection import Selection
from lightning_coreset.moments import LayerInput, MeasuredInputs, MeasuringRuns, Unmeasurable

_LEAST_ROWS, _MOST_ROWS = 2048, 16384
_ROWS_PER_UNKNOWN = 3


@dataclass(frozen=True)
class Settings:
    """How channels are chosen and weights found; as in ``Reconstruction``.

    Attributes:
        rounds: Of the elimination.
        ridge: Regularisation.
        refined: The most channels of a group whose producers move; 0 for none.
        sequential: Whether a group's consumers are fitted to what the network pruned so far gives them.
    """

    rounds: int
    ridge: float
    refined: int
    sequential: bool


@dataclass(frozen=True, eq=False)
class Move:
    """How a group's producers move.

    Attributes:
        refinement: The combinations.
        mean: Of the pre-activations, (N,).
        covariance: (N, N).
        samples: What the moved channels become where consumers read them, by the name of the weight: (R, m, q, k).
    """

    refinement: Refinement
    mean: Tensor
    covariance: Tensor
    samples: Mapping[str, Tensor]


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
        wanted |= _consumers(view)
    if any(view.group.weight_norms for view in views):
        # A run of the network pruned so far would make other weights of directions with zeros in them.
        settings = replace(settings, sequential=False)
    movable = {view.name: pair for view in views if (pair := _movable(view, settings)) is not None}
    means = {norm for pair in movable.values() if (norm := _mean_of(pair)) is not None}
    wanted |= {
        pair.path.producer.weight: _wanted(view.tensors[pair.path.producer.weight], pair.path.producer.in_dim or 0)
        for view in views
        if (pair := movable.get(view.name)) is not None and _mean_of(pair) is None
    }
    measured = runs.measure(wanted, dict.fromkeys(means, _MOST_ROWS // 2))
    prepared: dict[str, Prepared] = {}
    for view in views:
        layers = {name: measured.layers[name] for name in _consumers(view) if name in measured.layers}
        prepared[view.name] = Prepared(layers)
        if settings.sequential:
            continue
        try:
            kept = chosen(view, layers, sizes[view.name], settings)
        except NoCoresetForm:
            continue
        pair = movable.get(view.name)
        readers = measured_readers(view, layers)
        move = None if pair is None else _moved(view, pair, kept, readers, measured, settings)
        prepared[view.name] = Prepared(layers, kept, move)
    return _with_samples(views, prepared, runs)


def chosen(view: GroupView, layers: Mapping[str, LayerInput], size: int, settings: Settings) -> Tensor:
    """The classes that stay, int64 (m,), ascending."""
    return _chosen(measured_readers(view, layers), view.size, size, settings)


def _chosen(readers: Sequence[MeasuredReader], classes: int, size: int, settings: Settings) -> Tensor:
    moments, rows, labels = selection_forms(readers, classes)
    positions = len(moments[0]) // classes
    kept = eliminate(moments, rows, size * positions, rounds=settings.rounds, ridge=settings.ridge, classes=labels)
    return kept[::positions] // positions


def curve(view: GroupView, layers: Mapping[str, LayerInput], ridge: float) -> Tensor:
    """The rise of the error when 0, 1, ... N - 1 classes are gone, relative to the outputs' variance, (N,)."""
    readers = measured_readers(view, layers)
    moments, rows, labels = selection_forms(readers, view.size)
    costs = elimination_curve(moments, rows, ridge=ridge, classes=labels)
    energy = sum(float(((own @ moment) * own).sum()) for moment, own in zip(moments, rows, strict=True))
    return costs / energy if energy > 0 else torch.zeros_like(costs)


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
    pair = _movable(view, settings)
    wanted = _consumers(view)
    mean = None if pair is None else _mean_of(pair)
    if pair is not None and mean is None:
        wanted |= {pair.path.producer.weight: _wanted(view.tensors[pair.path.producer.weight], 1)}
    measured = runs.measure(wanted, {} if mean is None else {mean: _MOST_ROWS // 2}, dict(view.tensors))
    layers = {name: measured.layers[name] for name in _consumers(view) if name in measured.layers}
    now = [one.towards(targets[one.layer.weight], ridge=settings.ridge) for one in measured_readers(view, layers)]
    kept = _chosen(now, view.size, size, settings)
    move = None if pair is None else _moved(view, pair, kept, now, measured, settings)
    prepared = _with_samples([view], {view.name: Prepared(layers, kept, move)}, runs, view.tensors)[view.name]
    return targets, prepared, now


def _consumers(view: GroupView) -> dict[str, tuple[int, int]]:
    """The weights that read a group, with the dimension and how many rows to sample."""
    members = view.group.by_role("consumer")
    return {member.name: _wanted(view.tensors[member.name], member.dim) for member in members if member.dim < 2}


def _wanted(weight: Tensor, dim: int) -> tuple[int, int]:
    unknowns = weight.shape[dim] * prod(weight.shape[2:])
    return dim, min(max(_ROWS_PER_UNKNOWN * unknowns, _LEAST_ROWS), _MOST_ROWS)


def _movable(view: GroupView, settings: Settings) -> LayerPair | None:
    return None if view.size > settings.refined else movable_pair(view)


def _mean_of(pair: LayerPair) -> str | None:
    return None if pair.before is None else pair.before.running_mean


def _moved(
    view: GroupView,
    pair: LayerPair,
    kept: Tensor,
    readers: Sequence[MeasuredReader],
    measured: MeasuredInputs,
    settings: Settings,
) -> Move | None:
    """Where the kept producers go."""
    samples = _preactivations(pair, measured)
    if samples is None or len(kept) == view.size:
        return None
    mean, covariance = sample_moments(samples, centred=True)
    _, rows, labels = selection_forms(readers, view.size)
    if labels is not None:
        return None
    centred = all(reader.centred for reader in readers)
    refinement = refine_producers(
        pair.activation, mean, covariance, torch.cat(rows), kept, centred=centred, ridge=settings.ridge
    )
    return Move(refinement, mean, covariance, {})


def _preactivations(pair: LayerPair, measured: MeasuredInputs) -> Tensor | None:
    """Samples of what enters the activation, (R, N)."""
    name = _mean_of(pair)
    if name is not None:
        made, member = measured.normed.get(name), pair.view.group.member_at(name, 0)
        return None if made is None or member is None else made[:, member.positions[:, 0]]
    read = measured.layers.get(pair.path.producer.weight)
    rows = pair.rows[:, 0]
    if read is None or read.transposed or read.groups > 1 or read.rows[0].numel() != rows.shape[1] - 1:
        return None
    return (read.rows.flatten(1) @ rows[:, :-1].T.to(read.rows)).double() + rows[:, -1]


def _with_samples(
    views: Sequence[GroupView],
    prepared: Mapping[str, Prepared],
    runs: MeasuringRuns,
    tensors: Mapping[str, Tensor] | None = None,
) -> dict[str, Prepared]:
    """Run a network that has the moved channels beside those that it had, and sample what consumers would read."""
    moves = {view: one.move for view in views if (one := prepared[view.name]).move is not None}
    if not moves:
        return dict(prepared)
    wide: dict[str, Tensor] = {}
    pairs = {view: single_channel_pairs(view) for view in moves}
    for view, move in moves.items():
        producers = MovedProducers.of(pairs[view][0], move.refinement, move.mean, move.covariance)
        for name, tensor in producers.beside().items():
            wide[name] = _both_ways(name, tensor, wide, view)
        wide |= producers.unread(pairs[view], wide)
    weights = {name: rows for view in moves for name, rows in _consumers(view).items()}
    try:
        measured = runs.measure(weights, tensors={**(tensors or {}), **wide})
    except Unmeasurable:  # such as a width that the code has as a number
        return {name: replace(one, move=None) for name, one in prepared.items()}
    found = dict(prepared)
    for view, move in moves.items():
        samples = {}
        for pair in pairs[view]:
            name, places = pair.path.consumer.weight, pair.whole_input
            assert places is not None
            if name in measured.layers:
                behind = measured.layers[name].rows[:, places.numel() :]
                samples[name] = behind.unflatten(1, (-1, places.shape[1]))
        complete = len(samples) == len({pair.path.consumer.weight for pair in pairs[view]})
        found[view.name] = replace(prepared[view.name], move=replace(move, samples=samples) if complete else None)
    return found


def _both_ways(name: str, tensor: Tensor, wide: Mapping[str, Tensor], view: GroupView) -> Tensor:
    """A producer that is wider on its input side already, since it reads a group that moved."""
    known = wide.get(name)
    if known is None:
        return tensor
    before = view.tensors[name].shape
    grown = [dim for dim, size in enumerate(before) if known.shape[dim] != size]
    if len(grown) != 1 or known.dim() != tensor.dim():
        return tensor
    shape = list(tensor.shape)
    shape[grown[0]] = known.shape[grown[0]] - before[grown[0]]
    return torch.cat([tensor, tensor.new_zeros(shape)], dim=grown[0])
