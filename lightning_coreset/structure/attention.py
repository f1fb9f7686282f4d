"""``nn.MultiheadAttention`` while a network is followed.

Its ``in_proj_weight`` holds the weights of queries, keys and values, one below the other. A slice would tie equal
positions of the three, as code with fixed sizes does. In ``NarrowAttention``, which the module may become, no size is
fixed: so the three are followed as if they were parameters of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_coreset.module_specs import NarrowAttention, module_spec
from lightning_coreset.structure.labels import TensorInfo
from lightning_coreset.structure.propagation import Propagation


@contextmanager
def followed_attention(model: nn.Module, engine: Propagation) -> Iterator[None]:
    """In the block, every ``nn.MultiheadAttention`` that may be pruned runs operations that the engine can follow."""
    modules = [
        module
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention) and module_spec(module).reason(module) is None
    ]
    try:
        for module in modules:
            vars(module)["forward"] = _forward(module, engine)
        yield
    finally:
        for module in modules:
            vars(module).pop("forward", None)


def _forward(module: nn.MultiheadAttention, engine: Propagation) -> Callable[..., tuple[Tensor, Tensor | None]]:
    weights, biases = _weights(module, engine), _biases(module, engine)

    def forward(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        inputs = (query, key, value)
        q, k, v = (F.linear(*operands) for operands in zip(inputs, weights, biases, strict=True))
        return NarrowAttention.attend(
            module, q, k, v, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
        )

    return forward


def _weights(module: nn.MultiheadAttention, engine: Propagation) -> list[Tensor]:
    if module.in_proj_weight is None:
        return [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
    return _parts(engine, module.in_proj_weight, module.out_proj.weight.shape[1])


def _biases(module: nn.MultiheadAttention, engine: Propagation) -> list[Any]:
    if module.in_proj_bias is None:
        return [None, None, None]
    return _parts(engine, module.in_proj_bias, module.out_proj.weight.shape[1])


def _parts(engine: Propagation, parameter: Tensor, values: int) -> list[Tensor]:
    """The rows of queries, keys and values, each of which carries the labels of these rows only."""
    info, queries = engine.info(parameter), (parameter.shape[0] - values) // 2
    parts = parameter.detach().split([queries, queries, values])
    for part, first in zip(parts, (0, queries, 2 * queries), strict=True):
        axes = [
            axis.with_labels(axis.labels.narrow(0, first, part.shape[0])) if 0 in axis.dims else axis
            for axis in info.channel_labels
        ]
        engine.set_info(part, TensorInfo(tuple(axes), constant=True))
    return list(parts)
