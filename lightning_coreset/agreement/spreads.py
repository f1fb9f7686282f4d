"""How far values that are affine in the input move over a ball, which is the same around every sample."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_coreset.agreement.tape import Affine, Tape

_AT_ONCE = 2**22


class Spreads:
    """The norms of the rows that make values out of the input.

    Args:
        tape: The operations.
    """

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self._found: dict[int, Tensor] = {}

    def of(self, number: int) -> Tensor:
        """For a node that is affine in the input, the norm of the row of each of its numbers, in its shape."""
        if number not in self._found:
            shape = torch.Size(self.tape.nodes[number].shape)
            width = max(torch.Size(self.tape.nodes[one].shape).numel() for one in range(number + 1))
            everything = torch.arange(shape.numel(), device=self.tape.device)
            norms = [self._norms(number, some) for some in everything.split(max(1, _AT_ONCE // width))]
            self._found[number] = torch.cat(norms).view(shape)
        return self._found[number]

    def _norms(self, number: int, some: Tensor) -> Tensor:
        shape = self.tape.nodes[number].shape
        rows = torch.zeros(len(some), torch.Size(shape).numel(), dtype=torch.float64, device=self.tape.device)
        rows.scatter_(1, some[:, None], 1.0)
        pending = {number: rows.view(1, len(some), *shape)}
        for one in range(number, 0, -1):
            row, node = pending.pop(one, None), self.tape.nodes[one]
            if row is None:
                continue
            assert isinstance(node, Affine)
            for source, part in zip(node.inputs, self.tape.pulled_back(one, row), strict=True):
                pending[source] = pending[source] + part if source in pending else part
        return pending[0][0].flatten(1).norm(dim=1) if 0 in pending else rows.new_zeros(len(some))
