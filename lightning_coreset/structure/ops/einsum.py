"""Products of two tensors in einsum notation: what they do to labels, for aten's products and for registered ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from torch import Tensor

from lightning_coreset.structure.head_dimensions import Queries, note_head_dimensions
from lightning_coreset.structure.label_merging import join, varying
from lightning_coreset.structure.labels import ChannelLabels, TensorInfo, pin_all, pin_dims, unite_along
from lightning_coreset.structure.layer_records import Paths
from lightning_coreset.structure.penalties import penalty_of
from lightning_coreset.structure.propagation import Propagation
from lightning_coreset.structure.steps import Step, StepKind

_MATRICES = "nk,km->nm"

FIXED_INPUT = "contracts a tensor whose size is fixed, such as the network's input"


@dataclass(frozen=True)
class Einsum:
    """A product of two tensors: ``"nk,km->nm"``.

    Attributes:
        operands: The letters of both operands, one for each dimension.
        out: Those of the result.
        summed: Those that are summed over.
    """

    operands: tuple[str, str]
    out: str
    summed: str

    @classmethod
    @cache
    def of(cls, notation: str) -> Einsum:
        """Read the notation."""
        operands, _, out = notation.partition("->")
        first, second = operands.split(",")
        return cls((first, second), out, "".join(letter for letter in first if letter not in out))


def contract(
    propagation: Propagation,
    first: Tensor,
    second: Tensor,
    notation: str,
    out: Tensor,
    bias: Tensor | None = None,
    *,
    scaled: bool = False,
) -> None:
    """Follow ``out = einsum(notation, first, second) + bias``.

    With a weight, what is summed over is united with the weight's labels, and its other dimension labels the result.

    Args:
        propagation: What is known.
        first: The first operand.
        second: The second one.
        notation: As for ``Einsum``; every letter that one operand has and the result lacks, the other one has too.
        out: The result.
        bias: What is added, of a shape that broadcasts to the result's.
        scaled: Whether the product or the bias is multiplied by a number.
    """
    spec = Einsum.of(notation)
    tensors = (first, second)
    if bias is None and notation == _MATRICES and _times_identity(propagation, first, second, out):
        return
    weight = next((tensor for tensor in (second, first) if _is_weight(propagation.info(tensor))), None)
    if weight is None and notation == _MATRICES:
        weight = _product_of_weights(propagation, tensors)
    kept: list[tuple[set[int], Sequence[ChannelLabels]]] = []
    survivors = [list(propagation.info(tensor).channel_labels) for tensor in tensors]
    for letter in spec.summed:
        _sum_over(propagation, tensors, [names.index(letter) for names in spec.operands], survivors, weight)
    for tensor, names, axes in zip(tensors, spec.operands, survivors, strict=True):
        placed = [_place(axis, names, spec.out) for axis in axes]
        if tensor is weight:
            placed = [axis if axis.from_layer else replace(axis, from_layer=True) for axis in placed]
        own = varying(tensor, tensor.dim())
        kept.append(({spec.out.index(names[dim]) for dim in own if names[dim] in spec.out}, placed))
    if weight is None and propagation.within_heads:
        # Heads stay, so that it does not matter that attention has none: dimensions within them need not be the same.
        heads = {dim for _, axes in kept for axis in axes for dim in axis.dims[:-1]}
        kept = [(own - heads, axes) for own, axes in kept]
    if bias is not None:
        kept.append((varying(bias, out.dim()), propagation.info(bias).channel_labels))
    axes = join(kept, out.dim(), propagation.union_find, "meets a tensor of fixed size in a product")
    constant = all(propagation.info(tensor).constant for tensor in tensors)
    if constant and (_sources(propagation, first) or {""}) == _sources(propagation, second):
        # A Gram matrix, as in a penalty, is no layer.
        summed = _summed_labels(propagation, tensors, spec)
        penalties = tuple(penalty_of(axis, "is summed over in a product of a weight with itself") for axis in summed)
        propagation.set_info(out, TensorInfo(axes, constant=True, statistics=penalties))
        return
    if bias is not None and weight is not None:
        propagation.residual.note_bias(bias, propagation.info(weight).direct or "a product", tensors, axes)
    paths = _paths(propagation, tensors, spec, weight, bias, scaled)
    summed = _summed_labels(propagation, tensors, spec) if propagation.within_heads and weight is None else ()
    terms = math.prod([first.shape[spec.operands[0].index(letter)] for letter in spec.summed])
    propagation.count_macs(weight, out.numel() * terms, (*axes, *summed))
    of_weights = bias is None and weight is not None and all(map(propagation.weight_products.is_weight, tensors))
    if of_weights and len(spec.summed) == 1:
        other = 0 if weight is tensors[1] else 1
        propagation.weight_products.note(paths, tensors[other], spec.operands[other].index(spec.summed))
    propagation.set_info(out, TensorInfo(axes, constant=constant, producer_paths=paths, vanishes=of_weights))


def _times_identity(propagation: Propagation, first: Tensor, second: Tensor, out: Tensor) -> bool:
    """Whether one operand is an identity matrix; then the result is the other one, a weight."""
    for one, other in ((first, second), (second, first)):
        if propagation.alike.get(one) and _is_weight(propagation.info(other)):
            propagation.set_info(out, propagation.info(other))
            return True
    return False


def _product_of_weights(propagation: Propagation, tensors: Sequence[Tensor]) -> Tensor | None:
    """The operand that is a product of weights where the other one is an activation, and so a weight itself."""
    constant = [tensor for tensor in tensors if propagation.info(tensor).constant]
    if len(constant) != 1 or not propagation.weight_products.is_weight(constant[0]):
        return None
    propagation.weight_products.use(constant[0])
    return constant[0]


def _sources(propagation: Propagation, tensor: Tensor) -> set[str]:
    """The parameters whose labels a tensor carries."""
    return {name for axis in propagation.info(tensor).channel_labels for name, _ in axis.sources}


def _summed_labels(propagation: Propagation, tensors: Sequence[Tensor], spec: Einsum) -> list[ChannelLabels]:
    """What a product of two activations costs goes with the dimensions that it sums over, too."""
    found = [propagation.info(tensors[0]).along(spec.operands[0].index(letter)) for letter in spec.summed]
    return [axis for axis in found if axis is not None]


def _is_weight(info: TensorInfo) -> bool:
    """What a layer made of learned queries is as constant as a weight, but an activation."""
    return info.constant and not info.producer_paths


def _sum_over(
    propagation: Propagation,
    tensors: Sequence[Tensor],
    dims: Sequence[int],
    survivors: list[list[ChannelLabels]],
    weight: Tensor | None,
) -> None:
    """Unite the two operands' labels along the summed dimension; fixed on one side blocks the other."""
    if weight is None and propagation.within_heads:
        _sum_within_heads(propagation, tensors, dims, survivors)
        return
    if weight is None:
        _sum_over_activations(propagation, dims, survivors)
        survivors[:] = [_whole_heads(propagation, axes) for axes in survivors]
        return
    labelled = [propagation.info(tensor).along(dim) is not None for tensor, dim in zip(tensors, dims, strict=True)]
    if propagation.scale_is_implicit and any(labelled):
        _block_along(propagation, survivors, dims, "is multiplied with learned queries or keys, scaled by their size")
    equal = [dim not in propagation.varying(tensor, tensor.dim()) for tensor, dim in zip(tensors, dims, strict=True)]
    if not all(one or other for one, other in zip(labelled, equal, strict=True)):
        _block_along(propagation, survivors, dims, FIXED_INPUT)
    elif any(labelled):
        first, second = (
            propagation.size_labels(tensor, dim, FIXED_INPUT) for tensor, dim in zip(tensors, dims, strict=True)
        )
        propagation.unite(first, second, FIXED_INPUT)
    survivors[:] = [
        [axis for axis in axes if axis.labels.shape[dim] == 1] for axes, dim in zip(survivors, dims, strict=True)
    ]


def _block_along(
    propagation: Propagation, axes_of_both: Sequence[Sequence[ChannelLabels]], dims: Sequence[int], reason: str
) -> None:
    for axes, dim in zip(axes_of_both, dims, strict=True):
        for axis in axes:
            if axis.labels.shape[dim] > 1:
                propagation.union_find.block(axis.labels, reason)


def _sum_over_activations(propagation: Propagation, dims: Sequence[int], survivors: list[list[ChannelLabels]]) -> None:
    """Queries times keys: single positions along the summed dimension stay, whole heads may go."""
    reason = "is summed over in a product of two activations"
    for number, dim in enumerate(dims):  # of several kinds of labels, where a view has merged two dimensions
        survivors[number] = pin_all(survivors[number], {dim}, propagation.union_find, reason)


def _sum_within_heads(
    propagation: Propagation, tensors: Sequence[Tensor], dims: Sequence[int], survivors: list[list[ChannelLabels]]
) -> None:
    """Queries times keys: both lose the same dimensions, and every head as many. Whole heads stay."""
    axes = [propagation.info(tensor).along(dim) for tensor, dim in zip(tensors, dims, strict=True)]
    reason = "is multiplied with a tensor of fixed size"
    for number, axis in enumerate(axes):
        survivors[number] = [own for own in survivors[number] if own is not axis]
        for own in survivors[number]:
            if own.dims == (0,):
                propagation.union_find.block(own.labels, "is an attention head, where dimensions within heads may go")
            elif len(own.dims) > 1 or own.single_head:
                note_head_dimensions(propagation, own, max(own.dims))
    first, second = axes
    if first is None or second is None:
        for axis in axes:
            if axis is not None:
                propagation.union_find.block(axis.labels, reason)
        return
    if tensors[1].shape[-1] == 1:
        for axis in (first, second):
            propagation.union_find.block(axis.labels, "meets a single key in the example inputs, so that nothing shows")
        return
    queries, keys = (_by_head(propagation, axis, dim) for axis, dim in zip((first, second), dims, strict=True))
    shape = (max(len(queries), len(keys)), -1)
    propagation.unite(queries.expand(shape), keys.expand(shape), reason)
    propagation.head_dimensions += [queries, keys]
    propagation.records.multiplied.append(queries)
    made, other = (frozenset(propagation.info(tensor).producer_paths) for tensor in tensors)
    alone = None if made & other else made
    propagation.queries.append(Queries(queries.flatten(), alone, propagation.scale_is_implicit))


def _by_head(propagation: Propagation, axis: ChannelLabels, dim: int) -> Tensor:
    """Labels along ``dim``, one row for each index of the first dimension, that of the batch and the heads."""
    others = [other for other in axis.dims if other not in (0, dim)]
    labels = unite_along(axis, others, propagation.union_find, "is a dimension within attention heads").labels
    return labels.movedim(dim, -1).reshape(-1, labels.shape[dim]) if dim else labels.reshape(1, -1)


def _whole_heads(propagation: Propagation, axes: list[ChannelLabels]) -> list[ChannelLabels]:
    """Heads lie along the batch dimension of a product; nothing goes within one, its size is in the user's code."""
    kept = []
    for axis in axes:
        # Labels along the batch dimension are heads, whatever the view of a sequence of one token looked like.
        within = axis.dims if axis.single_head and 0 not in axis.dims else axis.dims[1:]
        rest = pin_dims(axis, within, propagation.union_find, "is a position within an attention head")
        if rest is not None:
            kept.append(rest)
    propagation.heads += [axis.labels for axis in kept if 0 in axis.dims]
    return kept


def _place(axis: ChannelLabels, letters: str, out_letters: str) -> ChannelLabels:
    """The axis with its dimensions where the result has them; it does not vary along those that the result lacks."""
    if letters == out_letters:
        return axis
    labels, order = axis.labels, [letters.index(letter) for letter in out_letters if letter in letters]
    shape = [labels.shape[letters.index(letter)] if letter in letters else 1 for letter in out_letters]
    if len(axis.dims) > 1:
        labels = labels.permute(*order, *[dim for dim in range(len(letters)) if dim not in order])
    return axis.moved(labels.reshape(shape))


def _paths(
    propagation: Propagation,
    tensors: Sequence[Tensor],
    spec: Einsum,
    weight: Tensor | None,
    bias: Tensor | None,
    scaled: bool,
) -> Paths:
    """The layer that the product is, recorded; the paths of its result."""
    added = propagation.producer_paths([bias] if bias is not None else [], Step(StepKind.SUM))
    if weight is None:
        # Positions are added up with weights that the other factor holds, if not channels themselves.
        return {**added, **propagation.producer_paths(tensors, Step(StepKind.POSITIONS, (None,)))}
    side = 1 if weight is tensors[1] else 0
    own, other = spec.operands[side], spec.operands[1 - side]
    new = [letter for letter in own if letter in spec.out and letter not in other]
    into = own.index(spec.summed) if len(spec.summed) == 1 else None
    out = own.index(new[0]) if len(new) == 1 else None
    made = propagation.record_layer(weight, into, out, tensors[1 - side], bias=bias, scaled=scaled)
    return {**added, **made}
