"""Operators that move elements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_coreset.structure.labels import ChannelLabels, TensorInfo
from lightning_coreset.structure.op_call import OpCall
from lightning_coreset.structure.ops import aten_movements, aten_rules
from lightning_coreset.structure.ops.movement import move_labels
from lightning_coreset.structure.ops.pieces import unite_pieces
from lightning_coreset.structure.propagation import Propagation
from lightning_coreset.structure.registry import overload_of


@dataclass(frozen=True)
class Movement:
    """Every element of the result is an element of the first argument: the channels are only moved.

    Where they are moved to is found by moving their labels. What also matters is whether the operator would move the
    channels that are left in the same way after others were removed: state with ``equal_chunks`` or ``pinned`` where
    that holds only for some of them.

    Args:
        like: What moves elements in the same way: an operator of aten that does so (``torch.ops.aten.permute``) and
            takes the same arguments, whose own limits hold as well; or a function that takes the arguments of the
            operator and is called with labels (int64) in place of the first one.
        equal_chunks: By dimension of the first argument, in how many equal chunks it is taken: all of them lose the
            same positions.
        pinned: Dimensions of the first argument along which no single index may go.

    Raises:
        TypeError: If ``like`` is not callable.
        ValueError: If an operator that it names moves no elements, or has several overloads; or if a number of chunks
            is below 2.

    Example:
        Halves that are swapped stay halves as long as both lose the same channels:

        >>> import torch
        >>> from torch import nn
        >>> from lightning_coreset.structure import Movement, find_groups, register_rule
        >>> @torch.library.custom_op("shop::swap_halves", mutates_args=())
        ... def swap_halves(x: torch.Tensor) -> torch.Tensor:
        ...     return torch.cat(x.chunk(2, dim=1)[::-1], dim=1)
        >>> def moved(labels):
        ...     return torch.cat(labels.chunk(2, dim=1)[::-1], dim=1)
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)
        ...
        ...     def forward(self, x):
        ...         return self.b(swap_halves(self.a(x)))
        >>> with register_rule(torch.ops.shop.swap_halves, Movement(moved, equal_chunks={1: 2})):
        ...     (group,) = find_groups(Net(), torch.randn(1, 4))
        >>> group.size, group.members[0].index[1]
        (4, (1, 5))
    """

    like: Callable[..., Any]
    equal_chunks: Mapping[int, int] = field(default_factory=dict)
    pinned: Sequence[int] = ()

    def __post_init__(self) -> None:
        if not callable(self.like):
            raise TypeError(f"Expected like to be an operator or a function but got {self.like!r}.")
        if hasattr(self.like, "overloads") or hasattr(self.like, "overloadpacket"):
            overload = overload_of(self.like)
            if overload.overloadpacket not in aten_movements():
                raise ValueError(f"Expected like to be an operator of aten that moves elements but got {self.like}.")
            object.__setattr__(self, "like", overload)
        for dim, count in self.equal_chunks.items():
            if not isinstance(count, int) or count < 2:
                raise ValueError(f"Expected at least 2 equal chunks along dimension {dim} but got {count!r}.")

    def __call__(self, propagation: Propagation, call: OpCall) -> None:
        """Follow a call."""
        source = call.args[0]
        if call.written or any(result.dtype != source.dtype for result in call.results):
            raise NotImplementedError("it does more than move its first argument")
        for other in call.tensors[1:]:
            propagation.block(other, f"says where channels are moved ({call.title})")
        for dim, count in self.equal_chunks.items():
            size, rest = divmod(source.shape[dim], count)
            if rest:
                raise NotImplementedError(f"dimension {dim} is not {count} equal chunks")
            unite_pieces(propagation, source, dim % source.dim(), size, f"is taken in equal chunks ({call.title})")
        dims = {dim % source.dim() for dim in self.pinned}
        axes = propagation.pin_dims(source, dims, f"is moved at fixed positions ({call.title})")
        if hasattr(self.like, "overloadpacket"):
            aten_rules()[self.like.overloadpacket](propagation, self._as_aten(call))
        else:
            self._move(propagation, call, axes)
        check_shapes(propagation, call)

    def _as_aten(self, call: OpCall) -> OpCall:
        return replace(OpCall.read(self.like, call.args, call.kwargs, call.tensors, None), results=call.results)

    def _move(self, propagation: Propagation, call: OpCall, axes: Sequence[ChannelLabels]) -> None:
        source, info = call.args[0], propagation.info(call.args[0])
        moved = []
        for axis in axes:
            # A copy: a user's function may write into its argument.
            labels = move_labels(self.like, axis.labels.expand(source.shape).clone(), call)
            if [one.shape for one in labels] != [result.shape for result in call.results]:
                raise NotImplementedError("labels are moved into another shape than the tensor")
            moved.append([axis.with_labels(one) for one in labels])
        for number, result in enumerate(call.results):
            own = tuple(labels[number] for labels in moved)
            propagation.set_info(result, TensorInfo(own, info.constant, None, info.producer_paths))


def check_shapes(propagation: Propagation, call: OpCall) -> None:
    """Labels that do not fit the result are none of it."""
    for result in call.results:
        for axis in propagation.info(result).channel_labels:
            if axis.labels.dim() != result.dim() or any(
                result.shape[dim] != axis.labels.shape[dim] for dim in axis.dims
            ):
                raise NotImplementedError("labels do not fit the shape of its result")
