"""Whether a network computes what it did when a stream is in another basis: seen by running it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lightning_coreset.coreset import any_stream_basis
from lightning_coreset.layers import GroupView, to_cpu_float64
from lightning_coreset.methods.rotating_streams import Mix, StreamRotation
from lightning_coreset.moments import MeasuringRuns, Unmeasurable

_ROWS = 2048
"""Of what is compared."""
_SAMPLES = 8
"""Of what networks are run on to be compared."""
_SIZE = 2.0
"""Of channels where two networks are compared: activations are far from linear there."""
_ALIKE = 1e-3
"""Part of the change by a wrong basis by which numbers may differ."""
_ROUNDING = 1e-6
"""Part of their own size by which numbers may differ."""


def holds(
    rotation: StreamRotation, view: GroupView, runs: MeasuringRuns, tensors: Mapping[str, Tensor] | None = None
) -> bool:
    """Whether a network whose stream is in another basis, with all directions, computes what it did.

    What its writers read and what it returns is compared, once with the stream as it is and once with a large one, to
    which random numbers are added wherever a vector stands: one that is not added but multiplied with then shows.

    Args:
        rotation: Of the stream.
        view: The group.
        runs: The network with inputs; one of each way of running it is enough.
        tensors: Those of the network pruned so far, if it is not as it was.
    """
    parts, generator = rotation.parts, torch.Generator().manual_seed(0)
    basis = any_stream_basis(view.size, generator, centred=parts.centred)
    mix = Mix(basis.matrix.T, torch.zeros(view.size, dtype=torch.float64))
    turned = replace(rotation, basis=basis, mixes=dict.fromkeys(rotation.mixes, mix))
    size = min(float(rotation.read[norm.gain].rows.double().square().mean()) for norm in parts.norms) ** 0.5
    writers = {one.name: to_cpu_float64(view.tensors[one.name]) for one in parts.writers}
    large = {
        one.name: _SIZE * torch.randn(writers[one.name].shape, generator=generator, dtype=torch.float64)
        if one.role == "channelwise"
        else writers[one.name] * (_SIZE / size if size > 0 else 1.0)
        for one in parts.writers
    }
    runs = replace(
        runs, norms_by_law=False, examples=[[one.part(0, _SAMPLES) for one in each[:1]] for each in runs.examples]
    )
    return all(_same(turned, view, written, runs, tensors or {}) for written in (writers, large))


def _same(
    turned: StreamRotation,
    view: GroupView,
    written: Mapping[str, Tensor],
    runs: MeasuringRuns,
    tensors: Mapping[str, Tensor],
) -> bool:
    """Whether it comes to the same with these weights of writers.

    By how much numbers may differ is measured by what they become where writers alone are in the new basis.
    """
    parts = turned.parts
    readers = [reader.columns for norm in parts.norms for reader in norm.readers]
    writers = [one for one in parts.writers if one.role == "producer" and view.tensors[one.name].dim() == 2]
    wanted = {one.name: (one.dim, 1) for one in readers} | {one.name: (1 - one.dim, _ROWS) for one in writers}
    before = {**tensors, **written}
    after = {**before, **turned.updates(view.with_tensors({**view.tensors, **written}))}
    wrong = {**before, **{one.name: after[one.name] for one in parts.writers}}
    try:
        one, other, third = (runs.measure(wanted, tensors=each, to_the_end=True) for each in (before, after, wrong))
    except Unmeasurable:
        return False
    if not len(one.outputs) == len(other.outputs) == len(third.outputs):
        return False
    triples = [*zip(one.outputs, other.outputs, third.outputs, strict=True)]
    seen = [
        name
        for name, (_, rows) in wanted.items()
        if rows > 1 and all(name in run.layers for run in (one, other, third))
    ]
    triples += [(one.layers[name].rows, other.layers[name].rows, third.layers[name].rows) for name in seen]
    shows = any(bool((wrong - right).norm() > 0) for right, _, wrong in triples)
    return shows and all(_alike(*three) for three in triples)


def _alike(right: Tensor, found: Tensor, wrong: Tensor) -> bool:
    same = right.shape == found.shape == wrong.shape
    return same and bool((found - right).norm() <= _ALIKE * (wrong - right).norm() + _ROUNDING * right.norm())
