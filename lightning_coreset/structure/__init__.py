"""Which channels of a network belong together, found by running it once; read-only."""

from __future__ import annotations

from lightning_coreset.structure.example import Example, ExampleInputs
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
    "Norm",
    "Path",
    "Role",
    "Step",
    "Structure",
    "analyse",
    "find_groups",
    "plain_execution",
    "preserved",
    "preserved_random",
]
