"""What new weights change in the coordinates of a consumer, as the bounds of ``coreset`` read it.

A coordinate is one output, one input position that a channel becomes, and one kernel position; J of them.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_coreset.layers.layer_pair import LayerPair


@dataclass(frozen=True, eq=False)
class CoordinateChange:
    """Old weights minus new ones where channels are ``a phi(z) + t``, with what their offsets make of them.

    Attributes:
        weights: Of phi, (J, N).
        constant: What the offsets add, (J,).
        magnitude: The sum of the magnitudes of its terms, (J,).
    """

    weights: Tensor
    constant: Tensor
    magnitude: Tensor

    @classmethod
    def of(cls, pair: LayerPair, new: Mapping[str, Tensor], kept: Tensor) -> CoordinateChange:
        """Of one layer pair whose producer and constants stay as they are.

        Args:
            pair: The pair, with the weights before.
            new: The consumers' tensors as they will be, still of all channels.
            kept: The channels that stay, (m,).
        """
        after = pair.with_tensors(ChainMap(dict(new), pair.view.tensors))  # type: ignore[arg-type] # only read
        stays = torch.zeros(pair.view.size, dtype=torch.float64).index_fill_(0, kept.cpu(), 1.0)
        difference = coordinate_weights(pair) - coordinate_weights(after) * stays
        scale, offset = pair.affine_behind
        return cls(difference * scale, difference @ offset, difference.abs() @ offset.abs())


def coordinate_weights(pair: LayerPair) -> Tensor:
    """The weights that read the channels, a row for every coordinate, (J, N)."""
    return pair.consumers.permute(0, 2, 3, 1).flatten(0, 2)
