"""Contractions: what is summed over is united with the weight's columns; the weight's rows label the result."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from torch import Tensor

from lightning_coreset.module_specs import module_spec
from lightning_coreset.structure.labels import ChannelLabels, TensorInfo, join, pin_dims, varying
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule
from lightning_coreset.structure.records import Step

_INPUT = "contracts a tensor whose size is fixed, such as the network's input"


@dataclass(frozen=True)
class _Spec:
    """A product in einsum notation: ``"nk,km->nm"``.

    Attributes:
        operands: The letters of both operands.
        out: Those of the result.
        summed: Those that are summed over.
    """

    operands: tuple[str, ...]
    out: str
    summed: str

    @classmethod
    @cache
    def of(cls, notation: str) -> _Spec:
        """Read the notation."""
        operands, _, out = notation.partition("->")
        first, second = operands.split(",")
        return cls((first, second), out, "".join(letter for letter in first if letter not in out))


def _contract(
    engine: Propagation, first: Tensor, second: Tensor, notation: str, out: Tensor, bias: Tensor | None
) -> None:
    """A product of two tensors, and a bias that is added."""
    spec = _Spec.of(notation)
    tensors = (first, second)
    weight = next((tensor for tensor in (second, first) if _is_weight(engine.info(tensor))), None)
    kept: list[tuple[set[int], Sequence[ChannelLabels]]] = []
    survivors = [list(engine.info(tensor).channel_labels) for tensor in tensors]
    for letter in spec.summed:
        _sum_over(engine, tensors, [names.index(letter) for names in spec.operands], survivors, weight)
    for tensor, names, axes in zip(tensors, spec.operands, survivors, strict=True):
        placed = [_place(axis, names, spec.out) for axis in axes]
        if tensor is weight:
            placed = [axis if axis.from_layer else replace(axis, from_layer=True) for axis in placed]
        own = varying(tensor, tensor.dim())
        kept.append(({spec.out.index(names[dim]) for dim in own if names[dim] in spec.out}, placed))
    if bias is not None:
        kept.append((varying(bias, out.dim()), engine.info(bias).channel_labels))
    axes = join(kept, out.dim(), engine.union_find, "meets a tensor that cannot be cut in a product")
    trails = _record(engine, tensors, spec, weight, bias)
    terms = math.prod([first.shape[spec.operands[0].index(letter)] for letter in spec.summed])
    engine.count_macs(weight, out.numel() * terms, axes)
    constant = all(engine.info(tensor).constant for tensor in tensors)
    engine.set_info(out, TensorInfo(axes, constant=constant, producer_paths=trails))


def _is_weight(carried: TensorInfo) -> bool:
    """What a layer made of learned queries is as constant as a weight, but an activation."""
    return carried.constant and not carried.producer_paths


def _sum_over(
    engine: Propagation,
    tensors: Sequence[Tensor],
    dims: Sequence[int],
    survivors: list[list[ChannelLabels]],
    weight: Tensor | None,
) -> None:
    """Unite the two operands' labels along the summed dimension; fixed on one side blocks the other."""
    if weight is None:
        _sum_over_activations(engine, tensors, dims, survivors)
        survivors[:] = [_whole_heads(engine, axes) for axes in survivors]
        return
    reason = _INPUT
    labelled = [engine.info(tensor).along(dim) is not None for tensor, dim in zip(tensors, dims, strict=True)]
    if not all(labelled):
        for number, dim in enumerate(dims):
            blocked = [axis for axis in survivors[number] if axis.labels.shape[dim] > 1]
            for axis in blocked:
                engine.union_find.block(axis.labels, reason)
            survivors[number] = [axis for axis in survivors[number] if axis not in blocked]
        return
    first, second = (engine.channel_labels(tensor, dim, reason) for tensor, dim in zip(tensors, dims, strict=True))
    engine.union_find.unite(first, second, reason)
    for number, dim in enumerate(dims):
        survivors[number] = [axis for axis in survivors[number] if axis.labels.shape[dim] == 1]


def _sum_over_activations(
    engine: Propagation, tensors: Sequence[Tensor], dims: Sequence[int], survivors: list[list[ChannelLabels]]
) -> None:
    """Queries times keys: single positions along the summed dimension stay, whole heads may go."""
    for number, (tensor, dim) in enumerate(zip(tensors, dims, strict=True)):
        axis = engine.info(tensor).along(dim)
        if axis is None:
            continue
        survivors[number] = [own for own in survivors[number] if own is not axis]
        rest = pin_dims(axis, [dim], engine.union_find, "is summed over in a product of two activations")
        if rest is not None:
            survivors[number].append(rest)


def _whole_heads(engine: Propagation, axes: list[ChannelLabels]) -> list[ChannelLabels]:
    """Heads lie along the batch dimension of a product; nothing goes within one, its size is in the user's code."""
    reason = "is a position within an attention head"
    kept = [
        pin_dims(axis, axis.dims if axis.single_head else axis.dims[1:], engine.union_find, reason) for axis in axes
    ]
    kept = [axis for axis in kept if axis is not None]
    engine.heads += [axis.labels for axis in kept if 0 in axis.dims]
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


def _record(
    engine: Propagation, tensors: Sequence[Tensor], spec: _Spec, weight: Tensor | None, bias: Tensor | None
) -> dict[str, tuple[Step, ...]]:
    if weight is None:
        return engine.producer_paths(tensors)
    side = 1 if weight is tensors[1] else 0
    own, other = spec.operands[side], spec.operands[1 - side]
    new = [letter for letter in own if letter in spec.out and letter not in other]
    into = own.index(spec.summed) if len(spec.summed) == 1 else None
    out = own.index(new[0]) if len(new) == 1 else None
    name = engine.info(bias).direct if bias is not None else None
    return engine.record_layer(weight, into, out, tensors[1 - side], bias=name)


def product(engine: Propagation, op: OpCall) -> None:
    """``mm``, ``bmm``, ``addmm`` and their kin."""
    arguments = list(op.args)
    bias = arguments.pop(0) if op.name in ("addmm", "baddbmm", "addmv", "addbmm") else None
    spec = {1: {1: "k,k->", 2: "k,km->m"}, 2: {1: "nk,k->n", 2: "nk,km->nm"}, 3: {3: "bnk,bkm->bnm"}}
    first, second = arguments[:2]
    _contract(engine, first, second, spec[first.dim()][second.dim()], op.results[0], bias)


def linear(engine: Propagation, op: OpCall) -> None:
    """``linear``, where it arrives whole."""
    inputs, weight = op.arguments["input"], op.arguments["weight"]
    lead = "abcdefgh"[: inputs.dim() - 1]
    _contract(engine, inputs, weight, f"{lead}k,mk->{lead}m", op.results[0], op.arguments["bias"])


def embedding(engine: Propagation, op: OpCall) -> None:
    """Rows of a table: the vocabulary is fixed, the columns label the result."""
    weight, out = op.arguments["weight"], op.results[0]
    axes = engine.pin_dims(weight, [0], "is a vocabulary")
    placed = [
        replace(axis, labels=axis.labels.reshape((1,) * (out.dim() - 1) + (-1,)), from_layer=True) for axis in axes
    ]
    trails = engine.record_layer(weight, None, 1, None, bias=None)
    engine.set_info(out, TensorInfo(tuple(placed), producer_paths=trails))


def convolution(engine: Propagation, op: OpCall) -> None:
    """Convolutions of any number of dimensions, dense, grouped, depthwise, transposed."""
    inputs, weight, bias = op.arguments["input"], op.arguments["weight"], op.arguments["bias"]
    groups = int(op.arguments["groups"])
    transposed = bool(op.arguments.get("transposed", False))
    out = op.results[0]
    engine.pin_dims(weight, range(2, weight.dim()), "is a kernel position")
    engine.pin_dims(inputs, range(2, inputs.dim()), "is moved over by a convolution")
    engine.count_macs(weight, (inputs if transposed else out).numel() * math.prod(weight.shape[1:]))
    if groups > 1 and groups == inputs.shape[1]:
        labels = _depthwise(engine, inputs, weight, transposed)
        trails = engine.producer_paths([inputs], Step("depthwise", (engine.info(weight).direct or "",)))
    else:
        into, made = (0, 1) if transposed else (1, 0)
        labels = _grouped(engine, inputs, weight, groups, into, made)
        name = engine.info(bias).direct if bias is not None else None
        trails = engine.record_layer(weight, into, made, inputs, bias=name, groups=groups)
    shape = [1] * out.dim()
    shape[1] = out.shape[1]
    if bias is not None:
        engine.union_find.unite(engine.channel_labels(bias, 0, "is a bias"), labels, "has a bias that cannot be cut")
    carried_in = [axis for axis in engine.info(inputs).channel_labels if axis.dims == (0,)]
    engine.set_info(
        out, TensorInfo((*carried_in, ChannelLabels(labels.reshape(shape), from_layer=True)), producer_paths=trails)
    )


def _grouped(engine: Propagation, inputs: Tensor, weight: Tensor, groups: int, into: int, made: int) -> Tensor:
    """The same positions in every group of a grouped convolution go together; one group is the dense case."""
    reason = _INPUT
    columns = engine.channel_labels(weight, into, reason)
    rows = engine.channel_labels(weight, made, reason)
    channels = engine.channel_labels(inputs, 1, reason)
    if groups == 1:
        engine.union_find.unite(columns, channels, reason)
        return rows
    if into == 0:  # transposed: all input channels lie in the weight's first dimension
        per_group = columns.reshape(groups, -1)[0].repeat(groups)
        engine.union_find.unite(columns, per_group, reason)
        rows_of_out = rows.repeat(groups)
    else:
        columns = columns.repeat(groups)
        rows_of_out = rows.reshape(groups, -1)[0].repeat(groups)
        engine.union_find.unite(rows, rows_of_out, reason)
        rows_of_out = rows
    engine.union_find.unite(columns, channels, reason)
    return rows_of_out


def _depthwise(engine: Propagation, inputs: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    """One filter (or several) for each channel: labels pass through."""
    channels = engine.channel_labels(inputs, 1, _INPUT)
    owner = engine.owners.get(engine.info(weight).direct or "")
    counted = None if owner is None else module_spec(owner).groups
    if owner is None or counted is None or not module_spec(owner).updates(counted):
        engine.union_find.block(channels, "passes a depthwise convolution whose group count cannot be updated")
    filters = engine.channel_labels(weight, 0, _INPUT)
    if transposed:
        engine.pin_dims(weight, [1], "is a channel multiplier")
        engine.union_find.unite(filters, channels, _INPUT)
        return channels.repeat_interleave(weight.shape[1])
    multiplied = channels.repeat_interleave(weight.shape[0] // len(channels))
    engine.union_find.unite(filters, multiplied, _INPUT)
    return multiplied


RULES: dict[str, Rule] = {
    **dict.fromkeys(("mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot"), product),
    **dict.fromkeys(("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution"), convolution),
    "linear": linear,
    **dict.fromkeys(("embedding", "_embedding_bag", "_embedding_bag_forward_only"), embedding),
}
