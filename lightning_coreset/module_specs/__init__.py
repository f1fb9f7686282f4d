"""What the package knows about types of modules, in one table that users can add to."""

from __future__ import annotations

from lightning_coreset.module_specs.attention import NarrowAttention
from lightning_coreset.module_specs.registry import module_spec, register_module
from lightning_coreset.module_specs.sizes import check_module_sizes, new_sizes, sizing_tensor, updated_sizes
from lightning_coreset.module_specs.spec import COMMON_HEAD_COUNTS, ModuleSpec
from lightning_coreset.module_specs.values import Size, is_integer, is_size, plain_size, size_like

__all__ = [
    "COMMON_HEAD_COUNTS",
    "ModuleSpec",
    "NarrowAttention",
    "Size",
    "check_module_sizes",
    "is_integer",
    "is_size",
    "module_spec",
    "new_sizes",
    "plain_size",
    "register_module",
    "size_like",
    "sizing_tensor",
    "updated_sizes",
]
