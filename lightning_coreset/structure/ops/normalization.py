"""Normalisation: per-channel statistics pass labels and join them; statistics over channels block."""

from __future__ import annotations

from torch import Tensor

from lightning_coreset.module_specs import module_spec
from lightning_coreset.structure.labels import ChannelLabels, TensorInfo, unite_along
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule
from lightning_coreset.structure.records import Norm, Step


def batch_norm(engine: Propagation, op: OpCall) -> None:
    """Weight, bias and running statistics join the channels they scale."""
    source, out = op.args[0], op.results[0]
    # Statistics run over all other dimensions: a standardised weight's columns lie there.
    axes = engine.pin_dims(source, [dim for dim in range(source.dim()) if dim != 1], "is normalised over")
    channels = engine.channel_labels(source, 1, "is normalised")
    parts = [op.arguments.get(name) for name in ("weight", "bias", "running_mean", "running_var")]
    for part in parts:
        if isinstance(part, Tensor) and part.numel() > 1:
            own = engine.channel_labels(part, 0, "is a statistic")
            engine.union_find.unite(own, channels, "is normalised by a tensor that cannot be cut")
            channels = own
    names = [engine.info(part).direct if isinstance(part, Tensor) else None for part in parts]
    norm = Norm(*names, eps=float(op.arguments.get("eps", op.arguments.get("epsilon", 1e-5))))
    opaque = any(isinstance(part, Tensor) and name is None for part, name in zip(parts, names, strict=True))
    step = Step("normalisation") if opaque else Step("batch_norm", norm=norm)
    engine.record_batch_norm(source, norm)
    constant = engine.info(source).constant
    engine.set_info(out, TensorInfo(axes, constant, producer_paths=engine.producer_paths([source], step)))


def layer_norm(engine: Propagation, op: OpCall) -> None:
    """Statistics over the last dimensions: channels there are pinned, and the weights with them."""
    source, out = op.args[0], op.results[0]
    count = len(op.arguments["normalized_shape"])
    reason = f"is normalised over by aten.{op.name}"
    axes = engine.pin_dims(source, range(source.dim() - count, source.dim()), reason)
    _block_parameters(engine, op, reason)
    engine.set_info(out, TensorInfo(axes, producer_paths=engine.producer_paths([source], Step("layer_norm"))))


def group_norm(engine: Propagation, op: OpCall) -> None:
    """Statistics over groups of channels: whole groups may go, if the module's number of groups can be updated."""
    source, out = op.args[0], op.results[0]
    groups = int(op.arguments.get("group", op.arguments.get("num_groups", 1)))
    reason = "is normalised over groups of channels"
    weight = op.arguments.get("weight")
    counted = _count_of_groups(engine, weight)
    if groups == 1 or counted is None:
        axes = engine.pin_dims(source, range(1, source.dim()), reason)
        _block_parameters(engine, op, reason)
    else:
        engine.pin_dims(source, range(2, source.dim()), reason)
        channels = engine.channel_labels(source, 1, reason).clone()
        unite_along(ChannelLabels(channels.unflatten(0, (groups, -1))), [1], engine.union_find, reason)
        for part in (weight, op.arguments.get("bias")):
            if isinstance(part, Tensor):
                engine.union_find.unite(engine.channel_labels(part, 0, reason), channels, reason)
        engine.counts.append((channels, *counted))
        axes = engine.info(source).channel_labels
    engine.set_info(out, TensorInfo(axes, producer_paths=engine.producer_paths([source], Step("group_norm"))))


def _count_of_groups(engine: Propagation, weight: object) -> tuple[str, str] | None:
    """The module that owns the weight and its attribute that counts groups."""
    name = engine.info(weight).direct if isinstance(weight, Tensor) else None
    owner = engine.owners.get(name) if name is not None else None
    counted = module_spec(owner).groups if owner is not None else None
    return None if name is None or counted is None else (name.rpartition(".")[0], counted)


def _block_parameters(engine: Propagation, op: OpCall, reason: str) -> None:
    for name in ("weight", "bias"):
        if op.arguments.get(name) is not None:
            engine.block(op.arguments[name], reason)


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
