"""Whether tensors have the values of others, or values near to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_coreset.followers import hold_weights, weight_distance

_ENOUGH = 32
"""Of fewer numbers, some are near to others by chance: then only equal ones count."""


def distance_if_near(pairs: Sequence[tuple[Tensor, Tensor]]) -> float | None:
    """How far tensors are from others of the same shapes, all together; ``None`` if nothing shows that they are near.

    Ones and zeros show nothing, as BatchNorms and biases begin with; vectors only where there are no matrices.
    """
    varying = [(one, other) for one, other in pairs if _varies(one) and _varies(other)]
    telling = [(one, other) for one, other in varying if one.dim() > 1] or varying
    if not telling:
        return None
    if all(torch.equal(one.detach(), other.detach().to(one.device, one.dtype)) for one, other in telling):
        return 0.0
    if sum(one.numel() for one, _ in telling) < _ENOUGH or not hold_weights(telling):
        return None
    return weight_distance(telling)


def _varies(tensor: Tensor) -> bool:
    """Whether a tensor has values of its own."""
    if tensor.numel() < 2 or not tensor.is_floating_point():
        return False
    return bool((tensor != tensor.reshape(-1)[0]).any())
