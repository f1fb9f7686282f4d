"""Grouped products in the precision of a trial: torch has them in single and half precision only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_coreset._compat import GROUPED_PRODUCT, DispatchMode

_NUMBERS = 4
"""Of single precision, in the 16 bytes that strides are multiples of."""


class GroupedProducts(DispatchMode):
    """Computes grouped products of double precision, one group after the other.

    Matrices of sizes that torch refuses in single precision are refused here, too.
    """

    def concerns(self, func: Any) -> bool:
        """Whether an operator is a grouped product."""
        return func.name() == GROUPED_PRODUCT

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation."""
        kwargs = kwargs or {}
        if not self.concerns(func) or args[0].dtype != torch.float64:
            return func(*args, **kwargs)
        first, second, ends = args[0], args[1], kwargs.get("offs", args[2] if len(args) > 2 else None)
        for operand in (first, second):
            if max(operand.stride()[-2:]) % _NUMBERS:
                raise RuntimeError("strides should be multiple of 16 bytes")
        if first.dim() == second.dim() == 3:
            return torch.bmm(first, second)
        return _by_rows(first, second, ends) if first.dim() == 2 else _by_rows(second.mT, first.mT, ends).mT


def _by_rows(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """The product of rows (n, k) with matrices (g, k, m), of which each has the rows up to its end."""
    out, start = rows.new_zeros(len(rows), matrices.shape[-1]), 0
    for matrix, end in zip(matrices, ends.tolist(), strict=True):
        out[start:end] = rows[start:end] @ matrix
        start = end
    return out
