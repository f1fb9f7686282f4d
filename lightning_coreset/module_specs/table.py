"""The types of modules that the package knows by itself: torch's, and GPT-2's ``Conv1D`` of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_coreset._compat import BatchOrInstanceNorm, Convolution, Dropout, InstanceNorm
from lightning_coreset.module_specs.attention import (
    attention_head_widths,
    attention_sizes,
    settle_attention,
    unsupported_attention,
)
from lightning_coreset.module_specs.spec import ModuleSpec, Shape


def _convolution_sizes(attributes: Mapping[str, Any], shape: Shape) -> dict[str, int]:
    groups, transposed, (first, second) = attributes["groups"], attributes["transposed"], shape[:2]
    if groups > 1 and groups == attributes["in_channels"]:  # depthwise: its groups are its channels
        multiplier = attributes["out_channels"] // groups
        groups = first if transposed else first // multiplier
        return {"groups": groups, "in_channels": groups, "out_channels": groups * multiplier}
    if transposed:
        return {"in_channels": first, "out_channels": second * groups}
    return {"in_channels": second * groups, "out_channels": first}


def _convolution_shape(attributes: Mapping[str, Any]) -> Shape | None:
    inputs, outputs, groups = attributes["in_channels"], attributes["out_channels"], attributes["groups"]
    if groups < 1 or inputs % groups or outputs % groups:
        return None
    channels = (inputs, outputs // groups) if attributes["transposed"] else (outputs, inputs // groups)
    return (*channels, *attributes["kernel_size"])


def _group_norm_sizes(attributes: Mapping[str, Any], shape: Shape) -> dict[str, int]:
    channels, groups = attributes["num_channels"], attributes["num_groups"]
    # Every group keeps its number of channels, but a single one is a norm over all of them.
    return {"num_channels": shape[0], "num_groups": shape[0] * groups // channels if groups > 1 else groups}


def _group_norm_shape(attributes: Mapping[str, Any]) -> Shape | None:
    channels, groups = attributes["num_channels"], attributes["num_groups"]
    return None if groups < 1 or channels % groups else (channels,)


def _for_each(kinds: Any, spec: ModuleSpec) -> dict[type[nn.Module], ModuleSpec]:
    """The same spec for a base class, or for each of the public classes that stand in for one (nested tuples)."""
    if isinstance(kinds, tuple):
        return {kind: spec for part in kinds for kind in _for_each(part, spec)}
    return {kinds: spec}


def _recurrent_spec(gates: int | None, suffix: str) -> ModuleSpec:
    """Layers of recurrent units, whose ``gates`` lie one below the other in every weight.

    Args:
        gates: How many there are; ``None`` where the module's ``mode`` says so.
        suffix: What the names of the first layer's weights end with.
    """

    def of(attributes: Mapping[str, Any]) -> int:
        return gates or {"LSTM": 4, "GRU": 3}.get(attributes["mode"], 1)

    def sizes(attributes: Mapping[str, Any], shape: Shape) -> dict[str, int]:
        return {"input_size": shape[1], "hidden_size": shape[0] // of(attributes)}

    def expected(attributes: Mapping[str, Any]) -> Shape:
        return of(attributes) * attributes["hidden_size"], attributes["input_size"]

    return ModuleSpec(
        tensor=f"weight_ih{suffix}",
        sizes=sizes,
        expected_shape=expected,
        other_sizes={} if gates else {"proj_size": ("weight_hr_l0", 0)},
        is_layer=True,
        always_eval=not gates,  # between its layers it may have dropout
        settle=None if gates else _flatten,
    )


def _flatten(module: nn.Module, _: Mapping[str, Any]) -> None:
    """CUDA's functions take the weights of all layers as one block of memory."""
    module.flatten_parameters()  # type: ignore[operator]


_CONVOLUTION = ModuleSpec(
    sizes=_convolution_sizes,
    expected_shape=_convolution_shape,
    width="out_channels",
    groups="groups",
    is_layer=True,
    reads="patches",
)
_NORM: dict[str, Any] = {
    "tensor": ("weight", "running_mean"),
    "sizes": {"num_features": 0},
    "width": "num_features",
    "running_stats": ("running_mean", "running_var"),
    "always_eval": True,
}
_SHAPED_NORM = ModuleSpec(
    tensor=("weight", "bias"),
    sizes={"normalized_shape": ...},
    width="normalized_shape",
    input_sizes={"normalized_shape[0]": -1},  # channels of a norm over several dimensions stay
)
_EMBEDDING = ModuleSpec(sizes={"num_embeddings": 0, "embedding_dim": 1}, is_layer=True, reads="indices")
_QUANTIZED = ModuleSpec(unsupported="is quantised (prune before quantising)")

TABLE: dict[type[nn.Module] | str, ModuleSpec] = {
    nn.Linear: ModuleSpec(sizes={"out_features": 0, "in_features": 1}, width="out_features", is_layer=True),
    nn.Bilinear: ModuleSpec(
        sizes={"out_features": 0, "in1_features": 1, "in2_features": 2}, width="out_features", is_layer=True
    ),
    **_for_each(Convolution, _CONVOLUTION),
    nn.Embedding: _EMBEDDING,
    nn.EmbeddingBag: _EMBEDDING,
    "*.Conv1D": ModuleSpec(sizes={"nf": 1, "nx": 0}, width="nf", is_layer=True),  # a Linear with a transposed weight
    **_for_each(BatchOrInstanceNorm, ModuleSpec(**_NORM)),
    # Their sizes follow the input where they have no tensor, for they raise or warn if the two differ.
    **_for_each(InstanceNorm, ModuleSpec(**_NORM, input_sizes={"num_features": 1})),
    nn.InstanceNorm1d: ModuleSpec(**_NORM, input_sizes={"num_features": -2}),
    nn.InstanceNorm2d: ModuleSpec(**_NORM, input_sizes={"num_features": -3}),
    nn.InstanceNorm3d: ModuleSpec(**_NORM, input_sizes={"num_features": -4}),
    nn.GroupNorm: ModuleSpec(
        sizes=_group_norm_sizes, expected_shape=_group_norm_shape, width="num_channels", groups="num_groups"
    ),
    nn.LayerNorm: _SHAPED_NORM,
    nn.RMSNorm: _SHAPED_NORM,
    nn.PReLU: ModuleSpec(sizes={"num_parameters": 0}, width="num_parameters"),
    **_for_each(Dropout, ModuleSpec(always_eval=True)),
    nn.RNNBase: _recurrent_spec(None, "_l0"),
    nn.LSTMCell: _recurrent_spec(4, ""),
    nn.GRUCell: _recurrent_spec(3, ""),
    nn.RNNCell: _recurrent_spec(1, ""),
    nn.MultiheadAttention: ModuleSpec(
        tensor=("in_proj_weight", "q_proj_weight"),
        sizes=attention_sizes,
        head_counts=("num_heads",),
        head_widths=attention_head_widths,
        is_layer=True,
        always_eval=True,
        settle=settle_attention,
        unsupported=unsupported_attention,
    ),
    nn.Transformer: ModuleSpec(
        tensor=("encoder.layers.0.self_attn.in_proj_weight", "encoder.layers.0.self_attn.q_proj_weight"),
        sizes={"d_model": 1},
    ),
    "torch.ao.nn.quantized.*": _QUANTIZED,
    "torch.nn.quantized.*": _QUANTIZED,
}
