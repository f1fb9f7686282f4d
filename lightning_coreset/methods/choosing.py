"""Which channels of a group stay, and how its producers or heads move, by what its consumers were measured to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_coreset.coreset import eliminate
from lightning_coreset.layers import (
    GroupView,
    LayerPair,
    MeasuredReader,
    SelectionForm,
    measured_readers,
    selection_form,
)
from lightning_coreset.methods.moving import Move, moved
from lightning_coreset.methods.prepared import Settings
from lightning_coreset.methods.ranking import rank_by_norms
from lightning_coreset.methods.rotating import Rotation, rotation
from lightning_coreset.methods.rotation_check import that_hold
from lightning_coreset.methods.sampled_rows import all_to_sample, worth_sampling
from lightning_coreset.moments import LayerInput, MeasuredInputs, MeasuringRuns


def rotations_that_hold(
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


def readers_of(view: GroupView, layers: Mapping[str, LayerInput], turned: Rotation | None) -> list[MeasuredReader]:
    """The consumers of a group; none of queries and keys that rotate, whose products are all that counts."""
    return [] if turned is not None and not view.group.by_role("consumer") else measured_readers(view, layers)


def chosen(
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


def _kept_in_heads(
    view: GroupView, turned: Rotation, readers: Sequence[MeasuredReader], size: int, settings: Settings
) -> Tensor:
    """The classes of dimensions that stay: the leading ones of heads that rotate."""
    if turned.turns_all:
        return torch.arange(size)
    if turned.turns_values:
        return rank_by_norms(view, size, "").kept
    return _eliminated(view, selection_form(readers, view.size), size, settings)


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
