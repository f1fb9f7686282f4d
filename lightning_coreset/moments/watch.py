"""Watches a run: which operators multiply which weights with what."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_coreset._compat import TorchDispatchMode
from lightning_coreset.moments.inputs import LayerInput, as_it_was
from lightning_coreset.moments.sampling import channels_last, patches_of, rows_of

aten = torch.ops.aten

_MOST_CALLS = 4
"""A weight that runs more often in one run, as in a loop over time, is sampled as often as this."""


class AllSeen(BaseException):
    """Ends a run, the rest of which would show nothing; no error, and none that a network should catch."""


class WeightReads(TorchDispatchMode):
    """Samples what some weights are multiplied with.

    Args:
        tensors: Parameters and buffers of the run by name.
        wanted: For weights by name, the dimension that is contracted, and how many rows a run is to give.
        calls: How often a run like this one reads each, if that is known: then behind the last of them it ends.
        only_count: Weights whose samples lose their contents as soon as they are taken: what is left, (R, 1, 1), is
            zero, or NaN if there was NaN or infinity.

    Raises:
        AllSeen: Once everything was read as often as ``calls`` says.

    Attributes:
        found: For every weight that was seen, a sample for each call.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        wanted: Mapping[str, tuple[int, int]],
        calls: Mapping[str, int] | None = None,
        *,
        only_count: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.found: dict[str, list[LayerInput]] = {}
        self._wanted = wanted
        self._only_count = only_count
        self._left = None if calls is None else {name: count for name, count in calls.items() if count}
        self._weights = {_address(tensors[name]): (name, tensors[name]) for name in wanted if name in tensors}
        self._weights.pop(-1, None)
        self._dtypes = {name: tensors[name].dtype for name in wanted if name in tensors}
        self._vectors = {_address(tensor): name for name, tensor in tensors.items() if tensor.dim() == 1}
        self._equal: dict[tuple[int, ...], list[Tensor]] = {}
        self._emptied_ones: dict[tuple[tuple[int, ...], float], Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        look = _OPERATORS.get(func)
        # What was complete before failed at its last product, and is run again, with gradients, to fail again.
        failed = bool(self.found) and not self._left
        if look is not None:
            look(self, *args, **(kwargs or {}))
        made = func(*args, **(kwargs or {}))  # the last product too, which fails where what is read does not fit
        if look is not None and self._left is not None and not self._left and not failed:
            raise AllSeen
        if func is aten._weight_norm_interface.default:
            self._see_weight_made(args[0], made[0])
        return made

    def _see_weight_made(self, direction: Tensor, weight: Tensor) -> None:
        """A weight that ``weight_norm`` makes of a direction, which stands for it wherever weights are named."""
        name, known = self._weights.get(_address(direction), (None, None))
        if name is not None and known is not None and weight.shape == known.shape:
            self._weights[_address(weight)] = name, weight  # held, so that its address is not given to another

    def see_product(self, left: Tensor, right: Tensor, bias: Tensor | None = None) -> None:
        """A product of matrices, ``left @ right``."""
        if left.layout is not torch.strided or right.layout is not torch.strided:
            return
        if left.dim() == 3:
            if right.stride(0) == 0 or len(right) == 1:  # a Linear of one weight for all, or an einsum
                left, right = left.flatten(0, 1), right[0]
            elif left.stride(0) == 0 or len(left) == 1:
                left, right = left[0], right.transpose(1, 2).flatten(0, 1).T
            else:
                return
        for inputs, weight, contracted in ((left, right, 0), (right.T, left, 1)):
            name = self._name(weight, contracted)
            if name is not None:
                self._add(name, lambda wanted, call, inputs=inputs: rows_of(inputs, wanted, call)[:, :, None], bias)

    def see_linear(self, inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        """A linear layer that is one operator."""
        name = self._name(weight, 1)
        if name is not None:
            flat = inputs.reshape(-1, inputs.shape[-1])
            self._add(name, lambda wanted, call: rows_of(flat, wanted, call)[:, :, None], bias)

    def see_convolution(
        self,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        transposed: bool,
        output_padding: list[int],
        groups: int,
    ) -> None:
        """A convolution, transposed or not."""
        name, known = self._weights.get(_address(weight), (None, None))
        if name is None or known is None or weight.shape != known.shape or inputs.dim() != weight.dim():
            return
        spatial = weight.dim() - 2
        stride, padding, dilation = (list(one) * (spatial // len(one)) for one in (stride, padding, dilation))

        def sample(wanted: int, call: int) -> Tensor:
            if transposed:
                return rows_of(channels_last(inputs), wanted, call)[:, :, None]
            return patches_of(inputs, weight.shape[2:], stride, padding, dilation, wanted, call)

        self._add(name, sample, bias, groups=groups, transposed=transposed)

    def _add(
        self,
        name: str,
        sample: Callable[[int, int], Tensor],
        bias: Tensor | None,
        groups: int = 1,
        transposed: bool = False,
    ) -> None:
        calls = self.found.setdefault(name, [])
        if len(calls) >= _MOST_CALLS:
            return
        rows = as_it_was(sample(self._wanted[name][1], len(calls)), self._dtypes[name])
        rows = self._emptied(rows) if name in self._only_count else self._shared(rows)
        added = None if bias is None else self._vectors.get(_address(bias))
        calls.append(LayerInput(rows, groups, transposed, added))
        if self._left is not None and len(calls) >= self._left.get(name, _MOST_CALLS):
            self._left.pop(name, None)

    def _shared(self, rows: Tensor) -> Tensor:
        """The same memory for layers that read one tensor."""
        alike = self._equal.setdefault(tuple(rows.shape), [])
        known = next((one for one in alike if torch.equal(one, rows)), None)
        if known is None:
            alike.append(rows)
            return rows
        return known

    def _emptied(self, rows: Tensor) -> Tensor:
        """As many samples, of which only their number and whether they are finite is known, (R, 1, 1).

        The same memory for layers that read one tensor, as far as sums tell.
        """
        total = float(rows.sum(dtype=torch.float64))
        known = (tuple(rows.shape), total)
        if known not in self._emptied_ones:
            value = 0.0 if math.isfinite(total) or bool(rows.isfinite().all()) else torch.nan
            self._emptied_ones[known] = rows.new_full((), value).expand(len(rows), 1, 1)
        return self._emptied_ones[known]

    def _name(self, weight: Tensor, contracted: int) -> str | None:
        """The weight that a matrix is or is a view of, all of whose inputs the product adds up along one dimension."""
        name, known = self._weights.get(_address(weight), (None, None))
        if name is None or known is None:
            return None
        dim = self._wanted[name][0]
        length, step = known.shape[dim], known.stride(dim)
        if weight.shape[contracted] != length or (length > 1 and weight.stride(contracted) != step):
            return None
        ahead = int(weight.storage_offset()) - int(known.storage_offset())
        return name if (ahead // max(int(step), 1)) % length == 0 else None


def _address(tensor: Tensor) -> int:
    """Where the memory of a tensor begins; -1 of one without memory of its own, such as a sparse one."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else -1


_OPERATORS: Mapping[Any, Callable[..., None]] = {
    aten.mm.default: lambda watch, left, right: watch.see_product(left, right),
    aten.bmm.default: lambda watch, left, right: watch.see_product(left, right),
    aten.addmm.default: lambda watch, bias, left, right, **_: watch.see_product(left, right, bias),
    aten.linear.default: WeightReads.see_linear,
    aten.convolution.default: WeightReads.see_convolution,
}


class BatchNormOutputs(TorchFunctionMode):
    """Lets BatchNorms use the statistics of the batch, if asked to, and samples what some of them make.

    Their buffers are neither read nor written then.

    Args:
        tensors: Parameters and buffers of the run by name.
        wanted: For running means by name, how many rows a run is to give.
        by_batch: Whether to normalise by the batch.

    Attributes:
        found: Samples of the outputs, (R, C), by the name of the running mean, one for each call.
    """

    def __init__(self, tensors: Mapping[str, Tensor], wanted: Mapping[str, int], *, by_batch: bool) -> None:
        super().__init__()
        self.found: dict[str, list[Tensor]] = {}
        self._wanted = wanted
        self._by_batch = by_batch
        self._means = {_address(tensors[name]): name for name in wanted if name in tensors}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if self._by_batch:
            made = F.batch_norm(input, None, None, weight, bias, True, 0.0, eps)
        else:
            made = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        name = None if running_mean is None else self._means.get(_address(running_mean))
        if name is not None:
            calls = self.found.setdefault(name, [])
            calls.append(rows_of(channels_last(made), self._wanted[name], len(calls)))
        return made
