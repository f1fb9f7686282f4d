"""Products of half-precision numbers in single precision, on processors that have no arithmetic for the former.

There torch multiplies matrices in bfloat16 and float16 several times slower than in float32 (on an AMD EPYC with AVX2:
2.5 times from 32 rows on, 6 times from 512). The results are rounded to half precision at the end, so that what is
measured is what the network computes, but for the order in which products are added up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lightning_coreset._compat import DispatchMode, multiplies_in
from lightning_coreset.moments.inputs import HALF

aten = torch.ops.aten

_FEWEST_ROWS = 32
"""Of what meets a matrix: with 16, rounding its numbers takes as long as is gained."""
_NUMBERS = 2**22
"""Of an operand, or a result, that are held in single precision at a time: 16 MiB, where a head has 65M numbers."""
_MOST_ROWS = 2048
"""Of a block of an operand; more make no product faster."""


def products_in_single(tensors: Iterable[Tensor]) -> AbstractContextManager[Any]:
    """Within it, products of half-precision numbers are computed in single precision, if that is faster.

    Args:
        tensors: Parameters and buffers of the network that is run.
    """
    kinds = {one.dtype for one in tensors if one.dtype in HALF and one.device.type == "cpu"}
    slow = {dtype for dtype in kinds if not multiplies_in(dtype)}
    return _SinglePrecision(slow) if slow else nullcontext()


class _SinglePrecision(DispatchMode):
    """Entered before what watches operators, which then sees the operands as they were.

    Args:
        dtypes: Of the numbers that are multiplied in single precision.
    """

    def __init__(self, dtypes: Iterable[torch.dtype]) -> None:
        super().__init__()
        self._dtypes = set(dtypes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        compute = _OPERATORS.get(func)
        operands = [one for one in args if isinstance(one, Tensor)]
        if compute is None or not all(map(self._is_slow, operands)):
            return func(*args, **kwargs)
        made = compute(*args, **kwargs)
        return func(*args, **kwargs) if made is None else made

    def _is_slow(self, operand: Tensor) -> bool:
        return operand.dtype in self._dtypes and operand.device.type == "cpu" and operand.layout is torch.strided


def _product(left: Tensor, right: Tensor) -> Tensor | None:
    """``left @ right``, (P, K) and (K, O); ``None`` where one has few rows or columns."""
    return _sum(None, left, right)


def _sum(added: Tensor | None, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor | None:
    """``beta * added + alpha * left @ right``, block by block."""
    rows, columns = len(left), right.shape[1]
    if min(rows, columns) < _FEWEST_ROWS or not len(right):
        return None
    step = min(max(_NUMBERS // len(right), _FEWEST_ROWS), _MOST_ROWS)
    made = left.new_empty(rows, columns)
    added = None if added is None else added.expand(rows, columns)
    for across in _parts(columns, step):
        block = right[:, across].float()
        for down in _parts(rows, step):
            few = left[down].float()
            if added is None:
                made[down, across] = torch.mm(few, block)
            else:
                made[down, across] = torch.addmm(added[down, across].float(), few, block, beta=beta, alpha=alpha)
    return made


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    made = _sum(bias, inputs.reshape(-1, inputs.shape[-1]), weight.T) if weight.dim() == 2 else None
    return None if made is None else made.unflatten(0, inputs.shape[:-1])


def _batched(left: Tensor, right: Tensor) -> Tensor | None:
    """``left @ right``, (B, P, K) and (B, K, O), some of the B at a time."""
    return _batched_sum(None, left, right)


def _batched_sum(
    added: Tensor | None, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor | None:
    size = (len(left), left.shape[1], right.shape[2])
    largest = max(left[0].numel(), right[0].numel(), size[1] * size[2]) if size[0] else 0
    if not 0 < largest <= _NUMBERS:
        return None
    made = left.new_empty(size)
    added = None if added is None else added.expand(size)
    for some in _parts(size[0], _NUMBERS // largest):
        first, second = left[some].float(), right[some].float()
        if added is None:
            made[some] = torch.bmm(first, second)
        else:
            made[some] = torch.baddbmm(added[some].float(), first, second, beta=beta, alpha=alpha)
    return made


def _convolution(inputs: Tensor, weight: Tensor, bias: Tensor | None, *options: Any) -> Tensor | None:
    """A convolution, of some of the samples at a time."""
    if inputs.dim() != weight.dim() or not inputs.numel() or weight.numel() > _NUMBERS:
        return None
    of_one = inputs[0].numel() * max(1, len(weight) // max(inputs.shape[1], 1))
    wide, constant = weight.float(), None if bias is None else bias.float()
    blocks = [
        aten.convolution.default(inputs[some].float(), wide, constant, *options).to(inputs.dtype)
        for some in _parts(len(inputs), max(_NUMBERS // of_one, 1))
    ]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def _parts(total: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, total, step))


_OPERATORS: Mapping[Any, Callable[..., Tensor | None]] = {
    aten.mm.default: _product,
    aten.addmm.default: _sum,
    aten.linear.default: _linear,
    aten.bmm.default: _batched,
    aten.baddbmm.default: _batched_sum,
    aten.convolution.default: _convolution,
}
