"""Whether a network computes what it did when the heads of attention are in new bases: seen by running it.

It is run with all directions of every head, before any is left out, and so both in the old bases and in the new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_coreset.methods.rotating import Rotation, own_copy, write_rows
from lightning_coreset.moments import MeasuringRuns, Unmeasurable

_SAMPLES = 8
"""Of what networks are run on to be compared."""
_ALIKE = 1e-3
"""Part of their size by which what two networks compute may differ by rounding."""


def that_hold(
    rotations: Sequence[Rotation],
    wanted: Mapping[str, tuple[int, int]],
    runs: MeasuringRuns,
    tensors: Mapping[str, Tensor] | None = None,
) -> list[Rotation]:
    """The rotations under which the network with all dimensions computes what it did; of all groups or of none.

    Args:
        rotations: Those of all groups.
        wanted: What is compared: weights with the dimension and the number of rows to sample.
        runs: The network with inputs.
        tensors: Those of the network pruned so far, if it is not as it was.
    """
    for tried in (rotations, [one for each in rotations if (one := each.only_values()).moves]):
        if tried and _computes_the_same(tried, wanted, runs, tensors):
            return list(tried)
    return []


def _computes_the_same(
    rotations: Sequence[Rotation],
    wanted: Mapping[str, tuple[int, int]],
    runs: MeasuringRuns,
    tensors: Mapping[str, Tensor] | None,
) -> bool:
    bases = {columns: basis for one in rotations for columns, basis in one.read.items()}
    runs = replace(runs, norms_by_law=False)  # behind which nothing would be seen of what is before
    few = replace(runs, examples=[[one.part(0, _SAMPLES) for one in each[:1]] for each in runs.examples])
    both = [_all(rotations, tensors, turned=turned) for turned in (False, True)]
    try:
        before, after = (few.measure(wanted, tensors=each, to_the_end=True) for each in both)
        if not all(columns.weight in before.layers for columns in bases):  # as where samples go different ways
            before, after = (runs.measure(wanted, tensors=each, to_the_end=True) for each in both)
    except Unmeasurable:
        return False
    if len(before.outputs) != len(after.outputs):
        return False
    pairs = [*zip(before.outputs, after.outputs, strict=True)]
    for columns, basis in bases.items():
        old, new = (found.layers[columns.weight].rows[:, list(columns.places), 0].double() for found in (before, after))
        pairs.append((old @ basis.T, new))
    read = {columns.weight for columns in bases}
    pairs += [(before.layers[name].rows, after.layers[name].rows) for name in before.layers if name not in read]
    return all(_alike(one, other) for one, other in pairs)


def _all(rotations: Sequence[Rotation], tensors: Mapping[str, Tensor] | None, *, turned: bool) -> dict[str, Tensor]:
    """The tensors of a network for the comparison; several groups may have parts of one."""
    updates: dict[str, Tensor] = {}
    for one in rotations:
        updates |= _whole(one, {**one.view.tensors, **(tensors or {}), **updates}, turned=turned)
    return {**(tensors or {}), **updates}


def _alike(before: Tensor, after: Tensor) -> bool:
    return before.shape == after.shape and bool((after - before).norm() <= _ALIKE * before.norm())


def _whole(rotation: Rotation, tensors: Mapping[str, Tensor], *, turned: bool) -> dict[str, Tensor]:
    """Tensors of a network with all dimensions of every head, in the old or the new bases, which computes the same.

    Queries, keys and values are so large in both that activations are far from linear, and softmax from uniform.
    """
    updates: dict[str, Tensor] = {}
    for block, (others, queries) in rotation.moving():
        for made, basis in ((block.others, others), (block.queries, queries)):
            for rows in made:
                own = basis if turned else torch.eye(len(basis), dtype=basis.dtype)
                write_rows(updates, tensors, rows, own * rotation.gains[rows])
        for columns in block.readers:
            value = own_copy(updates, tensors, columns.weight).movedim(columns.dim, 0)
            places = list(columns.places)
            gain = rotation.gains[block.others[0]]
            value[places] = (torch.linalg.solve(others.T, value[places]) if turned else value[places]) / gain
    return updates
