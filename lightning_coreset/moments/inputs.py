"""Samples of what layers read and of what BatchNorms make, as plain data.

Shapes: R sampled rows (for a convolution: patches at random positions), I inputs of a layer, k kernel positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
"""What is called half precision."""


@dataclass(frozen=True, eq=False)
class LayerInput:
    """What one weight reads.

    Attributes:
        stored: The rows on the CPU, (R, I, k). What was in half precision stays so, which takes half as much memory.
        groups: Convolution groups; the inputs I are those of all groups.
        transposed: Whether it is a transposed convolution, of which every row meets all kernel positions.
        bias: Qualified name of the bias that is added, if it is a parameter.
        norm: Qualified name of the weight of the norm over channels that made what is read, where one of those that
            were looked at did.
    """

    stored: Tensor
    groups: int = 1
    transposed: bool = False
    bias: str | None = None
    norm: str | None = None

    @property
    def rows(self) -> Tensor:
        """(R, I, k), float32 unless the network is in float64. Of a transposed convolution k is 1."""
        return _computable(self.stored)


@dataclass(frozen=True, eq=False)
class NormInput:
    """What a norm over channels reads.

    Attributes:
        stored: The rows on the CPU, (R, N), as of a :class:`LayerInput`.
        centred: Whether the norm takes the mean of the channels off, as LayerNorm does.
        epsilon: What is added to the mean square.
        gain: What the norm multiplies with, float64 (N,).
        shift: What it adds, float64 (N,).
    """

    stored: Tensor
    centred: bool
    epsilon: float
    gain: Tensor
    shift: Tensor

    @property
    def rows(self) -> Tensor:
        """(R, N), float32 unless the network is in float64."""
        return _computable(self.stored)


def as_it_was(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows in the precision of the numbers of which they are, if that was half, so that nothing is lost."""
    return rows.to(dtype) if dtype in HALF else rows


def _computable(rows: Tensor) -> Tensor:
    return rows.float() if rows.dtype in HALF else rows


@dataclass(frozen=True, eq=False)
class MeasuredInputs:
    """What a run showed.

    Attributes:
        layers: By the qualified name of the weight.
        normed: Outputs of BatchNorms by the name of their running mean, (R, C).
        outputs: Some numbers of what every run returned, to compare one run with another.
        channel_norms: What norms over channels read, by the name of their weight.
        runs: How many runs were made in the first way of running the network.
    """

    layers: Mapping[str, LayerInput] = field(default_factory=dict)
    normed: Mapping[str, Tensor] = field(default_factory=dict)
    outputs: tuple[Tensor, ...] = ()
    channel_norms: Mapping[str, NormInput] = field(default_factory=dict)
    runs: int = 0
