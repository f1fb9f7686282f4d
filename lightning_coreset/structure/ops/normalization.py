"""Normalisation: weights and running statistics join the channels; statistics over channels keep them together."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lightning_coreset.module_specs import module_spec
from lightning_coreset.structure.labels import ChannelLabels, Statistic, TensorInfo, unite_along
from lightning_coreset.structure.penalties import penalty_of
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule
from lightning_coreset.structure.statistics import note_further_results, take_statistic
from lightning_coreset.structure.steps import Norm, Step, StepKind


def batch_norm(propagation: Propagation, call: OpCall) -> None:
    """Weight, bias and running statistics join the channels they scale."""
    source, out = call.args[0], call.results[0]
    # Statistics run over all other dimensions: a standardised weight's columns lie there.
    others = [dim for dim in range(source.dim()) if dim != 1]
    constant, statistics = propagation.info(source).constant, ()
    if constant and call.arguments.get("running_mean") is None:
        axes, statistics = _standardised(propagation, source)
    else:
        axes = propagation.pin_dims(source, others, "is normalised over")
    channels = propagation.channel_labels(source, 1, "is normalised")
    parts = [call.arguments.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    for part in parts:
        if isinstance(part, Tensor) and part.numel() > 1:
            own = propagation.channel_labels(part, 0, "is a statistic")
            propagation.unite(own, channels, "is normalised by a tensor that cannot be cut")
            channels = own
    names = [propagation.info(part).direct if isinstance(part, Tensor) else None for part in parts]
    norm = Norm(*names, eps=float(call.arguments.get("eps", call.arguments.get("epsilon", 1e-5))))
    opaque = any(isinstance(part, Tensor) and name is None for part, name in zip(parts, names, strict=True))
    # Called with training=True, as a function can be in any mode, it normalises by the batch.
    opaque = opaque or (norm.running_mean is not None and bool(call.arguments.get("training", False)))
    step = Step(StepKind.NORMALIZATION) if opaque else Step(StepKind.BATCH_NORM, norm=norm)
    propagation.record_batch_norm(source, norm)
    paths = propagation.producer_paths([source], step)
    propagation.set_info(out, TensorInfo(axes, constant, producer_paths=paths, statistics=statistics))
    note_further_results(propagation, call)


def _standardised(propagation: Propagation, weight: Tensor) -> tuple[tuple[ChannelLabels, ...], tuple[Statistic, ...]]:
    """The axes of a weight each row of which is normalised, and the statistics over those that lie within rows."""
    axes = propagation.info(weight).channel_labels
    within = [axis for axis in axes if 1 not in axis.dims]
    reason = "is normalised over"
    return axes, tuple(replace(penalty_of(axis, reason), of_weights=True, met=True) for axis in within)


def layer_norm(propagation: Propagation, call: OpCall) -> None:
    """Statistics over the last dimensions: those of channels that stay, if the channels are all that is normalised."""
    source, out = call.args[0], call.results[0]
    count = len(call.arguments["normalized_shape"])
    dims = range(source.dim() - count, source.dim())
    reason = f"is normalised across more than its channels ({call.title})"
    if count == 1:
        axes = _normalize(propagation, call, source.dim() - 1, dims, reason)
    else:
        axes = propagation.pin_dims(source, dims, reason)
        _block_parameters(propagation, call, reason)
    propagation.set_info(
        out, TensorInfo(axes, producer_paths=propagation.producer_paths([source], Step(StepKind.LAYER_NORM)))
    )
    note_further_results(propagation, call)


def _normalize(propagation: Propagation, call: OpCall, dim: int, dims: range, reason: str) -> tuple[ChannelLabels, ...]:
    """Normalise over ``dims``, of which ``dim`` has the channels that the weights scale; returns what is left."""
    source = call.args[0]
    others, normalized = take_statistic(propagation, source, dims, reason)
    propagation.normalized += [axis.flat for axis in normalized]
    axis = next((axis for axis in normalized if axis.dims == (dim,)), None)
    if axis is None:
        _block_parameters(propagation, call, reason)
        return (*others, *normalized)
    for name in ("weight", "bias"):
        part = call.arguments.get(name)
        if isinstance(part, Tensor):
            own = propagation.channel_labels(part, 0, reason)
            propagation.unite(own, axis.flat, "is normalised by a tensor that cannot be cut")
    return (*others, *normalized)


def group_norm(propagation: Propagation, call: OpCall) -> None:
    """Statistics over groups of channels: whole groups may go, if the module's group count is updated with them.

    One group is a LayerNorm over channels and positions.
    """
    source, out = call.args[0], call.results[0]
    groups = int(call.arguments.get("group", call.arguments.get("num_groups", 1)))
    reason = "is normalised over groups of channels"
    weight = call.arguments.get("weight")
    counted = _count_of_groups(propagation, weight)
    if groups == 1:
        axes = _normalize(propagation, call, 1, range(1, source.dim()), reason)
    elif counted is None:
        axes = propagation.pin_dims(source, range(1, source.dim()), reason)
        _block_parameters(propagation, call, reason)
    else:
        propagation.pin_dims(source, range(2, source.dim()), reason)
        channels = propagation.channel_labels(source, 1, reason).clone()
        unite_along(ChannelLabels(channels.unflatten(0, (groups, -1))), [1], propagation.union_find, reason)
        for part in (weight, call.arguments.get("bias")):
            if isinstance(part, Tensor):
                propagation.unite(propagation.channel_labels(part, 0, reason), channels, reason)
        propagation.counts.append((channels, *counted))
        axes = propagation.info(source).channel_labels
    propagation.set_info(
        out, TensorInfo(axes, producer_paths=propagation.producer_paths([source], Step(StepKind.GROUP_NORM)))
    )
    note_further_results(propagation, call)


def _count_of_groups(propagation: Propagation, weight: object) -> tuple[str, str] | None:
    """The module that owns the weight and its attribute that counts groups."""
    name = propagation.info(weight).direct if isinstance(weight, Tensor) else None
    owner = propagation.owners.get(name) if name is not None else None
    counted = module_spec(owner).groups if owner is not None else None
    return None if name is None or counted is None else (name.rpartition(".")[0], counted)


def _block_parameters(propagation: Propagation, call: OpCall, reason: str) -> None:
    for name in ("weight", "bias"):
        if call.arguments.get(name) is not None:
            propagation.block(call.arguments[name], reason)


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "batch_norm"),
            *("cudnn_batch_norm", "_native_batch_norm_legit_functional", "_batch_norm_with_update"),
            *("_batch_norm_no_update", "miopen_batch_norm"),
        ),
        batch_norm,
    ),
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm", "rms_norm", "layer_norm"), layer_norm),
    **dict.fromkeys(("native_group_norm", "group_norm"), group_norm),
}
