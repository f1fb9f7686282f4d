"""The cost of a model before all pruning, where the model is pruned already and says what it was."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from lightning_coreset.planning.cost_model import ModelCost
from lightning_coreset.planning.problem import PruningProblem, prunable
from lightning_coreset.planning.request import Request
from lightning_coreset.structure import ChannelGroup, Structure, layer_of
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


def with_later_groups(original: ModelCost, model: nn.Module, structure: Structure, request: Request) -> ModelCost:
    """The cost of the original, with the channels and MACs of layers that have run since it was measured.

    Args:
        original: What was measured before the first event.
        model: The model, which may be pruned by now.
        structure: What is found in it by now.
        request: What is asked.
    """
    groups, _ = prunable(model, structure, request)
    gone = original.widths.keys() - {group.name for group in structure.groups}
    new = [
        group.name
        for group in groups
        # One of a name that is gone is no new one: its first layer is another one only.
        if group.name not in original.widths
        and gone.isdisjoint(layer_of(one.name) for one in group.by_role("producer"))
    ]
    if not new:
        return original
    now = measure_original(model, structure, request)
    widths = {**original.widths, **{name: now.widths[name] for name in new}}
    channels = original.channels + sum(now.widths[name] for name in new)
    return replace(original, macs=max(original.macs, now.macs), channels=channels, widths=widths)


def _original_size(group: ChannelGroup, problem: PruningProblem, shapes: Shapes) -> int:
    """How many classes the group had, by a dimension that no other group shares."""
    for member in (*group.by_role("producer"), *group.members):
        others = (one for one in problem.groups if one is not group)
        shared = any((one.name, one.dim) == (member.name, member.dim) for other in others for one in other.members)
        if not shared and member.total:
            lost = shapes[member.name][member.dim] - problem.tensors[member.name].shape[member.dim]
            return group.size + round(lost * group.size / member.total)
    return group.size
