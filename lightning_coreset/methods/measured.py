"""Reconstruction by what layers were measured to read, for all groups of a plan.

Before the first group is chosen, one run shows what the consumers of all groups read; the channels that stay are
chosen, and, where that is asked for, their producers moved; a second run shows what the moved channels become. Then,
group by group, the consumers get new weights by least squares: that is here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from lightning_coreset.layers import GroupView, MeasuredReader, measured_readers, movable_pair, written
from lightning_coreset.methods.choosing import chosen, readers_of, rotations_that_hold
from lightning_coreset.methods.prepared import Prepared, Settings, with_moved_samples
from lightning_coreset.methods.rotating_streams import stream_rotation
from lightning_coreset.methods.sampled_rows import layers_of, sampled
from lightning_coreset.methods.selection import Selection
from lightning_coreset.methods.stream_check import holds
from lightning_coreset.moments import LayerInput


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
        readers = readers_of(view, prepared.layers, prepared.turned)
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
    view: GroupView, before: Prepared, size: int, settings: Settings
) -> tuple[Prepared, list[MeasuredReader]]:
    """What the consumers read in the network pruned so far, and the choice that follows."""
    runs = view.state.runs
    assert runs is not None
    pair = movable_pair(view) if before.refined else None
    measured = sampled([view], [] if pair is None else [pair], runs, view.tensors)
    layers = layers_of(view, measured)
    turned = rotations_that_hold([view], measured, runs, settings, view.tensors).get(view.name)
    readers = readers_of(view, layers, turned)
    readers = [one.towards(before.layers[one.layer.weight], ridge=settings.ridge) for one in readers]
    now = Prepared(layers, *chosen(view, readers, size, turned or pair, measured, settings))
    return with_moved_samples({view: now}, runs, view.tensors)[view.name], readers
