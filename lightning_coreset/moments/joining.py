"""Puts the samples of several runs, or of several ranks, together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_coreset.moments.inputs import LayerInput, MeasuredInputs, NormInput


class Unmeasurable(Exception):  # noqa: N818 - a finding, not an error
    """A network cannot be measured on these inputs; the message says why, in words for a user."""


def rows_in(calls: Sequence[LayerInput]) -> int:
    """How many samples there are."""
    return sum(len(one.rows) for one in calls)


def of_all_calls(calls: Mapping[str, Sequence[LayerInput]]) -> dict[str, LayerInput]:
    """All samples of each weight together; layers that read one tensor share memory."""
    together: dict[tuple[int, ...], Tensor] = {}
    samples = {}
    for name, parts in calls.items():
        key = tuple(id(part.rows) for part in parts)
        if key not in together:
            together[key] = parts[0].rows if len(parts) == 1 else torch.cat([part.rows for part in parts])
        samples[name] = replace(parts[0], rows=together[key])
    return samples


def of_all_norms(calls: Mapping[str, Sequence[NormInput]]) -> dict[str, NormInput]:
    """All samples of each norm together."""
    return {
        name: replace(parts[0], rows=torch.cat([one.rows for one in parts])) for name, parts in calls.items() if parts
    }


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
    return MeasuredInputs(of_all_calls(calls), made, outputs, of_all_norms(channels))
