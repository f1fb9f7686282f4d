"""What modules have to update after surgery beside their sizes, by the ``settle`` of their ``ModuleSpec``."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from torch import nn

from lightning_coreset.module_specs import module_spec
from lightning_coreset.surgery.model_shapes import original_shapes


def settling(model: nn.Module, replaced: Collection[int]) -> list[Callable[[], None]]:
    """What to call once the tensors with these ids were replaced and the sizes of modules updated."""
    waiting = [
        (f"{path}." if path else "", module, settle)
        for path, module in model.named_modules()
        if (settle := module_spec(module).settle) is not None
        and any(id(tensor) in replaced for tensor in (*module.parameters(), *module.buffers()))
    ]
    original = original_shapes(model).sizes if waiting else {}
    return [
        partial(settle, module, {name: original[prefix + name] for name in vars(module) if prefix + name in original})
        for prefix, module, settle in waiting
    ]
