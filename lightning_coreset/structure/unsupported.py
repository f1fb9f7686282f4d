"""Parameters that may not change, whatever the network does with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from lightning_coreset._compat import own_buffers, own_parameters, weight_norms
from lightning_coreset.module_specs import module_spec


def unsupported_parameters(model: nn.Module) -> dict[str, str]:
    """Qualified names of parameters and buffers that may not change, each with the reason."""
    unsupported: dict[str, str] = {}
    for prefix, module in model.named_modules():
        reason, whole = module_spec(module).reason(module), True
        if isinstance(module, torch.jit.ScriptModule):
            reason = "belongs to a TorchScript module, whose code has its sizes (only Python modules are pruned)"
        if reason is None:
            reason, whole = _reason_of_state(module), _has_foreign_parametrization(module)
        if reason is None:
            continue
        for name, _ in (*module.named_parameters(recurse=whole), *module.named_buffers(recurse=whole)):
            unsupported[f"{prefix}.{name}" if prefix else name] = reason
    return unsupported


def _reason_of_state(module: nn.Module) -> str | None:
    """Why the parameters of a module of any type may not change as they are now."""
    if _has_foreign_parametrization(module):
        return "is parametrized (remove the parametrization first: torch.nn.utils.parametrize.remove_parametrizations)"
    own = own_parameters(module)
    if any(name.endswith("_orig") and f"{name[:-5]}_mask" in own_buffers(module) for name in own):
        return "carries a pruning mask (make it permanent first: torch.nn.utils.prune.remove)"
    if "weight_orig" in own:
        return "has an old-style spectral_norm (remove it first: torch.nn.utils.remove_spectral_norm)"
    return None


def _has_foreign_parametrization(module: nn.Module) -> bool:
    """Whether a tensor of a module is computed in another way than by ``weight_norm``, which surgery knows."""
    if not parametrize.is_parametrized(module):
        return False
    chains: Any = module.parametrizations
    return any(name not in weight_norms(module) for name in chains)
