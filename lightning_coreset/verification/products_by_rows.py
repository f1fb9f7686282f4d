"""What operators compute of weights whose rows are made as they are read: products of matrices, and lookups.

Each equals torch's own result but for the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_coreset.verification.made_weights import MadeWeight, view_of

Find: TypeAlias = Callable[[Any], MadeWeight | None]
"""Of a tensor that has no content of its own, what makes it."""
_aten = torch.ops.aten


def product(find: Find, left: Tensor, right: Tensor) -> Tensor | None:
    """A product of matrices one of which is such a weight, or its transpose; ``None`` if that is not so."""
    known = find(right)
    if known is not None and find(left) is None:
        return _multiplied(left, known, right)
    known = find(left)
    if known is None or find(right) is not None:
        return None
    result = _multiplied(right.t(), known, left.t())
    return None if result is None else result.t()


def _multiplied(left: Tensor, known: MadeWeight, right: Tensor) -> Tensor | None:
    """A matrix times a weight, or its transpose."""
    whole = known.memory
    if left.dim() != 2 or right.dim() != 2 or whole.dim() != 2 or left.shape[1] != right.shape[0]:
        return None
    if view_of(right) == view_of(whole.t()):
        result = left.new_empty(len(left), len(whole))
        for which, rows in known.blocks():
            result[:, which] = left @ rows.t()
        return result
    if view_of(right) == view_of(whole):
        result = left.new_zeros(len(left), whole.shape[1])
        for which, rows in known.blocks():
            result.addmm_(left[:, which], rows)
        return result
    return None


def product_with_bias(find: Find, bias: Tensor, left: Tensor, right: Tensor) -> Tensor | None:
    """The same with a vector added to each row."""
    result = product(find, left, right)
    return None if result is None or find(bias) is not None else result.add_(bias)


def lookup(find: Find, weight: Tensor, numbers: Tensor, *_: Any) -> Tensor | None:
    """The rows of such a weight at some positions."""
    known = find(weight)
    if known is None or find(numbers) is not None or view_of(weight) != view_of(known.memory):
        return None
    if not numbers.numel() or int(numbers.min()) < 0 or int(numbers.max()) >= len(weight):
        return None  # torch has the message for it
    return known.rows(numbers.flatten().long()).reshape(*numbers.shape, *weight.shape[1:]).clone()


BY_ROWS: Mapping[Any, Callable[..., Tensor | None]] = {
    _aten.mm.default: product,
    _aten.addmm.default: product_with_bias,
    _aten.embedding.default: lookup,
}
