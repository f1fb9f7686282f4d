"""Convolutions of single channels in double precision, which torch computes channel by channel.

In single precision, a convolution of every channel by itself (``groups`` equal to the number of channels) has a kernel
of its own. In double precision, torch 2.13 runs a general convolution for each channel: on MobileOne-S0 and
EfficientNet-B4 that was nine tenths of a run. On small maps, a sum over the taps of the kernel, each times the whole
map shifted, takes a fifth of that or less.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_coreset._compat import DispatchMode

_FORWARD = torch.ops.aten.convolution.default
_BACKWARD = torch.ops.aten.convolution_backward.default
_POSITIONS = 32 * 32
"""Of a map: on larger ones, the work of torch's kernel is more than what it costs to call it for each channel."""


class DepthwiseConvolutions(DispatchMode):
    """Computes depthwise convolutions of small maps, and their derivatives, as sums over the taps of the kernel.

    Equal to torch's results but for the order of sums. What is no such convolution, or of shapes that do not fit, is
    left to torch.

    Example:
        >>> x, weight = torch.randn(2, 3, 5, 5, dtype=torch.float64), torch.randn(3, 1, 3, 3, dtype=torch.float64)
        >>> with DepthwiseConvolutions():
        ...     y = functional.conv2d(x, weight, padding=1, groups=3)
        >>> bool(torch.allclose(y, functional.conv2d(x, weight, padding=1, groups=3)))
        True
    """

    def concerns(self, func: Any) -> bool:
        """Whether an operator is a convolution, or its derivative."""
        return func is _FORWARD or func is _BACKWARD

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation."""
        if func is _FORWARD and not kwargs and len(args) == 9:
            source, weight, bias, stride, padding, dilation, transposed, _, groups = args
            if not transposed and _is_small_depthwise(source, weight, bias, groups, stride, padding, dilation):
                return _forward(source, weight, bias, stride, padding, dilation)
        if func is _BACKWARD and not kwargs and len(args) == 11:
            grad, source, weight, _, stride, padding, dilation, transposed, _, groups, wanted = args
            if not transposed and _is_small_depthwise(source, weight, None, groups, stride, padding, dilation):
                return _backward(grad, source, weight, stride, padding, dilation, wanted)
        return func(*args, **(kwargs or {}))


def depthwise_convolutions(model: nn.Module) -> list[DepthwiseConvolutions]:
    """The mode for a network with such convolutions in double precision, by its parameters; else none."""
    shapes = (one.shape for one in model.parameters() if one.dtype is torch.float64 and one.dim() > 2)
    return [DepthwiseConvolutions()] if any(shape[1] == 1 < shape[0] for shape in shapes) else []


def _is_small_depthwise(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> bool:
    """Whether every channel has a kernel of its own, all shapes fit, and the result is a small map of several."""
    ndim = source.dim() - 2
    tensors = (source, weight) if bias is None else (source, weight, bias)
    plain = all(one.dtype is torch.float64 and one.device.type == "cpu" for one in tensors)
    if not plain or ndim < 1 or groups < 2 or not all(len(one) == ndim for one in (stride, padding, dilation)):
        return False
    if source.shape[1] != groups or tuple(weight.shape[:2]) != (groups, 1) or weight.dim() != ndim + 2:
        return False
    if (bias is not None and tuple(bias.shape) != (groups,)) or source.numel() == 0:
        return False
    sizes = _sizes(source, weight, stride, padding, dilation)
    return min(sizes) > 0 and math.prod(sizes) <= _POSITIONS and source.is_contiguous() and weight.is_contiguous()


def _sizes(
    source: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """The sizes of the resulting map."""
    steps = zip(source.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    return [(size + 2 * pad - far * (taps - 1) - 1) // step + 1 for size, taps, step, pad, far in steps]


def _taps(
    weight: Tensor, sizes: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """The taps of a kernel, each with the part of a padded map, channels last, that it is multiplied with."""
    for tap in itertools.product(*map(range, weight.shape[2:])):
        places = zip(tap, sizes, stride, dilation, strict=True)
        along = (slice(at * far, at * far + step * (size - 1) + 1, step) for at, size, step, far in places)
        yield tap, (slice(None), *along)


def _padded(source: Tensor, padding: Sequence[int]) -> Tensor:
    """A map with its channels last, so that what lies side by side in memory is multiplied by other numbers each."""
    last = source.movedim(1, -1)
    around = [0, 0, *(pad for one in reversed(padding) for pad in (one, one))]
    return functional.pad(last, around) if any(padding) else last.contiguous()


def _by_tap(weight: Tensor) -> Tensor:
    """A kernel with its taps first and its channels last."""
    return weight[:, 0].movedim(0, -1).contiguous()


def _forward(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    sizes = _sizes(source, weight, stride, padding, dilation)
    whole, kernel = _padded(source, padding), _by_tap(weight)
    result = source.new_zeros(len(source), *sizes, weight.shape[0])
    if bias is not None:
        result += bias
    for tap, part in _taps(weight, sizes, stride, dilation):
        result.addcmul_(whole[part], kernel[tap])
    return result.movedim(-1, 1).contiguous()


def _backward(
    grad: Tensor,
    source: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The derivatives with respect to input, weight and bias, those that are wanted."""
    sizes = _sizes(source, weight, stride, padding, dilation)
    last, kernel = grad.movedim(1, -1).contiguous(), _by_tap(weight)
    whole = _padded(source, padding) if wanted[1] else None
    grown = [size + 2 * pad for size, pad in zip(source.shape[2:], padding, strict=True)]
    of_source = source.new_zeros(len(source), *grown, weight.shape[0]) if wanted[0] else None
    of_kernel = torch.zeros_like(kernel)
    for tap, part in _taps(weight, sizes, stride, dilation):
        if of_source is not None:
            of_source[part].addcmul_(last, kernel[tap])
        if whole is not None:
            of_kernel[tap] = (whole[part] * last).flatten(0, -2).sum(0)
    inner = (slice(None), *(slice(pad, pad + size) for pad, size in zip(padding, source.shape[2:], strict=True)))
    return (
        None if of_source is None else of_source[inner].movedim(-1, 1).contiguous(),
        of_kernel.movedim(-1, 0).unsqueeze(1).contiguous() if wanted[1] else None,
        last.flatten(0, -2).sum(0) if wanted[2] else None,
    )
