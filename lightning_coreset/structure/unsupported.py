"""Layers that are refused by name, whatever the network does with them."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from lightning_coreset._compat import own_buffers, own_parameters


def unsupported_parameters(model: nn.Module) -> dict[str, str]:
    """Qualified names of parameters and buffers that may not change, each with the reason."""
    refused: dict[str, str] = {}
    for prefix, module in model.named_modules():
        reason = _reason(module)
        if reason is None:
            continue
        recurse = parametrize.is_parametrized(module) or isinstance(module, nn.MultiheadAttention)
        for name, _ in (*module.named_parameters(recurse=recurse), *module.named_buffers(recurse=recurse)):
            refused[f"{prefix}.{name}" if prefix else name] = reason
    return refused


def _reason(module: nn.Module) -> str | None:
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return f"belongs to a recurrent {type(module).__name__}, whose weights are not cut"
    if isinstance(module, nn.MultiheadAttention):
        return "belongs to nn.MultiheadAttention, which takes its heads to be as wide together as the model"
    if parametrize.is_parametrized(module):
        return "is parametrized (remove the parametrization first: torch.nn.utils.parametrize.remove_parametrizations)"
    own = own_parameters(module)
    if any(name.endswith("_orig") and f"{name[:-5]}_mask" in own_buffers(module) for name in own):
        return "carries a pruning mask (make it permanent first: torch.nn.utils.prune.remove)"
    if "weight_g" in own or "weight_orig" in own:
        return "has an old-style weight_norm or spectral_norm (remove it first)"
    if type(module).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized")):
        return "is quantised (prune before quantising)"
    return None
