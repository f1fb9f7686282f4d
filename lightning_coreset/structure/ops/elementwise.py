"""Element-wise operations: what lies on the same element lives and dies together."""

from __future__ import annotations

from lightning_coreset.structure.labels import ChannelLabels, TensorInfo, join, unite_along, varying
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule
from lightning_coreset.structure.records import Step

# Leave no step on the trail: they are the identity in the mathematics of a coreset.
_IDENTITIES = frozenset({"dropout", "native_dropout", "alpha_dropout", "zeros_like", "ones_like", "bernoulli"})

_UNARY = """
relu relu6 gelu silu mish sigmoid tanh hardtanh hardswish hardsigmoid leaky_relu elu celu selu softplus log_sigmoid
log_sigmoid_forward hardshrink softshrink threshold exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal
abs neg sign sgn sin cos tan asin acos atan sinh cosh asinh acosh atanh erf erfc erfinv round floor ceil trunc frac
clamp clamp_min clamp_max nan_to_num isnan isinf isfinite logical_not bitwise_not dropout native_dropout bernoulli
zeros_like ones_like full_like empty_like rand_like randn_like logit sinc i0 digamma lgamma uniform normal exponential
""".split()

_BINARY = """
add sub rsub mul div pow maximum minimum fmax fmin eq ne lt gt le ge where masked_fill lerp addcmul addcdiv remainder
fmod atan2 copysign xlogy xlog1py logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor _prelu_kernel
prelu __and__ __or__ __xor__ true_divide floor_divide hypot logaddexp heaviside rrelu rrelu_with_noise smooth_l1_loss
mse_loss huber_loss
""".split()


def elementwise(engine: Propagation, op: OpCall) -> None:
    """Broadcast the labels and unite them; a fixed value that varies along the channels blocks."""
    out = op.results[0]
    operands = op.tensors
    reason = f"meets a tensor that cannot be cut in aten.{op.name}"
    axes = join(
        [(varying(tensor, out.dim()), engine.info(tensor).channel_labels) for tensor in operands],
        out.dim(),
        engine.union_find,
        reason,
    )
    if op.inplace and {axis.dims for axis in axes} != {axis.dims for axis in engine.info(op.args[0]).channel_labels}:
        # The tensor may be a view: what it views would not learn of the new labels.
        for axis in axes:
            engine.union_find.block(axis.labels, f"is written in place by aten.{op.name}")
    carried = TensorInfo(
        axes,
        constant=all(engine.info(tensor).constant for tensor in operands if tensor.dim() > 0),
        producer_paths=engine.producer_paths(operands, _step(engine, op)),
    )
    for result in op.results:
        if result.shape == out.shape:
            engine.set_info(result, carried)


def _step(engine: Propagation, op: OpCall) -> Step | None:
    if op.name in _IDENTITIES:
        return None
    labelled = [carried for carried in map(engine.info, op.tensors) if carried.channel_labels and not carried.constant]
    if op.name in ("add", "sub") and len({frozenset(carried.producer_paths) for carried in labelled}) > 1:
        return Step("sum")  # of different layers' channels, as on a residual stream
    return Step(op.name, op.numbers)


def _same_shape_loss(engine: Propagation, op: OpCall) -> None:
    """Losses are element-wise only without a reduction."""
    if op.results[0].dim() == 0:
        engine.refuse(op, "reaches a loss")
    else:
        elementwise(engine, op)


def glu(engine: Propagation, op: OpCall) -> None:
    """The value and its gate go together."""
    source, out = op.args[0], op.results[0]
    dim = int(op.arguments["dim"]) % source.dim()
    axes = []
    for axis in engine.info(source).channel_labels:
        labels = axis.labels
        if labels.shape[dim] > 1:
            folded = labels.unflatten(dim, (2, -1))
            unite_along(ChannelLabels(folded), [dim], engine.union_find, "is gated")
            labels = labels.narrow(dim, 0, out.shape[dim])
        axes.append(axis.with_labels(labels))
    engine.set_info(out, TensorInfo(tuple(axes), producer_paths=engine.producer_paths([source], Step("glu"))))


def _is_loss(name: str) -> bool:
    return name.endswith("_loss")


RULES: dict[str, Rule] = {
    **{name: _same_shape_loss if _is_loss(name) else elementwise for name in (*_UNARY, *_BINARY)},
    "glu": glu,
}
