"""Apply a plan to a model, in place: slice tensors, keep ``Parameter`` objects, mend module attributes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_coreset.plan import AttributeChange, ParameterChange

if TYPE_CHECKING:
    from lightning_coreset.structure import ChannelGroup


def remove_channels(
    model: nn.Module, group: ChannelGroup, channels: Iterable[int] | Tensor
) -> tuple[ParameterChange, ...]:
    """Physically remove channels from every tensor that carries them.

    ``Parameter`` objects keep their identity, ties, ``requires_grad``, dtype, device and memory format; ``.grad`` is
    sliced along; ``in_features``, ``num_features`` and their kin are mended. No weight is adjusted: what the network
    computes afterwards equals what it computed with the consumers' columns of these channels set to zero.

    Args:
        model: The network the group was found in, not changed since.
        group: One of ``find_groups(model, ...)``.
        channels: The classes to remove, from ``0`` to ``group.size - 1``; at least one class must stay.

    Returns:
        What happened to each tensor.

    Raises:
        ValueError: If a channel does not exist, none would stay, or the model does not fit the group (it was pruned
            since the group was found). The model is unchanged then.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_coreset.structure import find_groups
        >>> from lightning_coreset.surgery import remove_channels
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> (group,) = find_groups(model, torch.randn(1, 4))
        >>> changes = remove_channels(model, group, [0, 3])
        >>> model[0]
        Linear(in_features=4, out_features=6, bias=True)
    """
    removed = set(channels.tolist() if isinstance(channels, Tensor) else channels)
    unknown = sorted(removed - set(range(group.size)))
    if unknown:
        raise ValueError(f"Expected channels of group {group.name!r} in [0, {group.size}) but got {unknown[:8]}.")
    if len(removed) == group.size:
        raise ValueError(
            f"Expected at least one channel of group {group.name!r} to stay, but all {group.size} would go."
        )
    kept = [channel for channel in range(group.size) if channel not in removed]
    changes = slice_members(named_tensors(model), [(group, kept)])
    apply_changes(model, changes, scale_counts(model, [(group, kept)]))
    return changes


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by their first qualified name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def slice_members(
    tensors: Mapping[str, Tensor], kept: Sequence[tuple[ChannelGroup, Collection[int]]]
) -> tuple[ParameterChange, ...]:
    """The slices that keep only some classes of each group; reads shapes only.

    Raises:
        ValueError: If a member does not fit the tensor of its name.
    """
    gone: dict[str, dict[int, set[int]]] = {}
    for group, classes in kept:
        stays = set(classes)
        for member in group.members:
            tensor = tensors.get(member.name)
            highest = max((position for positions in member.index for position in positions), default=-1)
            length = None if tensor is None or member.dim >= tensor.dim() else tensor.shape[member.dim]
            if length is None or highest >= length or member.length not in (None, length):
                shape = None if tensor is None else tuple(tensor.shape)
                wanted = f"at least {highest + 1}" if member.length is None else member.length
                raise ValueError(
                    f"Expected {member.name!r} to have {wanted} positions along dimension {member.dim} "
                    f"for group {group.name!r}, but its shape is {shape}. Find the groups of the model as it is now."
                )
            lost = {place for number, places in enumerate(member.index) if number not in stays for place in places}
            if lost:
                gone.setdefault(member.name, {}).setdefault(member.dim, set()).update(lost)
    return tuple(_slice_change(name, tensors[name], dims) for name, dims in gone.items())


def _slice_change(name: str, tensor: Tensor, gone: Mapping[int, set[int]]) -> ParameterChange:
    kept = {
        dim: torch.tensor([place for place in range(tensor.shape[dim]) if place not in lost], dtype=torch.int64)
        for dim, lost in sorted(gone.items())
    }
    new_shape = [len(kept[dim]) if dim in kept else size for dim, size in enumerate(tensor.shape)]
    return ParameterChange(name, tuple(tensor.shape), tuple(new_shape), kept)


def take(tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
    """Copy the kept positions along each dimension, in the memory format of ``tensor``."""
    taken = tensor.detach()
    for dim, positions in kept.items():
        taken = taken.index_select(dim, positions.to(tensor.device))
    if not kept:
        taken = taken.clone()
    return _laid_out(taken, tensor)


def _laid_out(new: Tensor, like: Tensor) -> Tensor:
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


def apply_changes(
    model: nn.Module, changes: Iterable[ParameterChange], attributes: Iterable[AttributeChange] = ()
) -> dict[Tensor, ParameterChange]:
    """Apply the changes of a plan in place, all or nothing.

    All new tensors are made before the first is put in place, so running out of memory changes nothing.

    Returns:
        The changed ``Parameter`` objects (the same as before, smaller) with their change.

    Raises:
        ValueError: If a change does not fit the model; nothing is changed then.
    """
    with torch.inference_mode(False):  # its tensors could not be trained
        return _apply(model, list(changes), list(attributes))


def _apply(
    model: nn.Module, changes: Sequence[ParameterChange], attributes: Sequence[AttributeChange]
) -> dict[Tensor, ParameterChange]:
    tensors = named_tensors(model)
    _check_attributes(model, attributes)
    ready = []
    for change in changes:
        tensor = tensors.get(change.name)
        if tensor is None or tuple(tensor.shape) != change.old_shape:
            shape = None if tensor is None else tuple(tensor.shape)
            raise ValueError(
                f"Expected {change.name!r} to have shape {change.old_shape} but got {shape}. "
                "The plan was made for another model, or for this one before it was pruned."
            )
        value = take(tensor, change.kept) if change.value is None else _like(change.value, tensor)
        grad = None if tensor.grad is None else take(tensor.grad, change.kept)
        ready.append((tensor, value, grad, change))
    for tensor, value, grad, _ in ready:
        replace_data(tensor, value, grad)
    _mend_modules(model, {id(tensor) for tensor, *_ in ready})
    for attribute in attributes:
        setattr(model.get_submodule(attribute.module), attribute.name, attribute.new)
    return {tensor: change for tensor, _, _, change in ready if isinstance(tensor, nn.Parameter)}


def _like(value: Tensor, tensor: Tensor) -> Tensor:
    return _laid_out(value.detach().to(tensor.device, tensor.dtype, copy=True).contiguous(), tensor)


def replace_data(tensor: Tensor, value: Tensor, grad: Tensor | None = None) -> None:
    """Give a tensor new data of any shape; the object, and all that refer to it, stay.

    The flip through another dtype drops autograd's cached gradient accumulator, which remembers the old shape: a
    graph kept from before would otherwise raise "invalid gradient".
    """
    tensor.grad = None
    flipped = torch.float32 if tensor.dtype == torch.float64 else torch.float64
    tensor.data = torch.empty(0, dtype=flipped, device=tensor.device)
    tensor.data = value
    tensor.grad = grad


def _check_attributes(model: nn.Module, attributes: Sequence[AttributeChange]) -> None:
    modules = dict(model.named_modules())
    for attribute in attributes:
        found = getattr(modules.get(attribute.module), attribute.name, None)
        if found != attribute.old:
            raise ValueError(
                f"Expected {attribute.name!r} of module {attribute.module!r} to be {attribute.old} but got {found}. "
                "The plan was made for another model, or for this one before it was pruned."
            )


def _mend_modules(model: nn.Module, changed: set[int]) -> None:
    """Set the sizes that modules remember to those of their tensors, where these have changed."""
    for module in model.modules():
        # Not ``module.weight``: a parametrized one is computed anew, and in training mode that has side effects.
        own = module._parameters.get("weight")
        if own is None and isinstance(module, nn.modules.batchnorm._NormBase):
            own = module.running_mean
        if own is not None and id(own) in changed:
            _mend(module, own.shape)


def _mend(module: nn.Module, shape: torch.Size) -> None:
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.modules.conv._ConvNd):
        _mend_convolution(module, *shape[:2])
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = shape[0]
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = shape[0]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = shape[0]
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        module.num_embeddings, module.embedding_dim = shape
    elif type(module).__name__ == "Conv1D" and "nf" in vars(module):  # GPT-2's in transformers, a transposed Linear
        vars(module).update(nf=shape[1], **({"nx": shape[0]} if "nx" in vars(module) else {}))


def _mend_convolution(module: nn.modules.conv._ConvNd, first: int, second: int) -> None:
    if module.groups > 1 and module.groups == module.in_channels:
        multiplier = module.out_channels // module.groups
        module.groups = first if module.transposed else first // multiplier
        module.in_channels, module.out_channels = module.groups, module.groups * multiplier
    elif module.transposed:
        module.in_channels, module.out_channels = first, second * module.groups
    else:
        module.in_channels, module.out_channels = second * module.groups, first
