"""The cost of a model before all pruning, where the model is pruned already and says what it was."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from lightning_coreset.planning.cost_model import ModelCost
from lightning_coreset.planning.problem import PruningProblem
from lightning_coreset.planning.request import Request
from lightning_coreset.structure import ChannelGroup, Structure
from lightning_coreset.surgery import original_shapes

Shapes = Mapping[str, tuple[int, ...]]


def measure_original(model: nn.Module, structure: Structure, request: Request) -> ModelCost:
    """Parameters, MACs and channels of a model before all surgery that is recorded on it; as it is without any.

    Parameters are exact. Multiply-accumulates of layers are as many as their weights had, and those of products of
    activations are in proportion to the groups' channels. Channels of groups that are gone, since one is left of each,
    are not counted.

    Raises:
        ValueError: If nothing in the model can be pruned.
    """
    problem = PruningProblem.of(model, structure, request)
    shapes = original_shapes(model).shapes
    widths = {group.name: _original_size(group, problem, shapes) for group in problem.groups}
    return problem.cost_model.totals_of({name: math.prod(shapes[name]) for name in problem.tensors}, widths)


def _original_size(group: ChannelGroup, problem: PruningProblem, shapes: Shapes) -> int:
    """How many classes the group had, by a dimension that no other group shares."""
    for member in (*group.by_role("producer"), *group.members):
        others = (one for one in problem.groups if one is not group)
        shared = any((one.name, one.dim) == (member.name, member.dim) for other in others for one in other.members)
        if not shared and member.total:
            lost = shapes[member.name][member.dim] - problem.tensors[member.name].shape[member.dim]
            return group.size + round(lost * group.size / member.total)
    return group.size
