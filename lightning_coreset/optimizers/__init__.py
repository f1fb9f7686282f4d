"""Change what optimizers keep of their parameters with the parameters, so that training continues."""

from __future__ import annotations

from lightning_coreset.optimizers.check import check_optimizers
from lightning_coreset.optimizers.discovery import (
    all_layers,
    innermost_first,
    optimizers_of,
    optimizers_stay,
    parameters_of,
)
from lightning_coreset.optimizers.held_tensors import held_tensors
from lightning_coreset.optimizers.snapshot import StateSnapshot
from lightning_coreset.optimizers.state import slice_optimizer_state

__all__ = [
    "StateSnapshot",
    "all_layers",
    "check_optimizers",
    "held_tensors",
    "innermost_first",
    "optimizers_of",
    "optimizers_stay",
    "parameters_of",
    "slice_optimizer_state",
]
