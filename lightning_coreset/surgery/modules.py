"""The sizes that modules remember beside their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lightning_coreset._compat import BatchOrInstanceNorm, Convolution, own_buffers, own_parameters


def update_module_sizes(model: nn.Module, changed: set[int]) -> None:
    """Set the sizes that modules remember to those of their tensors, where these have changed."""
    for module in model.modules():
        own = sizing_tensor(module)
        if own is not None and id(own) in changed:
            vars(module).update(updated_sizes(module, vars(module), tuple(own.shape)))


def sizing_tensor(module: nn.Module) -> Tensor | None:
    """The tensor that a module's sizes follow: its weight, or the statistics of a BatchNorm without one."""
    # Not ``module.weight``: a parametrized one is computed anew, and in training mode that has side effects.
    own = own_parameters(module).get("weight")
    if own is None and isinstance(module, BatchOrInstanceNorm):
        return own_buffers(module).get("running_mean")
    return own


def updated_sizes(module: nn.Module, sizes: Mapping[str, Any], shape: tuple[int, ...]) -> dict[str, int]:
    """The sizes that a module remembers once its weight has another shape; empty if its type is not known.

    Args:
        module: Tells the type only.
        sizes: What it remembers before, by attribute.
        shape: The new shape of its :func:`sizing_tensor`, of as many dimensions as before.
    """
    if isinstance(module, nn.Linear):
        return {"out_features": shape[0], "in_features": shape[1]}
    if isinstance(module, Convolution):
        return _mended_convolution(module.transposed, sizes, *shape[:2])
    if isinstance(module, BatchOrInstanceNorm):
        return {"num_features": shape[0]}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": shape[0], "num_groups": shape[0] * sizes["num_groups"] // sizes["num_channels"]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": shape[0]}
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return {"num_embeddings": shape[0], "embedding_dim": shape[1]}
    if type(module).__name__ == "Conv1D" and "nf" in sizes:  # GPT-2's in transformers, a transposed Linear
        return {"nf": shape[1], **({"nx": shape[0]} if "nx" in sizes else {})}
    return {}


def _mended_convolution(transposed: bool, sizes: Mapping[str, int], first: int, second: int) -> dict[str, int]:
    groups = sizes["groups"]
    if groups > 1 and groups == sizes["in_channels"]:  # depthwise: its groups are its channels
        multiplier = sizes["out_channels"] // groups
        groups = first if transposed else first // multiplier
        return {"groups": groups, "in_channels": groups, "out_channels": groups * multiplier}
    if transposed:
        return {"in_channels": first, "out_channels": second * groups}
    return {"in_channels": second * groups, "out_channels": first}
