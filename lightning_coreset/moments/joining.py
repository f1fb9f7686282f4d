"""Puts the samples of several runs, or of several ranks, together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from lightning_coreset.moments.inputs import LayerInput, MeasuredInputs, NormInput


class Unmeasurable(Exception):  # noqa: N818 - a finding, not an error
    """A network cannot be measured on these inputs; the message says why, in words for a user."""


def rows_in(calls: Sequence[LayerInput]) -> int:
    """How many samples there are."""
    return sum(len(one.stored) for one in calls)


def of_all_calls(calls: dict[str, list[LayerInput]]) -> dict[str, LayerInput]:
    """All samples of each weight together; layers that read one tensor share memory.

    Takes the parts out of ``calls``, so that only those of one tensor are there twice at a time.
    """
    alike: dict[tuple[int, ...], list[str]] = {}
    for name, parts in calls.items():
        alike.setdefault(tuple(id(part.stored) for part in parts), []).append(name)
    together = {}
    order = list(calls)
    for names in alike.values():
        parts = [calls.pop(name) for name in names]
        rows = parts[0][0].stored if len(parts[0]) == 1 else torch.cat([part.stored for part in parts[0]])
        together |= {name: replace(own[0], stored=rows) for name, own in zip(names, parts, strict=True)}
    return {name: together[name] for name in order}


def of_all_norms(calls: dict[str, list[NormInput]]) -> dict[str, NormInput]:
    """All samples of each norm together; takes the parts out of ``calls``, as :func:`of_all_calls` does."""
    found = {}
    for name in list(calls):
        parts = calls.pop(name)
        if parts:
            found[name] = replace(parts[0], stored=torch.cat([one.stored for one in parts]))
    return found


def joined(parts: Sequence[MeasuredInputs | Unmeasurable]) -> MeasuredInputs:
    """What several ranks found, as if one had.

    Raises:
        Unmeasurable: If one of them could not measure.
    """
    for part in parts:
        if isinstance(part, Unmeasurable):
            raise part
    found = [part for part in parts if isinstance(part, MeasuredInputs)]
    calls = {name: [part.layers[name] for part in found if name in part.layers] for name in found[0].layers}
    normed = {name: [part.normed[name] for part in found if name in part.normed] for name in found[0].normed}
    outputs = tuple(one for part in found for one in part.outputs)
    channels = {
        name: [part.channel_norms[name] for part in found if name in part.channel_norms]
        for name in found[0].channel_norms
    }
    made = {name: torch.cat(rows) for name, rows in normed.items()}
    runs = max(part.runs for part in found)
    return MeasuredInputs(of_all_calls(calls), made, outputs, of_all_norms(channels), runs)
