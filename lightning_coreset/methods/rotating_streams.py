"""Streams that rotate: combinations of all channels stand for those that stay, where norms are all that reads them.

The bases are those of :mod:`lightning_coreset.coreset.stream_basis`. What the norms make of the directions that stay is
fitted to what they made of all channels, and the fit goes into the weights of the readers, the gains and shifts of the
norms with it.

Shapes: N channels, m of which stay; R samples; O outputs of a reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_coreset.coreset import StreamBasis, fit_samples, stream_basis
from lightning_coreset.layers import GroupView, StreamNorm, StreamParts, stream_parts, to_cpu_float64
from lightning_coreset.methods.rotating import own_copy
from lightning_coreset.moments import MeasuredInputs, NormInput, normalised

_MOST_EXACT = 1024
"""Channels up to which fits are in double precision."""


class Mix(NamedTuple):
    """What makes of a norm's new outputs, before they are scaled, the old ones: (N, m) and (N,)."""

    matrix: Tensor
    constant: Tensor


@dataclass(frozen=True, eq=False)
class StreamRotation:
    """A new basis for a stream.

    Attributes:
        parts: The stream.
        basis: The directions that stay.
        mixes: For every norm by the name of its gain.
        read: What the norms read in the network as it was.
        error: The mean squared error of the readers' outputs, over their mean square.
    """

    parts: StreamParts
    basis: StreamBasis
    mixes: Mapping[str, Mix]
    read: Mapping[str, NormInput]
    error: float = 0.0

    def updates(self, view: GroupView) -> dict[str, Tensor]:
        """New contents of whole tensors, in which the directions are in the places of the channels that stay."""
        updates: dict[str, Tensor] = {}
        everything = self._at_full_width(view.size)
        for member in self.parts.writers:
            # A layer may make other channels behind those of the stream.
            value = own_copy(updates, view.tensors, member.name).movedim(member.dim, 0)[: view.size]
            value.copy_(torch.tensordot(everything, value.clone(), dims=1))
        for norm in self.parts.norms:
            self._write_readers(updates, view, norm)
        return updates

    def _at_full_width(self, total: int) -> Tensor:
        """What makes all channels, (N, N): in the place of those that go, what leaves norms over all as they are.

        Other groups are fitted to a network whose channels are not gone yet.
        """
        kept, matrix = self.basis
        gone = torch.ones(total, dtype=torch.bool).index_fill(0, kept, False)
        generator = torch.Generator().manual_seed(0)
        mixed = torch.randn(int(gone.sum()), len(kept), generator=generator, dtype=matrix.dtype) / len(kept) ** 0.5
        if self.parts.centred and len(mixed):
            mixed = mixed - mixed.mean(dim=0)
        found = torch.zeros(total, total, dtype=matrix.dtype)
        found[kept], found[gone] = matrix, mixed @ matrix
        return found

    def _write_readers(self, updates: dict[str, Tensor], view: GroupView, norm: StreamNorm) -> None:
        kept, mix, read = self.basis.kept, self.mixes[norm.gain], self.read[norm.gain]
        gain = own_copy(updates, view.tensors, norm.gain)
        gain[kept] += 1 - read.gain[kept]  # some norms multiply with one more than their weight
        if norm.shift is not None:
            own_copy(updates, view.tensors, norm.shift)[kept] = float(norm.lifts)
        for reader in norm.readers:
            weight = own_copy(updates, view.tensors, reader.columns.name).movedim(reader.columns.dim, -1)
            old = weight.clone()
            constant = old @ (read.gain * mix.constant + read.shift)
            weight.zero_()
            weight[..., kept] = (old * read.gain) @ mix.matrix
            if reader.bias is not None:
                own_copy(updates, view.tensors, reader.bias).add_(constant.flatten())
            elif norm.lifts:  # what the norm makes has no part in the direction of ones, which is free for a constant
                weight[..., kept] += constant[..., None] / len(kept)


def stream_rotation(
    view: GroupView,
    measured: MeasuredInputs,
    size: int,
    *,
    ridge: float,
    targets: Mapping[str, NormInput] | None = None,
) -> StreamRotation | None:
    """The best directions of a stream, with what its readers make of them; ``None`` if it is no such stream.

    Args:
        view: The group.
        measured: What was sampled.
        size: Channels that stay.
        ridge: As everywhere.
        targets: What the norms read in the network as it was, if that is not what was sampled.
    """
    parts = stream_parts(view, measured)
    if parts is None or size < 1 + parts.centred or not _can_hold_constants(parts):
        return None
    now, was = measured.channel_norms, targets or measured.channel_norms
    if any(norm.gain not in was or was[norm.gain].stored.shape != now[norm.gain].stored.shape for norm in parts.norms):
        return None
    covariance, importance = torch.zeros(2, view.size, view.size, dtype=torch.float64)
    weights = {norm.gain: _importance(view, norm, was[norm.gain]) for norm in parts.norms}
    for norm in parts.norms:
        unit = _unit(now[norm.gain], now[norm.gain].rows.double())
        second, wanted = unit.T @ unit / len(unit), weights[norm.gain]
        covariance += second
        importance += wanted / (second * wanted).sum().clamp_min(torch.finfo(torch.float64).tiny)
    basis = stream_basis(covariance, importance, size, centred=parts.centred, ridge=ridge)
    mixes, error, energy = {}, 0.0, 0.0
    for norm in parts.norms:
        mix, lost, whole = _fitted(norm, now[norm.gain], was[norm.gain], basis, weights[norm.gain], ridge)
        mixes[norm.gain] = mix
        error, energy = error + lost, energy + whole
    return StreamRotation(parts, basis, mixes, was, error / energy if energy > 0 else 0.0)


def _can_hold_constants(parts: StreamParts) -> bool:
    """Whether what norms add to what is not a multiple of their inputs can go into readers."""
    return all(norm.centred or not norm.lifts for norm in parts.norms)


def _importance(view: GroupView, norm: StreamNorm, read: NormInput) -> Tensor:
    """How much the readers of a norm make of its channels before they are scaled, (N, N)."""
    found = torch.zeros(view.size, view.size, dtype=torch.float64)
    for reader in norm.readers:
        weight = to_cpu_float64(view.tensors[reader.columns.name]).movedim(reader.columns.dim, -1)
        rows = weight.reshape(-1, view.size) * read.gain
        found += rows.T @ rows
    return found


def _unit(read: NormInput, rows: Tensor) -> Tensor:
    return normalised(rows, centred=read.centred, epsilon=read.epsilon)


def _fitted(
    norm: StreamNorm, now: NormInput, was: NormInput, basis: StreamBasis, importance: Tensor, ridge: float
) -> tuple[Mix, float, float]:
    """What makes of the new outputs of a norm the old ones, the mean squared error, and the mean square."""
    dtype = torch.float64 if len(importance) <= _MOST_EXACT else now.rows.dtype
    wanted, rows = _unit(was, was.rows.to(dtype)), now.rows.to(dtype)
    made = _unit(now, rows @ basis.matrix.T.to(rows))
    fit = fit_samples(made, wanted, basis.matrix.T, intercept=norm.biased or norm.lifts, ridge=ridge)
    left = wanted - made @ fit.weights.T.to(made) - fit.constant.to(made)
    lost, whole = (float((((one.T @ one) / len(one)).double() * importance).sum()) for one in (left, wanted))
    return Mix(fit.weights, fit.constant), lost, whole
