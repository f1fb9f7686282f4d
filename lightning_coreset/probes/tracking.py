"""Which elements of the inputs a tensor holds, followed through operators that only move or rescale elements.

Every element of every input has a number. A tensor whose elements are still elements of inputs, moved, or shifted and
scaled by constants, is known by the tensor of their numbers; whatever else is computed from inputs is only known as
computed. Constants (parameters, buffers, position tables) are not known at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_coreset.structure.op_call import OpCall, tensors_among
from lightning_coreset.structure.weak_map import IdentityWeakMap

NOWHERE = -1
"""Number of an element that comes from no input."""

_MOVES = frozenset(
    """
    _reshape_alias _unsafe_view alias as_strided chunk clone constant_pad_nd detach diagonal expand flip index_select
    narrow permute reflection_pad1d reflection_pad2d repeat roll select slice split split_with_sizes squeeze t transpose
    unbind unfold unsqueeze view
    """.split()
)
_JOINS = frozenset({"cat", "stack"})
_RESCALES = frozenset(
    """
    _to_copy abs add batch_norm clamp clamp_max clamp_min cudnn_batch_norm div exp lift_fresh log log10 log1p log2
    maximum minimum mul native_batch_norm native_group_norm native_layer_norm neg pow reciprocal relu remainder rsqrt
    rsub sigmoid sqrt square sub tanh where
    """.split()
)
"""What leaves each element at its place; if all other operands are constants, it is still known as that element."""


class Numbers:
    """Numbers of the elements of tensors, by the tensor.

    Args:
        leaves: The inputs; their elements are numbered one after another.

    Attributes:
        starts: The first number of each input, and in the end the first that belongs to none.
        shapes: The shape of each.
    """

    def __init__(self, leaves: Iterable[Tensor]) -> None:
        self.starts: list[int] = [0]
        self.shapes: list[tuple[int, ...]] = []
        self._known: IdentityWeakMap[Tensor] = IdentityWeakMap(forgets=True)
        self._computed: IdentityWeakMap[bool] = IdentityWeakMap(forgets=True)
        for leaf in leaves:
            start = self.starts[-1]
            self._known[leaf] = torch.arange(start, start + leaf.numel(), device=leaf.device).view(leaf.shape)
            self.starts.append(start + leaf.numel())
            self.shapes.append(tuple(leaf.shape))

    def of(self, tensor: Tensor) -> Tensor | None:
        """The numbers of a tensor's elements, in its shape; ``None`` if they are not elements of inputs."""
        return self._known.get(tensor)

    def is_computed(self, tensor: Tensor) -> bool:
        """Whether its values come from inputs, but are not elements of them any more."""
        return tensor in self._computed

    def is_read(self, tensor: Tensor) -> bool:
        """Whether it holds elements of inputs, or values that come from them."""
        return tensor in self._known or tensor in self._computed

    def leaves_in(self, held: Tensor) -> list[int]:
        """The inputs, by their places, of which there are elements among these numbers."""
        held = held[held != NOWHERE]
        if not held.numel():
            return []
        low, high = (
            int(torch.searchsorted(torch.tensor(self.starts[1:]), one.cpu(), right=True)) for one in held.aminmax()
        )
        between = range(low, high + 1)
        return [leaf for leaf in between if low == high or self._is_among(leaf, held)]

    def _is_among(self, leaf: int, held: Tensor) -> bool:
        start, stop = self.starts[leaf : leaf + 2]
        return bool(((held >= start) & (held < stop)).any())

    def follow(self, call: OpCall) -> bool:
        """Note what the results of a call hold; returns whether elements of inputs are among them."""
        moved = self._moved(call)
        for result in call.results:
            self._known.forget(result)
            self._computed[result] = True
        for result, numbers in zip(call.results, moved, strict=False):
            if result.shape == numbers.shape:
                self._computed.forget(result)
                self._known[result] = numbers
        return bool(moved)

    def _moved(self, call: OpCall) -> list[Tensor]:
        """The numbers in the first results of a call: all results, or that of a norm, which also returns statistics."""
        known = [(tensor, held) for tensor in call.tensors if (held := self.of(tensor)) is not None]
        if not known or any(map(self.is_computed, call.tensors)):
            return []
        if call.name in _JOINS:
            return self._replayed(call, self._numbers_or_nowhere)
        if len(known) > 1:
            return []
        ((tensor, numbers),) = known
        if call.name in _MOVES and call.args and call.args[0] is tensor:
            return self._replayed(call, lambda value: numbers if value is tensor else value)
        if call.name in _RESCALES and numbers.dim() <= call.results[0].dim():
            return [numbers.expand(call.results[0].shape)]
        return []

    def _numbers_or_nowhere(self, value: Tensor) -> Tensor:
        numbers = self.of(value)
        return torch.full(value.shape, NOWHERE, device=value.device) if numbers is None else numbers

    def _replayed(self, call: OpCall, stand_in: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """The numbers moved as the elements were: the operator is run on them."""

        def replaced(value: Any) -> Any:
            if isinstance(value, Tensor):
                return stand_in(value)
            return [replaced(one) for one in value] if isinstance(value, list | tuple) else value

        args = [replaced(value) for value in call.args]
        kwargs = {key: replaced(value) for key, value in call.kwargs.items()}
        if call.name == "constant_pad_nd":
            args, kwargs = [*args[:2], NOWHERE], {}
        return tensors_among((call.function(*args, **kwargs),))
