"""Operators that are not affine: activations by the table of ``coreset``, and what is made of ReLUs exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from lightning_coreset.agreement.affine_rules import Arguments, Data, holds_data
from lightning_coreset.agreement.writer import Writer
from lightning_coreset.coreset import Activation, find_activation
from lightning_coreset.coreset.activation_table import in_pieces
from lightning_coreset.structure import OpCall

_ABS = in_pieces("abs", (), torch.abs, -1.0, ((0.0, 2.0),))

Rule = Callable[[Writer, OpCall, Arguments, Sequence[int]], "int | None"]
"""Writes the result of a call down, of which the inputs have these numbers; ``None`` if it cannot."""


def write_nonlinear(writer: Writer, call: OpCall, arguments: Arguments, inputs: Sequence[int]) -> int | None:
    """The number of the result of a call; ``None`` if it is no activation that is known.

    Args:
        writer: Where it is written.
        call: The call.
        arguments: Its arguments, with ``Data`` for what depends on the input.
        inputs: The numbers of these.
    """
    rule = _RULES.get(call.name)
    if rule is not None:
        return rule(writer, call, arguments, inputs)
    _, *others = arguments.values()
    activation = _ABS if call.name == "abs" else find_activation(call.name, call.numbers)
    if any(isinstance(one, (Tensor, Data)) for one in others) or not is_covered(activation):
        return None
    assert activation is not None
    return writer.pointwise(activation, inputs[0])


def is_covered(activation: Activation | None) -> bool:
    """Whether it is known what the activation does to an interval."""
    return activation is not None and activation.turning_points is not None


def _prelu(writer: Writer, call: OpCall, arguments: Arguments, inputs: Sequence[int]) -> int | None:
    """The positive part, and the slope times the negative one."""
    slope = list(arguments.values())[1]
    if holds_data(slope):
        return None
    negative = writer.relu(writer.affine(torch.neg, torch.clone, inputs[0]))
    return writer.affine(
        lambda above, below: above - slope * below,
        lambda above, below: above + slope.abs() * below,
        writer.relu(inputs[0]),
        negative,
    )


def _maximum(writer: Writer, call: OpCall, arguments: Arguments, inputs: Sequence[int]) -> int | None:
    """Of two values of one shape that both depend on the input."""
    if len(inputs) < 2 or writer.nodes[inputs[0]].shape != writer.nodes[inputs[1]].shape:
        return None
    return writer.maximum(inputs[0], inputs[1])


def _minimum(writer: Writer, call: OpCall, arguments: Arguments, inputs: Sequence[int]) -> int | None:
    negatives = [writer.affine(torch.neg, torch.clone, one) for one in inputs]
    largest = _maximum(writer, call, arguments, negatives)
    return None if largest is None else writer.affine(torch.neg, torch.clone, largest)


def _amax(writer: Writer, call: OpCall, arguments: Arguments, inputs: Sequence[int]) -> int | None:
    shape = writer.nodes[inputs[0]].shape
    dims = call.dims("dim", len(shape))
    rest = [dim for dim in range(len(shape)) if dim not in dims]
    out = tuple(call.results[0].shape)

    def gathered(x: Tensor) -> Tensor:
        return x.permute(*rest, *dims).flatten(start_dim=len(rest))

    return writer.moved(lambda x: x.reshape(out), writer.maximum_over_last(writer.moved(gathered, inputs[0])))


def _max_pool(writer: Writer, call: OpCall, arguments: Arguments, inputs: Sequence[int]) -> int | None:
    kernel = arguments["kernel_size"]
    count = call.results[0].dim() - 2 if len(kernel) == 1 else len(kernel)
    settings = [_each(arguments[name], count) for name in ("kernel_size", "stride", "padding", "dilation")]
    settings[1] = settings[1] or settings[0]
    sizes, out = writer.nodes[inputs[0]].shape[-count:], call.results[0].shape[-count:]
    tables = [_window(*one) for one in zip(sizes, out, *settings, strict=True)]
    return _pooled(writer, inputs[0], tables, sizes)


def _adaptive_max_pool(writer: Writer, call: OpCall, arguments: Arguments, inputs: Sequence[int]) -> int | None:
    count = len(arguments["output_size"])
    sizes, out = writer.nodes[inputs[0]].shape[-count:], call.results[0].shape[-count:]
    return _pooled(writer, inputs[0], [_adaptive_window(*one) for one in zip(sizes, out, strict=True)], sizes)


def _each(value: Any, count: int) -> list[int]:
    values = list(value)
    return values * count if len(values) == 1 else values


def _window(size: int, out: int, kernel: int, stride: int, padding: int, dilation: int) -> Tensor:
    """The positions that each output looks at, (out, kernel); in place of padding one of the others."""
    places = torch.arange(out)[:, None] * stride - padding + torch.arange(kernel) * dilation
    inside = (places >= 0) & (places < size)
    some = places.gather(1, inside.long().argmax(dim=1, keepdim=True))
    return torch.where(inside, places, some)


def _adaptive_window(size: int, out: int) -> Tensor:
    at = torch.arange(out)
    first, end = at * size // out, -(-(at + 1) * size // out)
    return torch.minimum(first[:, None] + torch.arange(int((end - first).max())), end[:, None] - 1)


def _pooled(writer: Writer, source: int, tables: Sequence[Tensor], sizes: Sequence[int]) -> int:
    """The maximum over windows that are products of windows in each dimension."""

    def joined(index: Tensor, more: tuple[Tensor, int]) -> Tensor:
        table, size = more
        both = index[:, None, :, None] * size + table[None, :, None, :]
        return both.flatten(2).flatten(0, 1)

    index = reduce(joined, zip(tables[1:], sizes[1:], strict=True), tables[0])
    count, out = len(sizes), [len(table) for table in tables]
    flat, window = index.flatten().to(writer.device), index.shape[1]

    def gathered(x: Tensor) -> Tensor:
        found = x.flatten(start_dim=-count).index_select(-1, flat)
        return found.unflatten(-1, (*out, window))

    return writer.maximum_over_last(writer.moved(gathered, source))


_RULES: dict[str, Rule] = {
    "_prelu_kernel": _prelu,
    "maximum": _maximum,
    "fmax": _maximum,
    "minimum": _minimum,
    "fmin": _minimum,
    "amax": _amax,
    **dict.fromkeys(("max_pool2d_with_indices", "max_pool3d_with_indices"), _max_pool),
    **dict.fromkeys(("adaptive_max_pool2d", "adaptive_max_pool3d"), _adaptive_max_pool),
}
