"""From groups, mathematics and a target to a plan; reads the model, changes nothing."""

from __future__ import annotations

from lightning_coreset.planning.cost_model import CostModel, ModelCost, Unit, reached
from lightning_coreset.planning.default_ratio import goes_less_far, sensible, why_less
from lightning_coreset.planning.feasibility import check_reachable, idle_rules, most_that_can_go, why_nothing_goes
from lightning_coreset.planning.input_norms import InputNorms, measure_input_norms
from lightning_coreset.planning.layer_rules import Rule, RuleMatcher, as_rules, check_matches
from lightning_coreset.planning.measuring import check_data, measuring_runs, moments_kind
from lightning_coreset.planning.never_run import (
    layers_that_never_ran,
    layers_with_tensors,
    names_of,
    unread_groups,
    without_read,
    without_unread,
)
from lightning_coreset.planning.original_cost import measure_original, with_later_groups
from lightning_coreset.planning.planner import bottom_up_sizes, final_sizes, make_plan, measure
from lightning_coreset.planning.problem import PruningProblem, is_residual, prunable
from lightning_coreset.planning.request import (
    DEFAULT_RATIO,
    Allocation,
    PruningRatio,
    RatioByRule,
    Request,
    check_flags,
)
from lightning_coreset.planning.thin_layers import why_thin

__all__ = [
    "DEFAULT_RATIO",
    "Allocation",
    "CostModel",
    "InputNorms",
    "ModelCost",
    "PruningProblem",
    "PruningRatio",
    "RatioByRule",
    "Request",
    "Rule",
    "RuleMatcher",
    "Unit",
    "as_rules",
    "bottom_up_sizes",
    "check_data",
    "check_flags",
    "check_matches",
    "check_reachable",
    "final_sizes",
    "goes_less_far",
    "idle_rules",
    "is_residual",
    "layers_that_never_ran",
    "layers_with_tensors",
    "make_plan",
    "measure",
    "measure_input_norms",
    "measure_original",
    "measuring_runs",
    "moments_kind",
    "most_that_can_go",
    "names_of",
    "prunable",
    "reached",
    "sensible",
    "unread_groups",
    "why_less",
    "why_nothing_goes",
    "why_thin",
    "with_later_groups",
    "without_read",
    "without_unread",
]
