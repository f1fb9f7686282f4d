"""From groups, mathematics and a target to a plan; reads the model, changes nothing."""

from __future__ import annotations

from lightning_coreset.planning.planner import (
    Request,
    bottom_up_sizes,
    check_ignore,
    check_ratio,
    final_sizes,
    is_residual,
    make_plan,
    measure,
    prunable,
)
from lightning_coreset.planning.radii import LayerInputs, layer_inputs
from lightning_coreset.planning.sizes import Meter, Totals, Unit, reached, uniform_sizes

__all__ = [
    "LayerInputs",
    "Meter",
    "Request",
    "Totals",
    "Unit",
    "bottom_up_sizes",
    "check_ignore",
    "check_ratio",
    "final_sizes",
    "is_residual",
    "layer_inputs",
    "make_plan",
    "measure",
    "prunable",
    "reached",
    "uniform_sizes",
]
