"""What the package knows about types of modules, in one table that users can add to."""

from __future__ import annotations

from lightning_coreset.module_specs.attention import NarrowAttention
from lightning_coreset.module_specs.attribute_paths import (
    can_be_set,
    changed_attributes,
    owner,
    read_size,
    remembered_integers,
    remembered_sizes,
)
from lightning_coreset.module_specs.configs import configs_of, fields_of, parts_of
from lightning_coreset.module_specs.registry import module_spec, register_module
from lightning_coreset.module_specs.sizes import (
    check_module_sizes,
    new_sizes,
    other_sizes,
    sizing_tensor,
    updated_sizes,
)
from lightning_coreset.module_specs.spec import COMMON_HEAD_COUNTS, ModuleSpec
from lightning_coreset.module_specs.values import Size, is_integer, is_size, plain_size

__all__ = [
    "COMMON_HEAD_COUNTS",
    "ModuleSpec",
    "NarrowAttention",
    "Size",
    "can_be_set",
    "changed_attributes",
    "check_module_sizes",
    "configs_of",
    "fields_of",
    "is_integer",
    "is_size",
    "module_spec",
    "new_sizes",
    "other_sizes",
    "owner",
    "parts_of",
    "plain_size",
    "read_size",
    "register_module",
    "remembered_integers",
    "remembered_sizes",
    "sizing_tensor",
    "updated_sizes",
]
