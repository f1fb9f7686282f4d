"""Which channels of a network belong together, found by running it once; read-only."""

from __future__ import annotations

from lightning_coreset._registration import Registration
from lightning_coreset.module_specs import ModuleSpec, module_spec, register_module
from lightning_coreset.structure.activations import register_activation
from lightning_coreset.structure.collectives import local_collectives
from lightning_coreset.structure.completion import Completion
from lightning_coreset.structure.derivatives import StandInDerivatives, run_with_derivatives
from lightning_coreset.structure.example import (
    Example,
    ExampleInputs,
    Examples,
    RunMode,
    StepOutputs,
    as_examples,
    output_tensors,
)
from lightning_coreset.structure.find import Heads, analyse, find_groups
from lightning_coreset.structure.labels import ChannelLabels, Statistic, TensorInfo
from lightning_coreset.structure.op_call import OpCall
from lightning_coreset.structure.ops.pieces import UNEQUAL_PIECES
from lightning_coreset.structure.pairing import merged, paired, parts_of, single_dimensions
from lightning_coreset.structure.penalties import note_alike
from lightning_coreset.structure.propagation import Propagation, Rule
from lightning_coreset.structure.records import (
    ChannelGroup,
    Count,
    Layer,
    Member,
    Pairing,
    Path,
    Role,
    WeightNorm,
    layer_of,
)
from lightning_coreset.structure.registry import register_rule
from lightning_coreset.structure.result import Structure
from lightning_coreset.structure.rule_kinds import Contraction, Elementwise, Movement, Pinned
from lightning_coreset.structure.steps import Norm, Step, StepKind
from lightning_coreset.structure.trace import (
    check_initialised,
    plain_execution,
    preserved,
    preserved_random,
    raise_or_warn,
    set_mode,
    train_mode,
)
from lightning_coreset.structure.uncounted import warn_of_uncounted
from lightning_coreset.structure.untrained import NOTHING_UNTRAINED, Copy, Untrained

__all__ = [
    "NOTHING_UNTRAINED",
    "UNEQUAL_PIECES",
    "ChannelGroup",
    "ChannelLabels",
    "Completion",
    "Contraction",
    "Copy",
    "Count",
    "Elementwise",
    "Example",
    "ExampleInputs",
    "Examples",
    "Heads",
    "Layer",
    "Member",
    "ModuleSpec",
    "Movement",
    "Norm",
    "OpCall",
    "Pairing",
    "Path",
    "Pinned",
    "Propagation",
    "Registration",
    "Role",
    "Rule",
    "RunMode",
    "StandInDerivatives",
    "Statistic",
    "Step",
    "StepKind",
    "StepOutputs",
    "Structure",
    "TensorInfo",
    "Untrained",
    "WeightNorm",
    "analyse",
    "as_examples",
    "check_initialised",
    "find_groups",
    "layer_of",
    "local_collectives",
    "merged",
    "module_spec",
    "note_alike",
    "output_tensors",
    "paired",
    "parts_of",
    "plain_execution",
    "preserved",
    "preserved_random",
    "raise_or_warn",
    "register_activation",
    "register_module",
    "register_rule",
    "run_with_derivatives",
    "set_mode",
    "single_dimensions",
    "train_mode",
    "warn_of_uncounted",
]
