"""Products of rows with one of several matrices each, as experts in one three-dimensional tensor are run."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from lightning_coreset.structure.ops.contraction import product
from lightning_coreset.structure.ops.einsum import contract
from lightning_coreset.structure.propagation import OpCall, Propagation, Rule

_BYTES = 16
"""What the strides of matrices must be multiples of in torch's grouped products."""
_HALF = 2
"""Bytes of a number in half precision, in which networks are mostly run that were analysed in single precision."""


def grouped_product(propagation: Propagation, call: OpCall) -> None:
    """``_grouped_mm(rows, matrices, offs)``: each of so many rows by the next matrix, or the other way round."""
    first, second = call.args[0], call.args[1]
    _note_strides(propagation, first)
    _note_strides(propagation, second)
    _follow(propagation, call, first, second, call.arguments.get("bias"))


def grouped_product_of_any_size(propagation: Propagation, call: OpCall) -> None:
    """The same by an operator to which strides do not matter."""
    first, second = call.args[0], call.args[1]
    _follow(propagation, call, first, second, None)


def _follow(propagation: Propagation, call: OpCall, first: Tensor, second: Tensor, bias: Tensor | None) -> None:
    if first.dim() == second.dim() == 3:
        product(propagation, replace(call, args=(first, second), signature=replace(call.signature, name="bmm")))
        return
    if {first.dim(), second.dim()} != {2, 3} or bias is not None:
        raise NotImplementedError("the groups lie along what is summed over")
    rows, matrices = (first, second) if first.dim() == 2 else (second, first)
    propagation.pin_dims(rows, [0 if rows is first else 1], "is a row of a grouped product")
    axes = propagation.pin_dims(matrices, [0], "is a matrix of a grouped product")
    one, info = matrices[0], propagation.info(matrices)
    moved = tuple(axis.with_labels(axis.labels.squeeze(0)) for axis in axes)
    propagation.set_info(one, replace(info, channel_labels=moved, direct=None))
    pair = (rows, one) if rows is first else (one, rows)
    contract(propagation, *pair, "nk,km->nm", call.results[0])


def _note_strides(propagation: Propagation, tensor: Tensor) -> None:
    """The rows of a matrix must be a multiple of some numbers long, where these lie side by side."""
    dim = tensor.dim() - 1 if tensor.stride(-1) == 1 else tensor.dim() - 2
    numbers = _BYTES // tensor.element_size()
    if tensor.shape[dim] % (_BYTES // _HALF) == 0:
        numbers = max(numbers, _BYTES // _HALF)
    labels = propagation.channel_labels(tensor, dim, "is a row of a grouped product")
    propagation.multiples.append((labels, numbers))


RULES: dict[str, Rule] = {"_grouped_mm": grouped_product}
FOREIGN_RULES: dict[str, Rule] = {"transformers::grouped_mm_fallback": grouped_product_of_any_size}
"""By qualified names: the same products, of networks for which torch has none."""
