"""Transformers narrowed by Torch-Pruning, as its examples do it: heads are named, and head counts mended afterwards.

pip install torch-pruning==1.6.1
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch_pruning as tp
from torch import Tensor, nn

IMPORTANCES: dict[str, Callable[[], tp.importance.Importance]] = {
    "Torch-Pruning, magnitude": lambda: tp.importance.MagnitudeImportance(p=2, group_reduction="first"),
    "Torch-Pruning, group norm": lambda: tp.importance.GroupMagnitudeImportance(p=2),
}
QUERIES = ("query", "q_proj", "q_lin", "q")
OTHERS = ("key", "k_proj", "k_lin", "k", "value", "v_proj", "v_lin", "v")
HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads")
WIDTHS = ("all_head_size", "inner_dim", "embed_dim", "dim")


def prune(
    model: nn.Module, inputs: Any, ratio: float, kept: Collection[nn.Module], name: str = "Torch-Pruning, group norm"
) -> None:
    """Remove a fraction of all channels and heads, in place.

    Args:
        model: The network.
        inputs: How to run it: positional, or by keyword.
        ratio: The fraction that goes.
        kept: Layers whose outputs stay.
        name: Which of its importances ranks channels.
    """
    attentions = dict(attentions_of(model))
    heads = {layer: count for own in attentions.values() for layer, count in own.items()}
    pruner = tp.pruner.BasePruner(
        model, inputs, IMPORTANCES[name](), pruning_ratio=ratio, ignored_layers=[*kept], num_heads=heads,
        prune_num_heads=True, prune_head_dims=False, head_pruning_ratio=ratio, output_transform=output_of,
    )  # fmt: skip
    before = {layer: layer.out_features for layer in heads}
    pruner.step()
    for attention, own in attentions.items():
        first = next(iter(own))
        for attribute in HEAD_COUNTS:
            if getattr(attention, attribute, None) == own[first]:
                setattr(attention, attribute, pruner.num_heads[first])
        for attribute in WIDTHS:
            if getattr(attention, attribute, None) == before[first]:
                setattr(attention, attribute, first.out_features)


def attentions_of(model: nn.Module) -> Iterator[tuple[nn.Module, dict[nn.Linear, int]]]:
    """Attention modules with their projections, the queries' first, each with its number of heads."""
    for module in model.modules():
        children = dict(module.named_children())
        first = next((children[name] for name in QUERIES if isinstance(children.get(name), nn.Linear)), None)
        if first is None:
            continue
        config = getattr(module, "config", None)
        count = next((getattr(one, name) for one in (module, config) for name in HEAD_COUNTS if hasattr(one, name)), 0)
        if count:
            size = first.out_features // count
            layers = [first, *(children[name] for name in OTHERS if isinstance(children.get(name), nn.Linear))]
            yield module, {layer: layer.out_features // size for layer in layers}


def output_of(found: Any) -> Tensor:
    """One tensor of what a model returns: the logits of a model of ``transformers``."""
    if isinstance(found, Tensor):
        return found
    logits = [value for name, value in found.items() if "logits" in name]
    return logits[0]
