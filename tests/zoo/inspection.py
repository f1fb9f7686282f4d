"""What can be said of a group or of a network without running it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from lightning_coreset.structure import ChannelGroup, Structure

Kind = Literal["right", "exception", "wrong output", "leak", "vacuous", "backward", "attributes", "malformed"]


@dataclass(frozen=True)
class Verdict:
    """What the oracle says of one group."""

    group: str
    kind: Kind
    detail: str = ""


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by their first qualified name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def wrong_attributes(model: nn.Module) -> Iterator[str]:
    """Modules whose sizes are not those of their tensors."""
    for name, module in model.named_modules():
        for attribute, actual in sizes(module).items():
            said = getattr(module, attribute)
            if said != actual:
                yield f"{name}.{attribute} is {said}, but the tensors say {actual}"


def sizes(module: nn.Module) -> dict[str, Any]:
    """What a module's size attributes have to be, by its tensors."""
    weight = getattr(module, "weight", None)
    shape = tuple(weight.shape) if isinstance(weight, Tensor) else ()
    if isinstance(module, nn.Linear):
        return {"out_features": shape[0], "in_features": shape[1]}
    if isinstance(module, nn.modules.conv._ConvNd):
        made, read = (shape[1], shape[0]) if module.transposed else shape[:2]
        if module.transposed:
            return {"in_channels": read, "out_channels": made * module.groups}
        return {"in_channels": read * module.groups, "out_channels": made}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        own = weight if weight is not None else module.running_mean
        return {} if own is None else {"num_features": len(own)}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return {"normalized_shape": shape} if shape else {}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": shape[0]} if shape else {}
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return {"num_embeddings": shape[0], "embedding_dim": shape[1]}
    if isinstance(module, nn.Bilinear):
        return dict(zip(("out_features", "in1_features", "in2_features"), shape, strict=True))
    if isinstance(module, nn.PReLU):
        return {"num_parameters": shape[0]}
    if type(module).__name__ == "Conv1D":
        return {"nx": shape[0], "nf": shape[1]}
    return {}


def malformed(model: nn.Module, groups: Sequence[ChannelGroup]) -> Iterator[Verdict]:
    """Groups that break the promises of the record, whatever the network computes."""
    named, owner = tensors(model), {}
    if len({group.name for group in groups}) < len(groups):
        yield Verdict("", "malformed", "two groups have one name")
    for group in groups:
        roles = {member.role for member in group.members}
        if group.size < 2 or not {"producer", "consumer"} & roles:
            yield Verdict(group.name, "malformed", f"{group.size} classes, roles {sorted(roles)}")
        for member in group.members:
            where, places = (member.name, member.dim), [place for part in member.index for place in part]
            if member.name not in named or member.dim >= named[member.name].dim():
                yield Verdict(group.name, "malformed", f"there is no dimension {member.dim} of {member.name!r}")
            elif len(member.index) != group.size or not places:
                yield Verdict(group.name, "malformed", f"{member.name}: {len(member.index)} of {group.size} classes")
            elif (
                len(set(places)) < len(places) or not 0 <= min(places) <= max(places) < named[where[0]].shape[where[1]]
            ):
                yield Verdict(group.name, "malformed", f"{member.name}: positions twice or out of range")
            elif any(owner.setdefault((*where, place), group.name) != group.name for place in places):
                yield Verdict(group.name, "malformed", f"{member.name}: a position is in two groups")


def unexplained(model: nn.Module, structure: Structure) -> list[str]:
    """Layers of more than one channel that are in no group and for which no reason is given."""
    named = {member.name for group in structure.groups for member in group.members} | set(structure.refused)
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    kinds = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag, nn.Bilinear, nn.RNNBase, nn.RNNCellBase)
    silent = []
    for name, module in model.named_modules():
        own = {first[id(parameter)] for parameter in module.parameters() if parameter.dim() > 1}
        names = own | {part for one in own for part in _prefixes(one)}
        single = 1 in [getattr(module, size, 0) for size in ("out_features", "out_channels", "embedding_dim")]
        if isinstance(module, kinds) and own and not single and not names & named:
            silent.append(name)
    return silent


def _prefixes(name: str) -> Iterator[str]:
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def reachable(model: nn.Module, groups: Sequence[ChannelGroup]) -> int:
    """How many elements of parameters lie in a row or column of some group."""
    covered: dict[tuple[str, int], set[int]] = {}
    for group in groups:
        for member in group.members:
            covered.setdefault((member.name, member.dim), set()).update(p for part in member.index for p in part)
    total = 0
    for name, parameter in model.named_parameters():
        free = [size - len(covered.get((name, dim), ())) for dim, size in enumerate(parameter.shape)]
        total += parameter.numel() - math.prod(free)
    return total


def fingerprint(model: nn.Module) -> list[Any]:
    """Everything that finding groups must leave alone."""
    marks: list[Any] = [(module.training, len(module._forward_hooks)) for module in model.modules()]
    for name, tensor in tensors(model).items():
        marks.append((name, id(tensor), tensor.requires_grad, tensor.grad is None))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            marks.append(tensor.detach().double().sum().item())
    return marks
