"""Which groups are measured together: as many as have samples that fit into a part of what the network takes itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from lightning_coreset.layers import GroupView
from lightning_coreset.methods.sampled_rows import all_to_sample
from lightning_coreset.moments import MeasuringRuns
from lightning_coreset.surgery import named_tensors

_LEAST_BUDGET = 2**27
"""Bytes of samples that are held together whatever the size of the network; so small networks are measured once."""
_SHARE = 0.5
"""Of the network's own bytes that samples may take, if that is more. Every further batch costs up to as many runs."""
_BYTES = 4
"""Of a number in a sample."""


def in_batches(views: Sequence[GroupView], runs: MeasuringRuns) -> list[list[GroupView]]:
    """Put groups together whose samples fit into memory.

    The groups of attention heads that may rotate stay in one batch, since a trial shows all of them or none to rotate.
    Several ranks, which have to measure in step, measure all at once.

    Args:
        views: The groups, in the order of the plan.
        runs: The network with inputs.

    Returns:
        At least one batch, of groups in the order of the plan.

    Raises:
        Unmeasurable: If the network cannot be run.
    """
    own = sum(one.numel() * one.element_size() for one in named_tensors(runs.model).values())
    budget = max(_LEAST_BUDGET, int(_SHARE * own))
    wanted = all_to_sample(views)
    most = {name: rows for name, (_, rows) in wanted.items()}
    if runs.gather is not None or sum(_bytes(view, most) for view in views) <= budget:
        return [list(views)]
    one_run, count = runs.rows_of_one_run(wanted), len(runs.examples[0])
    rows = {name: min(most[name], one_run.get(name, most[name]) * count) for name in most}
    batches: list[list[GroupView]] = [[]]
    held = 0
    for view in [*filter(_turns, views), *(view for view in views if not _turns(view))]:
        more = _bytes(view, rows)
        if batches[-1] and held + more > budget and not _turns(view):
            batches.append([])
            held = 0
        batches[-1].append(view)
        held += more
    return batches


def _turns(view: GroupView) -> bool:
    """Whether dimensions within its heads may rotate."""
    return view.group.pairing is not None and view.group.pairing.heads


def _bytes(view: GroupView, rows: Mapping[str, int]) -> int:
    """How much the samples of a group take."""
    numbers = 0
    for name, (dim, _) in all_to_sample([view]).items():
        shape = view.tensors[name].shape
        numbers += rows[name] * shape[dim] * prod(shape[2:])
    return _BYTES * numbers
