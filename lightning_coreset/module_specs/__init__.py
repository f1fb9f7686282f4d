"""What the package knows about types of modules, in one table that users can add to."""

from __future__ import annotations

from lightning_coreset.module_specs.attention import NarrowAttention
from lightning_coreset.module_specs.registry import module_spec, register_module
from lightning_coreset.module_specs.sizes import check_module_sizes, is_size, new_sizes, sizing_tensor, updated_sizes
from lightning_coreset.module_specs.spec import COMMON_HEAD_COUNTS, ModuleSpec

__all__ = [
    "COMMON_HEAD_COUNTS",
    "ModuleSpec",
    "NarrowAttention",
    "check_module_sizes",
    "is_size",
    "module_spec",
    "new_sizes",
    "register_module",
    "sizing_tensor",
    "updated_sizes",
]
