"""Compares what two networks compute in the same runs, but for rounding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice

import torch
from torch import Tensor

from lightning_coreset.structure import RunMode
from lightning_coreset.verification.runs import Run

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Largest difference relative to the largest output; a wrong index changes outputs by about their own size."""


@torch.no_grad()  # a network may have enabled gradients for its own derivatives
def difference_between(found: Sequence[Tensor], expected: Sequence[Tensor], dtype: torch.dtype) -> str | None:
    """How outputs differ by more than rounding; ``None`` if they do not.

    Args:
        found: Outputs of some runs.
        expected: Those of the same runs of another network.
        dtype: The precision in which both ran.
    """
    if [tensor.shape for tensor in found] != [tensor.shape for tensor in expected]:
        return "outputs of another shape"
    for one, other in zip(found, expected, strict=True):
        finite = other.isfinite()
        if not torch.equal(one.isfinite(), finite) or not torch.equal(one.isnan(), other.isnan()):
            return "other outputs are not finite"
        if finite.any():
            if not finite.all():
                one, other = one[finite], other[finite]
            error = float((one - other).abs().max() / other.abs().max().clamp_min(1e-12))
            if error > _TOLERANCE[dtype]:
                return f"relative error {error:.1e}"
    return None


def by_mode(runs: Iterable[Run], outputs: Iterable[Tensor]) -> dict[RunMode, list[Tensor]]:
    """The outputs of runs, those in each mode of the network by themselves."""
    of_mode: dict[RunMode, list[Tensor]] = {}
    left = iter(outputs)
    for run in runs:
        of_mode.setdefault(run.mode, []).extend(islice(left, run.outputs))
    return of_mode


def has_numbers(tensor: Tensor) -> bool:
    """Whether any number of a tensor is finite."""
    return bool(tensor.isfinite().any())
