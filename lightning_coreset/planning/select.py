"""Choose the classes of one group that stay, and what their consumers are multiplied by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_coreset.coreset import draw_distinct, draw_fixed, draw_pps, sensitivities
from lightning_coreset.methods import Magnitude, Method, Random, Sensitivity, method_name
from lightning_coreset.planning.forms import NoCoresetForm, path_forms
from lightning_coreset.structure import ChannelGroup, Member


@dataclass(frozen=True, eq=False)
class Selection:
    """The coreset of one group.

    Attributes:
        kept: Classes that stay, int64 (m,), ascending.
        weights: What the consumers' slices of each are multiplied by, float64 (m,); ``None`` for one.
        method: How they were chosen, in words.
    """

    kept: Tensor
    weights: Tensor | None
    method: str


def select(
    group: ChannelGroup, size: int, method: Method, tensors: Mapping[str, Tensor], generator: torch.Generator
) -> Selection:
    """Choose ``size`` classes of a group.

    Args:
        group: The group.
        size: Classes to keep. Fewer stay where the rest contributes nothing.
        method: How to choose.
        tensors: Parameters and buffers by name, as the groups before left them.
        generator: The source of random numbers, on the CPU.
    """
    if isinstance(method, Random):
        kept = torch.randperm(group.size, generator=generator)[:size].sort().values
        return Selection(kept, None, method_name(method))
    if isinstance(method, Magnitude):
        return Selection(_largest(_producer_norms(group, tensors, method.p), size), None, method_name(method))
    try:
        return _sensitivity(group, size, method, tensors, generator)
    except NoCoresetForm as reason:
        return Selection(_largest(_importance(group, tensors), size), None, f"rank ({reason})")


def _sensitivity(
    group: ChannelGroup, size: int, method: Sensitivity, tensors: Mapping[str, Tensor], generator: torch.Generator
) -> Selection:
    scores = torch.stack(
        [
            sensitivities(form.producers, form.consumers, form.activation, input_radius=method.input_radius).cpu()
            for form in path_forms(group, tensors)
        ]
    ).amax(dim=0)
    draw = {"distinct": draw_distinct, "draws": draw_fixed, "pps": draw_pps}[method.sampler]
    sample = draw(scores, size, generator)
    return Selection(sample.kept, sample.weights, method_name(method))


def _largest(scores: Tensor, size: int) -> Tensor:
    return scores.topk(size).indices.sort().values


def _importance(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tensor:
    """Norms of what makes a class times the largest norm of what reads it, for groups without a coreset form."""
    read = [_class_norms(tensors[member.name], member, largest=True) for member in group.by_role("consumer")]
    return _producer_norms(group, tensors, 2) * torch.stack(read).amax(dim=0)


def _producer_norms(group: ChannelGroup, tensors: Mapping[str, Tensor], p: int) -> Tensor:
    makers = group.by_role("producer") or group.by_role("consumer")
    return torch.stack([_class_norms(tensors[member.name], member, p=p) for member in makers]).sum(dim=0)


def _class_norms(tensor: Tensor, member: Member, *, p: int = 2, largest: bool = False) -> Tensor:
    """The norm of every class's part of a tensor, or the largest norm over its outputs; float64 (N,)."""
    rows = tensor.detach().double().movedim(member.dim, 0).flatten(1).abs().cpu() ** p
    if largest and tensor.dim() > 1:
        outputs = rows.unflatten(1, (tensor.shape[1 - member.dim if member.dim < 2 else 0], -1))
        rows = outputs.sum(dim=2)
        per_class = torch.zeros(len(member.index), rows.shape[1], dtype=torch.float64)
    else:
        rows = rows.sum(dim=1, keepdim=True)
        per_class = torch.zeros(len(member.index), 1, dtype=torch.float64)
    owner = [number for number, places in enumerate(member.index) for _ in places]
    places = [place for places in member.index for place in places]
    per_class.index_add_(0, torch.tensor(owner, dtype=torch.int64), rows[places])
    return per_class.amax(dim=1) ** (1 / p)
