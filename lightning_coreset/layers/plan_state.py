"""What is known of a network while a plan is made, in addition to its tensors; passed on from group to group."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_coreset.moments import MeasuringRuns


@dataclass(frozen=True, eq=False)
class ActivationMoments:
    """First and second moments of a layer's input channels.

    Attributes:
        mean: (C,).
        covariance: (C, C), centred.
        positions: How many inputs of the layer one channel becomes, not counting kernel positions: several behind a
            Flatten.
    """

    mean: Tensor
    covariance: Tensor
    positions: int


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@dataclass(eq=False)
class PlanState:
    """What the groups of one plan share.

    Attributes:
        generator: The source of random numbers, on the CPU.
        input_moments: The moments of the inputs of layers, by the name of their weight, as far as they are known.
        carried: The layers of whose inputs moments are kept, by the name of their weight: those that make channels of
            other groups; ``None`` for all. They are as large as the layers' inputs squared.
        filter_norms: Norms of the filters of layers, by the name of their weight, where they are known without another
            look at it: float64 (rows,).
        runs: The network with inputs to measure it on; ``None`` where nothing is measured.
        prepared: What a method found out about groups before it was asked for the first, by group name.
    """

    generator: torch.Generator = field(default_factory=_seeded)
    input_moments: dict[str, ActivationMoments] = field(default_factory=dict)
    carried: frozenset[str] | None = None
    filter_norms: dict[str, Tensor] = field(default_factory=dict)
    runs: MeasuringRuns | None = None
    prepared: dict[str, Any] = field(default_factory=dict)
