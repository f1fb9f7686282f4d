"""Reductions, pooling and softmax: labels over the other dimensions pass; those along a reduced one mostly stay.

A mean, a variance or a norm over channels may be there to normalise them, see ``statistics.py``.
"""

from __future__ import annotations

import math

from torch import Tensor

from lightning_coreset.structure.labels import ChannelLabels, Statistic, TensorInfo
from lightning_coreset.structure.loss_terms import REDUCTIONS
from lightning_coreset.structure.ops.elementwise import elementwise
from lightning_coreset.structure.penalties import take_penalty
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule
from lightning_coreset.structure.statistics import take_statistic
from lightning_coreset.structure.steps import Step, StepKind

_REDUCING = """
mean sum nansum amax amin aminmax var std var_mean std_mean prod all any _is_all_true _is_any_true norm
linalg_vector_norm argmax argmin logsumexp median nanmedian mode kthvalue count_nonzero
""".split()

_ALONG = """
_softmax _log_softmax softmax log_softmax _safe_softmax cumsum cumprod logcumsumexp cummax cummin sort argsort topk
""".split()

_MAXIMA = """
max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d
adaptive_max_pool3d mkldnn_max_pool2d
""".split()

_SPATIAL = """
avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d
upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d
_upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d
_upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d reflection_pad3d
replication_pad1d replication_pad2d replication_pad3d grid_sampler_2d grid_sampler_3d
""".split()

_GRID_BICUBIC = 2
"""What ``grid_sampler`` calls bicubic interpolation."""


def reduce(propagation: Propagation, call: OpCall) -> None:
    """The reduced dimensions are pinned, unless the result can normalise them; the axes over the others go on."""
    source = call.args[0]
    dims = call.dims("dim", source.dim())
    reason = f"is reduced across channels ({call.title})"
    if call.name == "sum" and _reads_channels(propagation, source, dims):
        _contract(propagation, call, dims)
        return
    if propagation.info(source).constant:
        norm = call.name in ("norm", "linalg_vector_norm")
        axes, statistics = take_penalty(
            propagation, source, dims, reason, of_weights=call.name in REDUCTIONS, norm=norm
        )
    elif call.name in REDUCTIONS:
        axes, normalized = take_statistic(propagation, source, dims, reason)
        statistics = tuple(
            Statistic(axis.flat, reason, sums=call.name == "sum", joins_loss=True) for axis in normalized
        )
    else:
        axes, statistics = propagation.pin_dims(source, dims, reason), ()
    if statistics:
        step = Step(StepKind.NORMALIZATION)
    elif call.name == "mean":
        step = None
    elif call.name == "sum":
        step = positions(math.prod(source.shape[dim] for dim in dims))
    elif call.name in ("amax", "max"):
        step = Step(StepKind.MAX_POOL)
    else:
        step = Step(call.name)
    for result in call.results:
        kept = tuple(_without(axis, dims, result) for axis in axes)
        propagation.set_info(
            result,
            TensorInfo(
                kept,
                propagation.info(source).constant,
                producer_paths=propagation.producer_paths([source], step),
                statistics=statistics,
            ),
        )


def extremum(propagation: Propagation, call: OpCall) -> None:
    """``max`` and ``min``: over dimensions, or of two tensors element by element."""
    if "other" in call.arguments:
        elementwise(propagation, call)
    else:
        reduce(propagation, call)


def _reads_channels(propagation: Propagation, source: Tensor, dims: list[int]) -> bool:
    """Whether a sum is over the channels of a product with a parameter, as graph attention computes its scores."""
    info = propagation.info(source)
    summed = [axis for axis in info.channel_labels if not set(dims).isdisjoint(axis.dims)]
    factor = info.factor
    return (
        bool(summed)
        and not info.constant
        and factor is not None
        and all(len(axis.dims) == 1 and factor.along(axis.dims[0]) is not None for axis in summed)
    )


def _contract(propagation: Propagation, call: OpCall, dims: list[int]) -> None:
    """What is summed over are columns of the parameter; the axes along other dimensions go on."""
    source = call.args[0]
    info = propagation.info(source)
    kept, paths = [], {}
    for axis in info.channel_labels:
        if set(dims).isdisjoint(axis.dims):
            kept.append(_without(axis, dims, call.results[0]))
        else:
            paths |= propagation.record_product(source, axis.dims[0])
    propagation.set_info(call.results[0], TensorInfo(tuple(kept), producer_paths=paths))


def _without(axis: ChannelLabels, dims: list[int], result: Tensor) -> ChannelLabels:
    labels = axis.labels
    if result.dim() < labels.dim():
        labels = labels.reshape([size for dim, size in enumerate(labels.shape) if dim not in dims])
    return axis.with_labels(labels)


def mix_along_dim(propagation: Propagation, call: OpCall) -> None:
    """Operations that mix what lies along ``dim`` and keep the shape: softmax, cumulative sums, sorting."""
    source = call.args[0]
    dims = call.dims("dim", source.dim())
    if propagation.info(source).constant:
        axes, penalties = take_penalty(propagation, source, dims, f"is mixed across channels ({call.title})")
        info = TensorInfo(axes, constant=True, statistics=penalties)
    else:
        axes = propagation.pin_dims(source, dims, f"is mixed across channels ({call.title})")
        info = TensorInfo(axes, producer_paths=propagation.producer_paths([source], Step(call.name)))
    for result in call.results:
        propagation.set_info(result, info)


def pool(propagation: Propagation, call: OpCall) -> None:
    """Pooling, resampling and reflecting: channels pass, positions are pinned, and so is a grid of them."""
    source = call.args[0]
    for grid in call.tensors[1:]:
        propagation.block(grid, f"says where values are taken from ({call.title})")
        propagation.pin_dims(source, [0], f"has a grid of positions of its own ({call.title})")
    count = next(int(letter) for letter in call.name if letter in "123")
    dims = range(source.dim() - count, source.dim())
    axes = propagation.pin_dims(source, dims, f"is resampled ({call.title})")
    step = Step(StepKind.MAX_POOL) if call.name in _MAXIMA else _resampling(call, count)
    for result in call.results:
        propagation.set_info(result, TensorInfo(axes, producer_paths=propagation.producer_paths([source], step)))


def positions(gain: float | None) -> Step | None:
    """The step of a sum of positions whose weights add up to ``gain``; an average is none."""
    return None if gain == 1 else Step(StepKind.POSITIONS, (gain,))


def _resampling(call: OpCall, count: int) -> Step | None:
    """The step of a pooling or resampling over ``count`` dimensions: none for averages and interpolation."""
    divisor = call.arguments.get("divisor_override")
    if divisor is not None:
        kernel = call.arguments["kernel_size"]
        size = kernel[0] ** count if len(kernel) == 1 else math.prod(kernel)
        return positions(size / divisor if divisor > 0 else None)
    # Bicubic weights are negative in places.
    cubic = "bicubic" in call.name or call.arguments.get("interpolation_mode") == _GRID_BICUBIC
    return positions(None if cubic else 1)


RULES: dict[str, Rule] = {
    **dict.fromkeys(_REDUCING, reduce),
    **dict.fromkeys(("max", "min"), extremum),
    **dict.fromkeys(_ALONG, mix_along_dim),
    **dict.fromkeys((*_MAXIMA, *_SPATIAL), pool),
}
