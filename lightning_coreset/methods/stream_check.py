"""Whether a network computes what it did when a stream is in another basis: seen by running it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lightning_coreset.coreset import any_stream_basis
from lightning_coreset.layers import GroupView, to_cpu_float64
from lightning_coreset.methods.rotating_streams import Mix, StreamRotation, stream_rotation
from lightning_coreset.methods.rotation_check import alike
from lightning_coreset.moments import MeasuredInputs, MeasuringRuns, NormInput, Unmeasurable

_ROWS = 2048
"""Of what is compared."""
_SIZE = 2.0
"""Of channels where two networks are compared: activations are far from linear there."""


def stream_that_holds(
    view: GroupView,
    measured: MeasuredInputs,
    size: int,
    runs: MeasuringRuns,
    *,
    ridge: float,
    targets: Mapping[str, NormInput] | None = None,
) -> StreamRotation | None:
    """How a stream rotates, if it is seen to change nothing of what is computed.

    Args:
        view: The group.
        measured: What was sampled.
        size: Channels that stay.
        runs: The network with inputs.
        ridge: As everywhere.
        targets: What the norms read in the network as it was, if the view has that of the network pruned so far.
    """
    found = stream_rotation(view, measured, size, ridge=ridge, targets=targets)
    tensors = None if targets is None else view.tensors
    return found if found is not None and holds(found, view, runs, tensors) else None


def holds(
    rotation: StreamRotation, view: GroupView, runs: MeasuringRuns, tensors: Mapping[str, Tensor] | None = None
) -> bool:
    """Whether a network whose stream is in another basis, with all directions, computes what it did.

    What its writers read and what it returns is compared.

    Args:
        rotation: Of the stream.
        view: The group.
        runs: The network with inputs; one of each way of running it is enough.
        tensors: Those of the network pruned so far, if it is not as it was.
    """
    runs = replace(runs, norms_by_law=False, examples=[each[:1] for each in runs.examples])
    parts = rotation.parts
    readers = [reader.columns for norm in parts.norms for reader in norm.readers]
    writers = [one for one in parts.writers if one.role == "producer" and view.tensors[one.name].dim() == 2]
    wanted = {one.name: (one.dim, 1) for one in readers} | {one.name: (1 - one.dim, _ROWS) for one in writers}
    size = min(float(rotation.read[norm.gain].rows.double().square().mean()) for norm in parts.norms) ** 0.5
    scale = _SIZE / size if size > 0 else 1.0
    basis = any_stream_basis(view.size, torch.Generator().manual_seed(0), centred=parts.centred)
    mix = Mix(basis.matrix.T, torch.zeros(view.size, dtype=torch.float64))
    turned = replace(rotation, basis=basis, mixes=dict.fromkeys(rotation.mixes, mix), scale=scale)
    larger = {one.name: to_cpu_float64(view.tensors[one.name]) * scale for one in parts.writers}
    try:
        before, after = (
            runs.measure(wanted, tensors={**(tensors or {}), **updates}) for updates in (larger, turned.updates(view))
        )
    except Unmeasurable:
        return False
    if len(before.outputs) != len(after.outputs) or before.layers.keys() != after.layers.keys():
        return False
    pairs = [*zip(before.outputs, after.outputs, strict=True)]
    pairs += [(read.rows, after.layers[name].rows) for name, read in before.layers.items() if wanted[name][1] > 1]
    return bool(pairs) and all(alike(*pair) for pair in pairs)
