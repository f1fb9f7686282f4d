"""Remove chosen channels of one group, by hand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor, nn

from lightning_coreset.plan import ParameterChange
from lightning_coreset.surgery.apply import apply_changes
from lightning_coreset.surgery.slicing import named_tensors, scale_counts, slice_members

if TYPE_CHECKING:
    from lightning_coreset.structure import ChannelGroup


def remove_channels(
    model: nn.Module, group: ChannelGroup, channels: Iterable[int] | Tensor
) -> tuple[ParameterChange, ...]:
    """Physically remove channels from every tensor that carries them.

    ``Parameter`` objects keep their identity, ties, ``requires_grad``, dtype, device and memory format; ``.grad`` is
    sliced as well; ``in_features``, ``num_features`` and similar attributes are updated. No weight is adjusted: the
    network computes afterwards what it computed with the consumers' columns of these channels set to zero.

    Args:
        model: The network the group was found in, not changed since.
        group: One of ``find_groups(model, ...)``.
        channels: The classes to remove, from ``0`` to ``group.size - 1``; at least one class must stay.

    Returns:
        The change of each tensor.

    Raises:
        ValueError: If a channel does not exist, none would stay, the model does not fit the group (it was pruned since
            the group was found), or a module does not agree with its registered ``ModuleSpec``. The model is unchanged
            then.

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
