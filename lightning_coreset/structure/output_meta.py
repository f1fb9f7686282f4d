"""The form of an operation's result (shape, strides, type) without its values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_coreset._compat import tree_map

WORTHWHILE = 1 << 20
"""Multiply-accumulates of a large product: below this size, deferring costs more than computing."""

_aten = torch.ops.aten


def is_large_product(function: Any, tensors: list[Tensor]) -> bool:
    """Whether an operation on ``tensors`` is a product or a convolution of so many multiply-accumulates, at least."""
    if function.overloadpacket not in _PRODUCTS or len(tensors) < 2:
        return False
    first, second = tensors[-2:] if function.overloadpacket is not _aten.convolution else tensors[:2]
    # Every number of the first meets a row of the second; a convolution moves its kernel over about every position.
    width = second.shape[-1] if function.overloadpacket is not _aten.convolution else math.prod(second.shape[1:])
    return first.numel() * width >= WORTHWHILE


def empty_result(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What ``function(*args, **kwargs)`` returns, with any values in it.

    Raises:
        Exception: If the form depends on values, is not known, or the arguments do not fit.
    """
    form = _FORMS.get(function.overloadpacket)
    result = form(*args, **kwargs) if form is not None else None
    return _by_meta(function, args, kwargs) if result is None else result


def _by_meta(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Ask torch's own kernels for tensors without memory, which know the form of nearly everything."""
    args, kwargs = tree_map(_without_memory, (args, dict(kwargs)))
    return tree_map(_with_memory, function(*args, **kwargs))


def _without_memory(leaf: Any) -> Any:
    if isinstance(leaf, torch.device):
        return torch.device("meta")
    return (
        leaf
        if not isinstance(leaf, Tensor)
        else torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")
    )


def _with_memory(leaf: Any) -> Any:
    return leaf if not isinstance(leaf, Tensor) else torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype)


# ---- Forms for which torch's meta kernels are slow, being Python, or wrong for the CPU. ``None`` where these few
# ---- lines do not know the form and torch's kernels do.


class _NotKnown(Exception):  # noqa: N818 - a finding, not an error
    """Nobody knows the form beforehand."""


def _like_first(first: Tensor, *_: Any, **__: Any) -> Tensor | None:
    return torch.empty_like(first) if first.is_floating_point() else None


def _softmax(x: Tensor, _: int, dtype: Any = None) -> Tensor | None:
    # The third argument of aten._softmax is whether half becomes single precision; that of _safe_softmax a type.
    return torch.empty_like(x) if not dtype else None


def _arithmetic(first: Any, second: Any, **_: Any) -> Tensor | None:
    if not isinstance(first, Tensor) or not first.is_floating_point():
        return None
    if not isinstance(second, Tensor):
        return torch.empty_like(first) if isinstance(second, (int, float)) else None
    if second.dtype != first.dtype or second.dim() > first.dim():
        return None
    if second.shape == first.shape:
        return torch.empty_like(first) if second.stride() == first.stride() else None
    fits = all(size in (1, other) for size, other in zip(second.shape[::-1], first.shape[::-1], strict=False))
    return torch.empty_like(first) if fits and first.is_contiguous() and second.is_contiguous() else None


def _batch_norm(x: Tensor, *statistics: Any, **_: Any) -> tuple[Tensor, Tensor, Tensor]:
    training = statistics[4]
    if training or not (x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))):
        raise _NotKnown
    return torch.empty_like(x), x.new_empty(0), x.new_empty(0)


def _layer_norm(x: Tensor, shape: list[int], *_: Any, **__: Any) -> tuple[Tensor, Tensor, Tensor] | None:
    lead = x.dim() - len(shape)
    if not x.is_contiguous() or list(x.shape[lead:]) != list(shape):
        return None
    statistics = [*x.shape[:lead], *[1] * len(shape)]
    return torch.empty_like(x), x.new_empty(statistics), x.new_empty(statistics)


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor | None:
    dims = len(stride)
    if transposed and not (x.is_contiguous() and weight.is_contiguous()):
        raise _NotKnown
    if transposed or x.dim() != dims + 2 or x.shape[1] != weight.shape[1] * groups or len(padding) != dims:
        return None
    if x.dtype != weight.dtype or not weight.is_contiguous():
        raise _NotKnown
    sizes = [
        (size + 2 * pad - step * (kernel - 1) - 1) // move + 1
        for size, kernel, move, pad, step in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    if min(sizes) <= 0:
        return None
    result = x.new_empty(x.shape[0], weight.shape[0], *sizes)
    if x.is_contiguous():
        return result
    if x.dim() == 4 and x.stride(1) == 1:  # channels last
        return result.contiguous(memory_format=torch.channels_last)
    raise _NotKnown


def _unsafe_view(x: Tensor, shape: list[int]) -> Tensor | None:
    return x.new_empty(shape) if min(shape, default=0) >= 0 and math.prod(shape) == x.numel() else None


def _recurrent(*_: Any, **__: Any) -> None:
    raise _NotKnown


def _mm(first: Tensor, second: Tensor) -> Tensor | None:
    if first.dtype != second.dtype or first.shape[-1] != second.shape[-2] or first.shape[:-2] != second.shape[:-2]:
        return None
    return first.new_empty(*first.shape[:-1], second.shape[-1])


def _addmm(bias: Tensor, first: Tensor, second: Tensor, **_: Any) -> Tensor | None:
    if bias.dtype != first.dtype or bias.shape[-1:] not in ((1,), second.shape[-1:]) or bias.dim() > 1:
        return None
    return _mm(first, second)


_PRODUCTS = frozenset({_aten.convolution, _aten.mm, _aten.addmm, _aten.bmm})
_FORMS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(
        (
            *(_aten.relu, _aten.relu_, _aten.gelu, _aten.silu, _aten.silu_, _aten.mish, _aten.sigmoid, _aten.tanh),
            *(_aten.hardswish, _aten.hardswish_, _aten.hardsigmoid, _aten.hardtanh, _aten.hardtanh_, _aten.softplus),
            *(_aten.leaky_relu, _aten.leaky_relu_, _aten.elu, _aten.neg, _aten.exp, _aten.rsqrt),
        ),
        _like_first,
    ),
    **dict.fromkeys((_aten.add, _aten.add_, _aten.sub, _aten.mul, _aten.mul_, _aten.div), _arithmetic),
    **dict.fromkeys((_aten._softmax, _aten._safe_softmax), _softmax),
    _aten.native_batch_norm: _batch_norm,
    _aten.native_layer_norm: _layer_norm,
    **dict.fromkeys((_aten.mm, _aten.bmm), _mm),
    _aten.addmm: _addmm,
    _aten.convolution: _convolution,
    _aten._unsafe_view: _unsafe_view,
    _aten.mkldnn_rnn_layer: _recurrent,
}
