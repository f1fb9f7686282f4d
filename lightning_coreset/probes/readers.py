"""How one operator reads elements of inputs: as a convolution, a product, a matrix of its own, places, or otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from lightning_coreset.probes.leaf import Use
from lightning_coreset.probes.tracking import Numbers
from lightning_coreset.structure import OpCall

_MATRICES = {"mm": 0, "bmm": 0, "mv": 0, "linear": 0, "addmm": 1, "baddbmm": 1, "addmv": 1}
"""Products, and the place of the first of their two matrices."""
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu", "mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn")
_INDEXING = frozenset(
    """
    gather index index_add index_copy index_fill index_put index_reduce index_select scatter scatter_add scatter_reduce
    """.split()
)


def readings(call: OpCall, numbers: Numbers) -> Iterator[tuple[int, Use]]:
    """The inputs that a call reads elements of, by their places among the inputs, and how it reads each."""
    for tensor in call.tensors:
        held = numbers.of(tensor)
        if held is not None:
            for leaf in numbers.leaves_in(held):
                yield leaf, _use(call, tensor, held, leaf, numbers)


def _use(call: OpCall, tensor: Tensor, held: Tensor, leaf: int, numbers: Numbers) -> Use:
    if call.name == "convolution" and tensor is call.args[0]:
        return Use("convolution", _dims(held, leaf, numbers), tuple(call.args[1].shape[2:]))
    if call.name in _RECURRENT and tensor is call.args[0]:
        return Use("product", _dims(held, leaf, numbers))
    if call.name in _MATRICES:
        return _use_in_product(call, tensor, held, leaf, numbers)
    if call.name in _INDEXING and not tensor.is_floating_point() and tensor is not call.args[0]:
        return Use("index")
    return Use("other")


def _use_in_product(call: OpCall, tensor: Tensor, held: Tensor, leaf: int, numbers: Numbers) -> Use:
    first = _MATRICES[call.name]
    left, right = call.args[first : first + 2]
    if tensor is not left and tensor is not right:  # a bias
        return Use("other")
    other = right if tensor is left else left
    if numbers.of(other) is None and not numbers.is_computed(other):  # a weight
        dims = _dims(held, leaf, numbers)
        # In W x, the features are along the rows of x.
        return Use("product", dims if tensor is left or len(dims) < 2 else (*dims[:-2], dims[-1], dims[-2]))
    if tensor is left and tensor.dim() > 1 and tensor.shape[-1] == tensor.shape[-2] > 1:
        return Use("operator")
    return Use("other")


def _dims(held: Tensor, leaf: int, numbers: Numbers) -> tuple[int | None, ...]:
    """For each dimension of a tensor with these numbers, the dimension of the leaf that it runs along."""
    start, stop = numbers.starts[leaf : leaf + 2]
    shape = numbers.shapes[leaf]
    places = ((held >= start) & (held < stop)).nonzero()
    middle = places[len(places) // 2].tolist()
    lines = [held[(*middle[:dim], slice(None), *middle[dim + 1 :])] for dim in range(held.dim())]
    return tuple(_dim_along(line[(line >= start) & (line < stop)], shape) for line in lines)


def _dim_along(line: Tensor, shape: Sequence[int]) -> int | None:
    """The dimension of a contiguous tensor that a line of its element numbers runs along, if it is a single one."""
    if len(line) < 2:
        return None
    steps = line.diff().abs()
    step = int(steps[0])
    if bool((steps != step).any()):
        return None
    stride = 1
    for dim in reversed(range(len(shape))):
        if stride == step and shape[dim] > 1 and len(line) <= shape[dim]:
            return dim
        stride *= shape[dim]
    return None
