"""Which channels a pruned network kept, read from its weights, and whether it computes what it should.

Neither this package nor the library that pruned is asked: the weights of the whole network are all different, so that
each number of a smaller weight tells its place. The expected outputs are those of the oracle of ``tests/zoo``: the
whole network, whose reductions take kept channels only and whose layers do not read removed ones.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from weight_norms import with_plain_weights
from zoo.entry import Inputs
from zoo.kept_only import kept_only
from zoo.running import distance, evaluate

from lightning_coreset.structure import ChannelGroup, Member

TOLERANCE = 1e-9


def verdict(model: nn.Module, pruned: nn.Module, inputs: list[Inputs]) -> str:
    """What became of a network, as text."""
    try:
        members = removed_members(model, pruned)
    except ValueError as error:
        return f"**{error}**"
    if not members:
        return "left whole"
    model = with_plain_weights(model.double())
    try:
        found = [evaluate(pruned, one) for one in inputs]
    except Exception:
        return "**a network that does not run**"
    removed = [(ChannelGroup("removed", tuple(members)), [0])]
    expected = [kept_only(model, removed, one) for one in inputs]
    if max(distance(other, one) for one, other in expected) > TOLERANCE:
        return "**wrong: removed channels are still read**"
    error = max(distance(one, other) for one, (other, _) in zip(found, expected, strict=True))
    return "right" if error <= TOLERANCE else "**wrong, without an error**"


def removed_members(model: nn.Module, pruned: nn.Module) -> list[Member]:
    """The removed places of every parameter along each dimension, as one class.

    Raises:
        ValueError: If a weight is not a part of what it was.
    """
    smaller, members = dict(pruned.named_parameters(remove_duplicate=False)), []
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            removed = removed_places(parameter.detach(), smaller[full].detach())
            owner, _, made = path.partition(".parametrizations.")
            if made and name == "original0":
                continue  # the magnitude of a weight_norm, which changes with the weight
            if made:  # its direction, which lies as the weight does
                module, name = model.get_submodule(owner), made
            for dim, gone in enumerate(removed):
                if gone:
                    members.append(Member(full, dim, role(module, name, dim), (tuple(gone),), parameter.shape[dim]))
    first = {name for name, _ in model.named_parameters()}  # a tied weight comes under its first name
    return [member for member in members if member.name in first]


def removed_places(whole: Tensor, part: Tensor) -> list[list[int]]:
    """For each dimension, which places are gone."""
    if whole.shape == part.shape:
        return [[] for _ in whole.shape]
    values, order = whole.flatten().sort()
    places = torch.searchsorted(values, part.flatten()).clamp(max=len(values) - 1)
    if not torch.equal(values[places], part.flatten()):
        raise ValueError("other weights")
    kept = [axis.unique().tolist() for axis in torch.unravel_index(order[places], whole.shape)]
    if math.prod(map(len, kept)) != part.numel():
        raise ValueError("rows of different channels")
    return [sorted({*range(size)} - {*own}) for size, own in zip(whole.shape, kept, strict=True)]


def role(module: nn.Module, name: str, dim: int) -> str:
    """Whether a dimension makes channels, reads them, or both, which counts as reading."""
    if name != "weight":
        return "channelwise"
    if isinstance(module, nn.Embedding):
        return "consumer" if dim else "producer"
    if isinstance(module, nn.Linear):
        return ("producer", "consumer")[dim]
    if isinstance(module, nn.modules.conv._ConvNd):
        return "consumer" if dim == 1 and module.weight.shape[1] > 1 else "producer"
    return ("consumer", "producer")[dim] if type(module).__name__ == "Conv1D" else "channelwise"
