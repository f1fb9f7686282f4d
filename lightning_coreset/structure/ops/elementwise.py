"""Elementwise operations: channels on the same element are kept or removed together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from lightning_coreset.structure.label_merging import join, varying
from lightning_coreset.structure.labels import ChannelLabels, TensorInfo, unite_along
from lightning_coreset.structure.last_layers import MAKES_THE_LOSS
from lightning_coreset.structure.penalties import penalty_of
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule
from lightning_coreset.structure.statistics import passes_statistics
from lightning_coreset.structure.steps import Step, StepKind
from lightning_coreset.structure.weight_products import vanishes

# They leave no step: the mathematics of a coreset takes them for the identity.
_IDENTITIES = frozenset({"dropout", "native_dropout", "alpha_dropout"})

_RANDOM = frozenset(
    "bernoulli rand_like randn_like uniform normal exponential dropout native_dropout alpha_dropout empty_like".split()
)

_SUMS = frozenset("add sub rsub lerp addcmul addcdiv".split())

_UNARY = frozenset(
    """
relu relu6 gelu silu mish sigmoid tanh hardtanh hardswish hardsigmoid leaky_relu elu celu selu softplus log_sigmoid
log_sigmoid_forward hardshrink softshrink threshold exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal
abs neg sign sgn sin cos tan asin acos atan sinh cosh asinh acosh atanh erf erfc erfinv round floor ceil trunc frac
clamp clamp_min clamp_max nan_to_num isnan isinf isfinite logical_not bitwise_not dropout native_dropout bernoulli
zeros_like ones_like full_like empty_like rand_like randn_like logit sinc i0 digamma lgamma uniform normal exponential
conj_physical angle
""".split()
)

_BINARY = """
add sub rsub mul div pow maximum minimum fmax fmin eq ne lt gt le ge where masked_fill lerp addcmul addcdiv remainder
fmod atan2 copysign xlogy xlog1py logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor _prelu_kernel
__and__ __or__ __xor__ true_divide floor_divide hypot logaddexp heaviside rrelu rrelu_with_noise smooth_l1_loss
mse_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits soft_margin_loss complex polar
""".split()

ELEMENTWISE = (*_UNARY, *_BINARY)
"""The names of all of them."""


@passes_statistics
def elementwise(propagation: Propagation, call: OpCall) -> None:
    """Broadcast the labels and unite them; a fixed value that varies along the channels blocks."""
    follow_elementwise(propagation, call, _step(propagation, call))


def follow_elementwise(propagation: Propagation, call: OpCall, step: Step | None) -> None:
    """The same for an operator that leaves another step."""
    out = call.results[0]
    operands = call.tensors
    reason = f"meets a tensor that cannot be cut ({call.title})"
    axes = _joined(propagation, operands, out, reason)
    propagation.hold_in_views(call, operands[0], axes)
    if call.name in _SUMS:
        propagation.residual.note_sum(operands, axes)
    large = [tensor for tensor in operands if tensor.dim() > 0]
    info = TensorInfo(
        axes,
        constant=all(
            propagation.info(tensor).constant or (tensor in propagation.alike and tensor.shape == out.shape)
            for tensor in large or operands
        ),
        producer_paths=propagation.producer_paths(operands, step),
        uniform=call.name not in _RANDOM and all(propagation.info(tensor).uniform for tensor in operands),
        equal_along=frozenset() if call.name in _RANDOM else _equal_along(propagation, operands, out),
        met=_note_met(propagation, operands, out, axes),
        vanishes=vanishes(map(propagation.info, large), call.name) if large else False,
        factor=_factor(propagation, operands, out) if call.name == "mul" else None,
    )
    info = _updated(propagation, call, info)
    for result in call.results:
        if result.shape == out.shape:
            propagation.set_info(result, info)


def _factor(propagation: Propagation, operands: list[Tensor], out: Tensor) -> TensorInfo | None:
    """The parameter among two operands of a product, with its labels where the result has them."""
    infos = [propagation.info(tensor) for tensor in operands]
    weights = [info for info in infos if info.constant and info.direct is not None]
    if len(infos) != 2 or len(weights) != 1 or any(info.statistics for info in infos):
        return None
    (weight,) = weights
    axes = [
        axis.with_labels(axis.labels.reshape((1,) * (out.dim() - axis.labels.dim()) + axis.labels.shape))
        for axis in weight.channel_labels
    ]
    return weight.with_channel_labels(tuple(axes)) if axes else None


def _joined(propagation: Propagation, operands: list[Tensor], out: Tensor, reason: str) -> tuple[ChannelLabels, ...]:
    own = propagation.info(operands[0])
    # The rows and columns of a weight that is flattened lie along one dimension, and are not united by that.
    constant = own.constant and operands[0].shape == out.shape
    if constant and all(_adds_nothing(propagation, own, other, out) for other in operands[1:]):
        return own.channel_labels
    ndim = out.dim()
    return join(
        [
            (propagation.varying(one, ndim), (*propagation.info(one).channel_labels, *_met(propagation, one)))
            for one in operands
        ],
        ndim,
        propagation.union_find,
        reason,
    )


def _met(propagation: Propagation, tensor: Tensor) -> list[ChannelLabels]:
    """The labels that a tensor, or one that it is made of, has met where its elements are equal."""
    equal = _equal_dims(propagation, tensor)
    return [axis for dims, axis in propagation.info(tensor).met.items() if equal.issuperset(dims)]


def _equal_dims(propagation: Propagation, tensor: Tensor) -> set[int]:
    """The dimensions, counted from the last one, along which a tensor of size has equal elements."""
    ndim = tensor.dim()
    return {dim - ndim for dim in varying(tensor, ndim) - propagation.varying(tensor, ndim)}


def _equal_along(propagation: Propagation, operands: Iterable[Tensor], out: Tensor) -> frozenset[int]:
    """The dimensions along which a result is equal only because a uniform operand is, such as zeros for all heads."""
    infos = [propagation.info(tensor) for tensor in operands]
    if all(info.uniform for info in infos) or not any(info.uniform or info.equal_along for info in infos):
        return frozenset()
    varied = set[int]().union(*(propagation.varying(tensor, out.dim()) for tensor in operands))
    return frozenset({dim for dim, size in enumerate(out.shape) if size > 1} - varied)


def _note_met(
    propagation: Propagation, operands: Iterable[Tensor], out: Tensor, axes: Iterable[ChannelLabels]
) -> dict[tuple[int, ...], ChannelLabels]:
    """Note in operands with equal elements which labels they meet there; the notes that the result shares with them."""
    shared: dict[tuple[int, ...], ChannelLabels] | None = None
    for tensor in operands:
        info, equal = propagation.info(tensor), _equal_dims(propagation, tensor)
        if not equal:
            continue
        shared = info.met if shared is None else shared
        for axis in axes:
            dims = tuple(dim - out.dim() for dim in axis.dims)
            if equal.issuperset(dims):
                info.met[dims] = axis.with_labels(axis.labels.reshape(axis.labels.shape[out.dim() - tensor.dim() :]))
    return {} if shared is None else shared


def _adds_nothing(propagation: Propagation, own: TensorInfo, other: Tensor, out: Tensor) -> bool:
    """Whether the labels of another operand are those of the first, wherever it varies."""
    if other in propagation.alike and other.shape == out.shape:
        return True  # the trial tells whether the code makes a smaller one for what is left
    roots, info = propagation.union_find.roots, propagation.info(other)
    known = [
        axis
        for axis in info.channel_labels
        if any(
            other.dim() == out.dim() and one.dims == axis.dims and torch.equal(roots(one.labels), roots(axis.labels))
            for one in own.channel_labels
        )
    ]
    labelled = {dim for axis in known for dim in axis.dims}
    return (
        info.constant and len(known) == len(info.channel_labels) and propagation.varying(other, out.dim()) <= labelled
    )


def _updated(propagation: Propagation, call: OpCall, info: TensorInfo) -> TensorInfo:
    """A parameter and an update of it are this parameter still; what is made of updates alone is one."""
    infos = [propagation.info(tensor) for tensor in call.tensors if tensor.dim() > 0]
    others = [one for one in infos if not one.update]
    if not info.constant or len(others) == len(infos):
        return info
    if not others:
        return replace(info, update=True, producer_paths={})
    if call.name not in ("add", "sub", "rsub", "addcmul", "addcdiv") or len(others) > 1 or others[0].direct is None:
        return info
    return replace(info, direct=others[0].direct, producer_paths={})


def _step(propagation: Propagation, call: OpCall) -> Step | None:
    if call.name in _IDENTITIES:
        return None
    if call.name in ("add", "sub") and _joins_layers(propagation, call.tensors):
        return Step(StepKind.SUM)
    if len(call.tensors) > 1 and call.name in _UNARY:
        # clamp(x, max=tensor): no activation, which is known by numbers alone.
        return Step(call.function.name())
    return Step(call.name, call.numbers)


def _joins_layers(propagation: Propagation, operands: Iterable[Tensor]) -> bool:
    """Whether channels of different layers meet."""
    infos = [info for info in map(propagation.info, operands) if info.channel_labels and not info.constant]
    return len({frozenset(info.producer_paths) for info in infos}) > 1


def _same_shape_loss(propagation: Propagation, call: OpCall) -> None:
    """Losses are element-wise only without a reduction."""
    if call.results[0].dim() == 0:
        _reduced_loss(propagation, call)
    else:
        elementwise(propagation, call)


def _reduced_loss(propagation: Propagation, call: OpCall) -> None:
    """The elements of parameters that are compared go together; all others stay."""
    operands = call.tensors
    if not all(propagation.info(tensor).constant for tensor in operands):
        propagation.refuse(call, MAKES_THE_LOSS)
        return
    merged = _joined(propagation, operands, operands[0], f"meets a tensor that cannot be cut ({call.title})")
    penalties = tuple(penalty_of(axis, f"is reduced across channels ({call.title})") for axis in merged)
    propagation.set_info(call.results[0], TensorInfo(constant=True, statistics=penalties))


def glu(propagation: Propagation, call: OpCall) -> None:
    """The value and its gate go together."""
    source, out = call.args[0], call.results[0]
    dim = int(call.arguments["dim"]) % source.dim()
    axes = []
    for axis in propagation.info(source).channel_labels:
        labels = axis.labels
        if labels.shape[dim] > 1:
            folded = labels.unflatten(dim, (2, -1))
            unite_along(ChannelLabels(folded), [dim], propagation.union_find, "is gated")
            labels = labels.narrow(dim, 0, out.shape[dim])
        axes.append(axis.with_labels(labels))
    propagation.set_info(
        out, TensorInfo(tuple(axes), producer_paths=propagation.producer_paths([source], Step(StepKind.GLU)))
    )


def _is_loss(name: str) -> bool:
    return name.endswith("_loss") or name.startswith("binary_cross_entropy")


RULES: dict[str, Rule] = {
    **{name: _same_shape_loss if _is_loss(name) else elementwise for name in ELEMENTWISE},
    "glu": glu,
}
