"""How large the file of a model's state dict is, without writing it."""

from __future__ import annotations

import math

from torch import nn

from lightning_coreset._compat import non_persistent_buffers
from lightning_coreset.surgery import all_tensors, original_shapes


def state_sizes(model: nn.Module) -> tuple[int, int]:
    """Bytes of all parameters and buffers in a model's state dict, before any pruning and now.

    A tied tensor counts once, as ``torch.save`` writes it. What the file holds beside tensors is not counted: names,
    and some hundred bytes for each tensor. ``state_dict()`` itself is not called: it may wait for other processes.
    """
    shapes = original_shapes(model).shapes
    left_out = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules(remove_duplicate=False)
        for name in non_persistent_buffers(module)
    }
    original = now = 0
    seen: set[int] = set()
    for name, tensor in all_tensors(model).items():
        if name not in left_out and id(tensor) not in seen:
            seen.add(id(tensor))
            original += math.prod(shapes.get(name, tuple(tensor.shape))) * tensor.element_size()
            now += tensor.numel() * tensor.element_size()
    return original, now
