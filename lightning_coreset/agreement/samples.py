"""The inputs that users give: a batch, or batches with or without labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


def samples_of(inputs: Any, device: torch.device) -> Tensor:
    """All samples as one tensor ``(n, ...)`` in float64 on a device.

    Raises:
        ValueError: If there are none, they are not of a floating type, one is not finite, or their shapes differ.
    """
    given = [inputs] if isinstance(inputs, Tensor) else list(inputs) if isinstance(inputs, Iterable) else None
    if given is None:
        raise ValueError(f"Expected inputs to be a tensor or an iterable of batches but got {type(inputs).__name__}.")
    batches = [_first(one) for one in given]
    if not batches or any(one.dim() == 0 for one in batches) or not sum(map(len, batches)):
        raise ValueError("Expected inputs to hold at least one sample, along the first dimension, but they hold none.")
    shapes = {tuple(one.shape[1:]) for one in batches}
    if len(shapes) > 1:
        raise ValueError(f"Expected samples of one shape but inputs hold samples of the shapes {sorted(shapes)}.")
    samples = torch.cat([one.detach().to(device).double() for one in batches])
    if not bool(samples.isfinite().all()):
        raise ValueError("Expected finite inputs but they hold NaN or infinity.")
    return samples


def _first(batch: Any) -> Tensor:
    """The inputs of a batch, which may be a tuple with labels."""
    found = batch[0] if isinstance(batch, (list, tuple)) and len(batch) else batch
    if not isinstance(found, Tensor) or not found.is_floating_point():
        kind = str(found.dtype) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"Expected batches of floating-point inputs, alone or as the first of a tuple, but got {kind}. Balls are "
            "of real numbers: for whole numbers, such as token ids, pass what they are embedded as."
        )
    return found
