"""The slice of each tensor when classes of a group are removed; reads shapes only."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_coreset.held_tensors import held_tensors
from lightning_coreset.indexing import index_dims, match_memory_format, scale_dims_
from lightning_coreset.module_specs import is_integer, read_size
from lightning_coreset.plan import AttributeChange, ParameterChange

if TYPE_CHECKING:
    from lightning_coreset.structure import ChannelGroup, Count, Member, WeightNorm


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by their first qualified name, and tensors that are noted as held by the model."""
    return {**registered_tensors(model), **held_tensors(model)}


def registered_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by their first qualified name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def slice_members(
    tensors: Mapping[str, Tensor], kept: Sequence[tuple[ChannelGroup, Collection[int] | Tensor]]
) -> tuple[ParameterChange, ...]:
    """The slices that keep only some classes of each group, with the factors that go with them; reads shapes only.

    Copies of the groups' layers are sliced as well.

    Raises:
        ValueError: If a member does not fit the tensor of its name.
    """
    kept = [(group.with_copies, classes) for group, classes in kept]
    stays: dict[str, dict[int, Tensor]] = {}
    factors: dict[str, dict[int, Tensor]] = {}
    for group, classes in kept:
        staying = torch.zeros(group.size, dtype=torch.bool)
        staying[classes if isinstance(classes, Tensor) else list(classes)] = True
        whole = bool(staying.all())
        if not whole:
            _scale_queries(factors, tensors, group, int(staying.sum()))
        for member in group.members:
            length = _checked_length(tensors.get(member.name), member, group)
            if not whole:
                own = staying_positions(member, staying, length)
                of_tensor = stays.setdefault(member.name, {})
                known = of_tensor.get(member.dim)
                of_tensor[member.dim] = own if known is None else known & own
    # Most dimensions of a group share one mask: its positions are computed once.
    masks = {id(own): own for dims in stays.values() for own in dims.values()}
    kept_positions = {number: mask.nonzero().squeeze(1) for number, mask in masks.items()}
    changes = (
        _slice_change(
            name,
            tensors[name],
            {dim: kept_positions[id(own)] for dim, own in sorted(dims.items())},
            factors.get(name, {}),
        )
        for name, dims in stays.items()
    )
    norms = weight_norms_of(group for group, _ in kept)
    return follow_norms([change for change in changes if change.kept], norms, tensors)


def weight_norms_of(groups: Iterable[ChannelGroup]) -> dict[str, WeightNorm]:
    """How weights of groups are made, by the name of the direction."""
    return {norm.direction: norm for group in groups for norm in group.weight_norms}


def follow_norms(
    changes: Iterable[ParameterChange], norms: Mapping[str, WeightNorm], tensors: Mapping[str, Tensor]
) -> tuple[ParameterChange, ...]:
    """The changes with those of magnitudes whose directions change by more than a cut along the same dimension.

    Args:
        changes: The changes of tensors, of directions as well.
        norms: The weights that are made, by the name of the direction.
        tensors: Of which only shapes are read.
    """
    by_name = {change.name: change for change in changes}
    for change in list(by_name.values()):
        norm = norms.get(change.name)
        if norm is not None and (change.value is not None or change.factors or set(change.kept) - {norm.dim}):
            shape = tuple(tensors[norm.magnitude].shape)
            own = by_name.get(norm.magnitude, ParameterChange(norm.magnitude, shape, shape, {}))
            by_name[own.name] = replace(own, norm_of=norm.direction, norm_dim=norm.dim)
    return tuple(by_name.values())


def _scale_queries(
    factors: dict[str, dict[int, Tensor]], tensors: Mapping[str, Tensor], group: ChannelGroup, kept: int
) -> None:
    """Multiply queries, where the network divides their products by the root of how many dimensions there are."""
    within = group.pairing
    for name, dim, positions in within.queries if within is not None and within.scaled_by_size else ():
        along = torch.ones(tensors[name].shape[dim], dtype=torch.float64)
        along[list(positions)] = (kept / group.size) ** 0.5
        of_tensor = factors.setdefault(name, {})
        of_tensor[dim] = of_tensor[dim] * along if dim in of_tensor else along


def _slice_change(
    name: str, tensor: Tensor, positions_of: Mapping[int, Tensor], factors: Mapping[int, Tensor]
) -> ParameterChange:
    kept = {dim: positions for dim, positions in positions_of.items() if len(positions) < tensor.shape[dim]}
    new_shape = [len(kept[dim]) if dim in kept else size for dim, size in enumerate(tensor.shape)]
    left = {dim: own[kept[dim]] if dim in kept else own for dim, own in factors.items()}
    return ParameterChange(name, tuple(tensor.shape), tuple(new_shape), kept, factors=left)


def _checked_length(tensor: Tensor | None, member: Member, group: ChannelGroup) -> int:
    """How long the member's dimension is."""
    length = None if tensor is None or member.dim >= tensor.dim() else tensor.shape[member.dim]
    if length is None or member.highest >= length or member.length not in (None, length):
        shape = None if tensor is None else tuple(tensor.shape)
        wanted = f"at least {member.highest + 1}" if member.length is None else member.length
        raise ValueError(
            f"Expected {member.name!r} to have {wanted} positions along dimension {member.dim} "
            f"for group {group.name!r}, but its shape is {shape}. Find the groups of the model as it is now."
        )
    return length


def staying_positions(member: Member, staying: Tensor, length: int) -> Tensor:
    """Whether each position along the member's dimension stays, bool (length,)."""
    if member.one_each and length == len(staying):
        return staying
    removed = member.positions[~staying]
    stays = torch.ones(length, dtype=torch.bool)
    stays[removed[removed >= 0]] = False  # classes with fewer positions than others are padded with -1
    return stays


def new_value(change: ParameterChange, tensor: Tensor) -> Tensor:
    """The tensor after a change, in new memory."""
    if change.value is None:
        return scale_dims_(index_dims(tensor, change.kept), change.factors)
    return match_memory_format(change.value.detach().to(tensor.device, tensor.dtype, copy=True).contiguous(), tensor)


def scale_counts(model: nn.Module, kept: Sequence[tuple[ChannelGroup, Collection[int]]]) -> tuple[AttributeChange, ...]:
    """The changes of attributes that count classes, such as heads, when only some classes of each group are kept."""
    old: dict[tuple[str, str], int] = {}
    removed: dict[tuple[str, str], int] = {}
    for group, classes in kept:
        for count in group.with_copies.counts:
            where = (count.module, count.name)
            old[where] = _read_count(model, count)
            removed[where] = removed.get(where, 0) + count.per_class * (group.size - len(classes))
    return tuple(
        AttributeChange(*where, old[where], old[where] - number) for where, number in removed.items() if number
    )


def _read_count(model: nn.Module, count: Count) -> int:
    value = read_size(model.get_submodule(count.module), count.name)
    if not is_integer(value):
        raise ValueError(
            f"Expected {count.name!r} of module {count.module!r} to be an integer, which counts channels of a group, "
            f"but got {value!r}. Find the groups of the model as it is now."
        )
    return int(value)
