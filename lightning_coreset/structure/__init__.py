"""Which channels of a network belong together, found by running it once; read-only."""

from __future__ import annotations

from lightning_coreset.module_specs import ModuleSpec, Registration, module_spec, register_module
from lightning_coreset.structure.example import Example, ExampleInputs, tensors_in
from lightning_coreset.structure.find import Structure, analyse, find_groups
from lightning_coreset.structure.records import ChannelGroup, Count, Layer, Member, Norm, Path, Role, Step
from lightning_coreset.structure.trace import plain_execution, preserved, preserved_random

__all__ = [
    "ChannelGroup",
    "Count",
    "Example",
    "ExampleInputs",
    "Layer",
    "Member",
    "ModuleSpec",
    "Norm",
    "Path",
    "Registration",
    "Role",
    "Step",
    "Structure",
    "analyse",
    "find_groups",
    "module_spec",
    "plain_execution",
    "preserved",
    "preserved_random",
    "register_module",
    "tensors_in",
]
