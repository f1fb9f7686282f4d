"""Adds operations to a tape, also those that are made of several nodes."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_coreset.agreement.tape import Affine, Function, Input, Node, Pointwise
from lightning_coreset.coreset import Activation
from lightning_coreset.coreset.activation_table import RELU


class Writer:
    """The nodes of a tape that is being written.

    Args:
        sample: The input, ``(1, ...)``.

    Attributes:
        nodes: So far.
        place: The operator that is being written down and its module.
        device: Where tensors are.
    """

    def __init__(self, sample: Tensor) -> None:
        self.nodes: list[Node] = [Input(tuple(sample.shape))]
        self.place = ""
        self.device = sample.device

    def affine(
        self, function: Function, magnitude: Function, *inputs: int, largest_of: tuple[int, int] | None = None
    ) -> int:
        """Add an affine node; returns its number."""
        shape = function(*(self._zeros(one) for one in inputs)).shape
        self.nodes.append(Affine(inputs, function, magnitude, tuple(shape), self.place, largest_of))
        return len(self.nodes) - 1

    def moved(self, function: Function, *inputs: int) -> int:
        """Add a node that moves numbers or adds them up, and is its own magnitude."""
        return self.affine(function, function, *inputs)

    def pointwise(self, activation: Activation, source: int) -> int:
        """Add an activation."""
        self.nodes.append(Pointwise((source,), activation, self.nodes[source].shape, self.place))
        return len(self.nodes) - 1

    def relu(self, source: int) -> int:
        """Add a ReLU."""
        return self.pointwise(RELU, source)

    def maximum(self, a: int, b: int) -> int:
        r"""Add the elementwise maximum of two nodes of one shape, :math:`b + \max(a - b, 0)`."""
        above = self.relu(self.affine(torch.sub, torch.add, a, b))
        return self.affine(torch.add, torch.add, above, b, largest_of=(a, b))

    def maximum_over_last(self, source: int) -> int:
        """Add the maximum over the last dimension, which goes: half is compared with the other half, and so on."""
        while (count := self.nodes[source].shape[-1]) > 1:
            half = count // 2
            first = self.moved(_part(0, half), source)
            largest = self.maximum(first, self.moved(_part(half, half), source))
            if count % 2:
                last = self.moved(_part(2 * half, 1), source)
                largest = self.moved(lambda *parts: torch.cat(parts, dim=-1), largest, last)
            source = largest
        return self.moved(lambda x: x.squeeze(-1), source)

    def _zeros(self, number: int) -> Tensor:
        return torch.zeros(self.nodes[number].shape, dtype=torch.float64, device=self.device)


def _part(start: int, length: int) -> Function:
    return lambda x: x.narrow(-1, start, length)
