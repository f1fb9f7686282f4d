"""Which groups are measured together: as many as have samples that fit into a part of what the network takes itself."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from math import prod

from lightning_coreset.layers import GroupView
from lightning_coreset.methods.sampled_rows import all_to_sample
from lightning_coreset.moments import MeasuringRuns
from lightning_coreset.surgery import named_tensors

_LEAST_BUDGET = 2**27
"""Bytes of samples that are held together whatever the size of the network; so small networks are measured once."""
_SHARE = 0.5
"""Of the network's own bytes that samples may take, if that is more. Every further batch costs up to as many runs."""


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
    known: dict[str, tuple[int, Hashable]] = {name: (rows, name) for name, (_, rows) in wanted.items()}
    if runs.gather is not None or sum(sum(_bytes(view, known).values()) for view in views) <= budget:
        return [list(views)]
    count = len(runs.examples[0])
    for name, (rows, tensor) in runs.rows_of_one_run(wanted).items():
        known[name] = min(wanted[name][1], rows * count), tensor
    batches: list[list[GroupView]] = [[]]
    held: dict[Hashable, int] = {}
    for view in [*filter(_turns, views), *(view for view in views if not _turns(view))]:
        more = _bytes(view, known)
        if batches[-1] and sum((held | more).values()) > budget and not _turns(view):
            batches.append([])
            held = {}
        batches[-1].append(view)
        held |= more
    return batches


def _turns(view: GroupView) -> bool:
    """Whether dimensions within its heads may rotate."""
    return view.group.pairing is not None and view.group.pairing.heads


def _bytes(view: GroupView, known: Mapping[str, tuple[int, Hashable]]) -> dict[Hashable, int]:
    """How much the samples of each tensor take that a group's weights read, by their rows and what they read."""
    found: dict[Hashable, int] = {}
    for name, (dim, _) in all_to_sample([view]).items():
        weight, (rows, tensor) = view.tensors[name], known[name]
        found[tensor] = rows * weight.shape[dim] * prod(weight.shape[2:]) * weight.element_size()
    return found
