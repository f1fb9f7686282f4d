"""Bounds on the change of outputs and on margins between classes, from the bounds of a tape.

Shapes: S samples, C outputs of a sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_coreset.agreement.backward import Coupling
from lightning_coreset.agreement.bounding import Bounds
from lightning_coreset.agreement.joining import Joined

_BOTH: tuple[Coupling, ...] = ("apart", "paired")
_OUTPUTS = 512
"""Outputs that are bounded together."""


def change_bounds(joined: Joined, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Bounds below and above the first network's outputs minus the second's, each ``(S, ...)``."""
    low, high = bounds.low[joined.change].flatten(1), bounds.high[joined.change].flatten(1)
    everything = torch.eye(low.shape[1], dtype=low.dtype, device=low.device)
    shape = joined.tape.nodes[joined.change].shape
    found = []
    for unit in everything.split(_OUTPUTS):
        rows = torch.cat([unit, -unit]).view(1, -1, *shape).expand(len(low), -1, *shape)
        found.append(bounds.largest({joined.change: rows}, _BOTH).unflatten(1, (2, -1)))
    above, below = torch.cat(found, dim=2).unbind(dim=1)
    return (
        torch.maximum(low, -below).view(-1, *shape[1:]),
        torch.minimum(high, above).view(-1, *shape[1:]),
    )


def keeps_class(joined: Joined, bounds: Bounds, node: int, prediction: Tensor) -> Tensor:
    """Whether the scores ``(1, C)`` of a node are proven to be largest for this class on all of each ball, ``(S,)``."""
    low, high = bounds.low[node][:, 0], bounds.high[node][:, 0]
    classes = low.shape[1]
    unit = torch.eye(classes, dtype=low.dtype, device=low.device)
    others = (torch.arange(classes - 1, device=low.device) + prediction[:, None] + 1) % classes
    rows = unit[others] - unit[prediction][:, None]
    margins = bounds.largest({node: rows[:, :, None]}, _BOTH if node == joined.second else _BOTH[:1])
    by_intervals = high.gather(1, others) - low.gather(1, prediction[:, None])
    return (torch.minimum(margins, by_intervals) < 0).all(dim=1)
