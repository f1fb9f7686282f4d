"""What to slice off each tensor when classes of a group go; reads shapes only."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_coreset.plan import AttributeChange, ParameterChange

if TYPE_CHECKING:
    from lightning_coreset.structure import ChannelGroup, Member


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by their first qualified name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def slice_members(
    tensors: Mapping[str, Tensor], kept: Sequence[tuple[ChannelGroup, Collection[int] | Tensor]]
) -> tuple[ParameterChange, ...]:
    """The slices that keep only some classes of each group; reads shapes only.

    Raises:
        ValueError: If a member does not fit the tensor of its name.
    """
    stays: dict[str, dict[int, Tensor]] = {}
    for group, classes in kept:
        staying = torch.zeros(group.size, dtype=torch.bool)
        staying[classes if isinstance(classes, Tensor) else list(classes)] = True
        whole = bool(staying.all())
        for member in group.members:
            length = _checked_length(tensors.get(member.name), member, group)
            if not whole:
                own = staying_positions(member, staying, length)
                of_tensor = stays.setdefault(member.name, {})
                known = of_tensor.get(member.dim)
                of_tensor[member.dim] = own if known is None else known & own
    alike = {id(own): own for dims in stays.values() for own in dims.values()}  # most dimensions of a group are
    left = {number: own.nonzero().squeeze(1) for number, own in alike.items()}
    changes = (
        _slice_change(name, tensors[name], {dim: left[id(own)] for dim, own in sorted(dims.items())})
        for name, dims in stays.items()
    )
    return tuple(change for change in changes if change.kept)


def _slice_change(name: str, tensor: Tensor, left: Mapping[int, Tensor]) -> ParameterChange:
    kept = {dim: positions for dim, positions in left.items() if len(positions) < tensor.shape[dim]}
    new_shape = [len(kept[dim]) if dim in kept else size for dim, size in enumerate(tensor.shape)]
    return ParameterChange(name, tuple(tensor.shape), tuple(new_shape), kept)


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
    goes = member.positions[~staying]
    stays = torch.ones(length, dtype=torch.bool)
    stays[goes[goes >= 0]] = False  # classes with fewer positions than others are filled up with -1
    return stays


def index_dims(tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    """Copy the kept positions along each dimension, in the memory format of ``tensor``."""
    taken = tensor.detach()
    kept = {dim: positions.to(tensor.device) for dim, positions in kept.items()}
    if not kept:
        taken = taken.clone()
    elif len(kept) == 2 and 0 in kept and not tensor.is_cuda:
        taken = _take_two(taken, *(kept[dim] for dim in sorted(kept)), dim=max(kept))
    else:
        for dim, positions in kept.items():
            taken = taken.index_select(dim, positions)
    return match_memory_format(taken, tensor)


_PIECE = 1 << 17
"""Numbers that are copied twice at a time, so that they stay in a core's cache and need no new memory."""


def _take_two(tensor: Tensor, rows: Tensor, positions: Tensor, *, dim: int) -> Tensor:
    """The kept rows, and of them the kept positions along another dimension, piece by piece.

    In one go, what is in between is twice as large as the result, and fresh memory costs more than copying.
    """
    shape = list(tensor.shape)
    shape[0], shape[dim] = len(rows), len(positions)
    taken = tensor.new_empty(shape)
    pieces = max(_PIECE // max(tensor[0].numel(), 1), 1)
    for part, into in zip(rows.split(pieces), taken.split(pieces), strict=True):
        torch.index_select(tensor.index_select(0, part), dim, positions, out=into)
    return taken


def scale_dims_(tensor: Tensor, factors: Mapping[int, Tensor]) -> Tensor:
    """Multiply a tensor, in place, at every position along some dimensions by its factor."""
    for dim, own in factors.items():
        shape = [1] * tensor.dim()
        shape[dim] = -1
        tensor.mul_(own.reshape(shape).to(tensor.device, tensor.dtype))
    return tensor


def new_value(change: ParameterChange, tensor: Tensor) -> Tensor:
    """What a change makes of a tensor, in memory of its own."""
    if change.value is None:
        return scale_dims_(index_dims(tensor, change.kept), change.factors)
    return match_memory_format(change.value.detach().to(tensor.device, tensor.dtype, copy=True).contiguous(), tensor)


def match_memory_format(new: Tensor, like: Tensor) -> Tensor:
    """The same values in the memory format of another tensor."""
    for memory_format, ndim in ((torch.channels_last, 4), (torch.channels_last_3d, 5)):
        if like.dim() == ndim and like.is_contiguous(memory_format=memory_format) and not like.is_contiguous():
            return new.contiguous(memory_format=memory_format)
    return new


def scale_counts(model: nn.Module, kept: Sequence[tuple[ChannelGroup, Collection[int]]]) -> tuple[AttributeChange, ...]:
    """What happens to the attributes that count classes, when only some classes of each group are kept."""
    old: dict[tuple[str, str], int] = {}
    lost: dict[tuple[str, str], int] = {}
    for group, classes in kept:
        for count in group.counts:
            where = (count.module, count.name)
            old[where] = getattr(model.get_submodule(count.module), count.name)
            lost[where] = lost.get(where, 0) + count.per_class * (group.size - len(classes))
    return tuple(AttributeChange(*where, old[where], old[where] - gone) for where, gone in lost.items() if gone)
