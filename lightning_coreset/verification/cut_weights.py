"""What a change leaves of a tensor; of a weight that is made row by row, the same of its rows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor

from lightning_coreset.plan import ParameterChange
from lightning_coreset.surgery import new_value
from lightning_coreset.verification.made_weights import MadeWeight, Rows
from lightning_coreset.verification.virtual import VirtualWeights


def cut(change: ParameterChange, tensor: Tensor, virtual: VirtualWeights | None) -> Tensor:
    """What a change leaves of a tensor.

    Args:
        change: The change.
        tensor: The tensor.
        virtual: Makes weights whenever they are read; what is left of one of them is another one.
    """
    if virtual is None or tensor not in virtual or change.value is not None:
        return new_value(change, tensor)
    return virtual.new(change.new_shape, tensor.dtype, partial(_rows, change, virtual.made(tensor)))


def _rows(change: ParameterChange, made: MadeWeight, which: Rows) -> Tensor:
    kept, factors = dict(change.kept), dict(change.factors)
    rows = kept.pop(0)[which] if 0 in kept else which
    if 0 in factors:
        factors[0] = factors[0][which]
    return new_value(replace(change, kept=kept, factors=factors), made.rows(rows)).contiguous()
