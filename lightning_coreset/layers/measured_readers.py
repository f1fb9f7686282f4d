"""The consumers of a group with samples of what they read: for groups of any form, as long as consumers are linear.

Shapes: R samples; N classes of channels, q positions of a class in the consumer's input, k kernel positions; O outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_coreset.coreset import SampledMoment, SampleFit, fit_samples, position_correlation, sample_moments
from lightning_coreset.layers.group_view import GroupView, NoCoresetForm
from lightning_coreset.layers.layer_pair import consumer_matrix, put_consumer, to_cpu_float64
from lightning_coreset.layers.pairing import constant_target, norm_of_outputs, output_scale
from lightning_coreset.moments import LayerInput
from lightning_coreset.structure import Layer, Member

_MOST_COLUMNS = 2048
"""Classes with several positions are told apart by their positions up to so many in all; above, by their averages."""
_MOST_SAMPLES = 16384
"""Rows of which moments for the selection are taken."""


@dataclass(frozen=True, eq=False)
class MeasuredReader:
    """One consumer of a group; of a convolution with groups, one of these.

    Attributes:
        layer: The consumer.
        columns: Where the group's channels lie in its weight.
        outputs: The outputs that this reader makes.
        inputs: Which of the inputs each class is, (N, q).
        weights: What reads the channels, float64 (O, N, q, k).
        output_scale: The gain of a BatchNorm behind, (O,); ones without.
        constant: The tensor that can take a constant, with its sign.
        read: What was measured.
        variance: The running variance of the BatchNorm behind, if it normalises these outputs and nothing else.
        start: Weights that make of what is read now what ``weights`` made of it once, if that is not the same.
    """

    layer: Layer
    columns: Member
    outputs: slice
    inputs: Tensor
    weights: Tensor
    output_scale: Tensor
    constant: tuple[str, float] | None
    read: LayerInput
    variance: str | None = None
    start: Tensor | None = None

    def samples(self, read: LayerInput | None = None) -> Tensor:
        """What it reads of the classes, (R, N, q, k')."""
        rows = (read or self.read).rows
        if torch.equal(self.inputs.flatten(), torch.arange(rows.shape[1])):
            return rows.unflatten(1, self.inputs.shape)
        return rows[:, self.inputs.flatten()].unflatten(1, self.inputs.shape)

    @property
    def centred(self) -> bool:
        """Whether errors count around the mean, since a constant can make up for that."""
        return self.constant is not None

    @property
    def per_position(self) -> bool:
        """Whether the measured rows tell the kernel positions apart."""
        return self.read.stored.shape[2] == self.weights.shape[3]

    def selection_moment(self, *, by_position: bool) -> Tensor | SampledMoment:
        """The moments for the choice of channels; those of fewer samples than channels by the samples.

        Args:
            by_position: Whether the positions of a class are channels of their own, (N q, N q), or are alike, (N, N).
        """
        rows = self._alike(by_position=by_position).transpose(1, 2).flatten(0, 1)
        rows = rows[:: -(-len(rows) // _MOST_SAMPLES)]
        if len(rows) < rows.shape[1]:
            return SampledMoment.of(rows, centred=self.centred)
        return sample_moments(rows, centred=self.centred)[1]

    def selection_rows(self, *, by_position: bool) -> Tensor:
        """The consumer's weights for the choice of channels, (J, N q) or (J, N)."""
        weights = self._now * self.output_scale[:, None, None, None]
        rows = weights.flatten(1, 2) if by_position else weights.flatten(2)
        spread = rows.shape[2]
        if spread > 1:
            samples = self._alike(by_position=by_position)
            blur = torch.eye(spread, dtype=torch.float64)  # taps of a transposed convolution make different outputs
            if samples.shape[2] == spread:
                blur = position_correlation(samples[: max(_MOST_SAMPLES // spread, 1)])
            rows = torch.einsum("onk,kl->onl", rows, _root(blur))
        return rows.permute(0, 2, 1).flatten(0, 1)

    def _alike(self, *, by_position: bool) -> Tensor:
        """What it reads, (R, M, T): T positions that are alike, such as those of a kernel."""
        samples = self.samples()
        return samples.flatten(1, 2) if by_position else samples.movedim(1, 3).flatten(1, 2).transpose(1, 2)

    @property
    def _now(self) -> Tensor:
        """The weights that make of what is read now what it made."""
        return self.weights if self.start is None else self.start

    def fit(
        self, kept: Tensor, *, ridge: float, new: Tensor | None = None, target: LayerInput | None = None
    ) -> SampleFit:
        """The best weights on the classes that stay.

        Args:
            kept: The classes that stay, (m,).
            ridge: As everywhere.
            new: What they will be, (R, m, q, k'), if that is not what was measured.
            target: What the network as it was read here, row by row, if it is not what is read now.
        """
        whole, old = self.samples(target), self.samples()[:, kept]
        # A class that moved may be of any size: it is fitted in that which it had.
        sizes = old.new_ones(len(kept)) if new is None else _sizes(old) / _sizes(new)
        inputs = old if new is None else new * sizes[:, None, None]
        weights, start = self._folded(self.weights), self._folded(self._now)
        targets = whole.flatten(1) @ weights.flatten(1).T.to(whole)
        fit = fit_samples(inputs.flatten(1), targets, start[:, kept].flatten(1), intercept=self.centred, ridge=ridge)
        each = sizes.double().repeat_interleave(inputs[0, 0].numel())
        return fit if new is None else replace(fit, weights=fit.weights * each)

    def towards(self, target: LayerInput, *, ridge: float) -> MeasuredReader:
        """The reader with weights that make of all channels as they are now what they made of them once."""
        everything = torch.arange(len(self.inputs))
        start, _ = self.unfolded(self.fit(everything, ridge=ridge, target=target), everything)
        return replace(self, start=start)

    def _folded(self, weights: Tensor) -> Tensor:
        """Weights (O, N, q, k) as the samples have it: kernel positions that these do not tell apart are outputs."""
        return weights if self.per_position else weights.movedim(3, 0).flatten(0, 1)[..., None]

    def unfolded(self, fit: SampleFit, kept: Tensor) -> tuple[Tensor, Tensor]:
        """New weights (O, m, q, k) and the constant of each output, (O,)."""
        outputs, _, q, k = self.weights.shape
        if self.per_position:
            return fit.weights.reshape(outputs, len(kept), q, k), fit.constant
        new = fit.weights.reshape(k, outputs, len(kept), q).movedim(0, 3)
        return new, fit.constant.reshape(k, outputs).sum(dim=0)


def _sizes(samples: Tensor) -> Tensor:
    """The root mean square of every class in samples (R, m, q, k)."""
    return samples.square().mean(dim=(0, 2, 3)).clamp_min(1e-30).sqrt()


def measured_readers(view: GroupView, layers: Mapping[str, LayerInput]) -> list[MeasuredReader]:
    """The consumers of a group.

    Args:
        view: The group.
        layers: What was measured, by the name of the weight.

    Raises:
        NoCoresetForm: If the channels are normalised by their own statistics, or one of the consumers was not seen to
            multiply them with its weight, or has no such form.
    """
    group = view.group
    if group.normalized:
        raise NoCoresetForm("its channels are normalised by their own statistics")
    if group.standardised:
        raise NoCoresetForm("weights that read its channels are normalised over them")
    members = group.by_role("consumer")
    if not members:
        raise NoCoresetForm("no layer reads its channels, which only meet each other")
    known = {path.consumer.weight: path.consumer for path in group.paths}
    readers = [one for member in members for one in _readers(view, member, known.get(member.name), layers)]
    targets = Counter(name for name, _ in {(one.constant, one.layer.weight) for one in readers} if name is not None)
    return [replace(one, constant=None) if targets[one.constant] > 1 else one for one in readers]  # type: ignore[index]


def _readers(
    view: GroupView, member: Member, known: Layer | None, layers: Mapping[str, LayerInput]
) -> list[MeasuredReader]:
    read, shape = layers.get(member.name), view.tensors[member.name].shape
    if read is None:
        raise NoCoresetForm(f"{member.name} was not seen to read its channels")
    if member.dim > 1 or bool((member.positions < 0).any()):
        raise NoCoresetForm(f"{member.name} is a stack of matrices, or reads different numbers of inputs of them")
    if read.transposed and read.groups > 1:
        raise NoCoresetForm(f"{member.name} is a transposed convolution with groups")
    layer = known or Layer(member.name, None, in_dim=member.dim, out_dim=1 - member.dim, groups=read.groups)
    layer = replace(layer, bias=layer.bias or read.bias)
    matrix = consumer_matrix(layer, view.tensors)
    outputs, width = matrix.shape[0] // read.groups, shape[member.dim]
    if read.stored.shape[1] != width * read.groups:
        raise NoCoresetForm(f"{member.name} reads in a way that is not known")
    norm = norm_of_outputs(view, layer, len(matrix))
    gain = output_scale(view, norm, len(matrix))
    return [
        MeasuredReader(
            layer=layer,
            columns=member,
            outputs=slice(part * outputs, (part + 1) * outputs),
            inputs=member.positions + part * width,
            weights=member.by_class(matrix[part * outputs : (part + 1) * outputs], dim=1),
            output_scale=gain[part * outputs : (part + 1) * outputs],
            constant=constant_target(view, layer, len(matrix), norm),
            read=read,
            variance=None if norm is None else norm.running_var,
        )
        for part in range(read.groups)
    ]


def written(
    readers: Sequence[MeasuredReader],
    fits: Sequence[SampleFit],
    kept: Tensor,
    view: GroupView,
    *,
    rescale: bool,
) -> dict[str, Tensor]:
    """New contents of the consumers' tensors, with zeros in the columns of channels that go.

    Args:
        readers: The consumers.
        fits: Their new weights.
        kept: The classes that stay.
        view: The group.
        rescale: Whether running variances of BatchNorms behind follow the outputs, which vary less than they did.
    """
    updates: dict[str, Tensor] = {}
    matrices: dict[str, Tensor] = {}
    for reader, fit in zip(readers, fits, strict=True):
        name, tensors = reader.layer.weight, view.tensors
        if name not in matrices:
            matrices[name] = consumer_matrix(reader.layer, tensors).clone()
            matrices[name][:, reader.columns.positions.flatten()] = 0.0
        new, constant = reader.unfolded(fit, kept)
        part = matrices[name][reader.outputs]
        part[:, reader.columns.positions[kept].flatten()] = new.flatten(1, 2)
        if reader.constant is not None:
            target, sign = reader.constant
            value = updates.get(target, to_cpu_float64(tensors[target]))
            flat = value.reshape(-1).clone()
            flat[reader.outputs] += sign * constant
            updates[target] = flat.reshape(value.shape)
        if rescale and reader.variance is not None and reader.per_position:
            value = updates.get(reader.variance, to_cpu_float64(tensors[reader.variance])).clone()
            value[reader.outputs] *= fit.variance_ratios
            updates[reader.variance] = value
    for reader in readers:
        name = reader.layer.weight
        updates[name] = put_consumer(reader.layer, matrices[name], view.tensors[name])
    return updates


def _root(correlation: Tensor) -> Tensor:
    """A matrix whose product with its transpose is the correlation."""
    values, vectors = torch.linalg.eigh(correlation)
    return vectors * values.clamp_min(0).sqrt()


class SelectionForm(NamedTuple):
    """What the choice of channels works with.

    Attributes:
        moments: One for each tensor that is read.
        rows: The weights of its readers, for each.
        labels: Of the classes; ``None`` where every class is one channel.
    """

    moments: list[Tensor | SampledMoment]
    rows: list[Tensor]
    labels: Tensor | None


def selection_form(readers: Sequence[MeasuredReader], classes: int) -> SelectionForm:
    """What the choice of channels works with; readers of one tensor have one set of moments."""
    by_position = _told_apart(readers, classes)
    together: dict[tuple[object, ...], list[MeasuredReader]] = {}
    for reader in readers:
        key = (id(reader.read.stored), reader.centred, *reader.inputs.flatten().tolist())
        together.setdefault(key, []).append(reader)
    positions = readers[0].inputs.shape[1] if by_position else 1
    return SelectionForm(
        [some[0].selection_moment(by_position=by_position) for some in together.values()],
        [torch.cat([one.selection_rows(by_position=by_position) for one in some]) for some in together.values()],
        torch.arange(classes).repeat_interleave(positions) if positions > 1 else None,
    )


def _told_apart(readers: Sequence[MeasuredReader], classes: int) -> bool:
    """Whether all readers have as many positions of each class, few enough to be told apart."""
    numbers = {reader.inputs.shape[1] for reader in readers}
    return len(numbers) == 1 and classes * numbers.pop() <= _MOST_COLUMNS
