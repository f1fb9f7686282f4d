"""Ready-made rules: what most operators do to channels, said in a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lightning_coreset._compat import tree_map
from lightning_coreset.structure.labels import ChannelLabels, TensorInfo
from lightning_coreset.structure.op_call import OpCall
from lightning_coreset.structure.ops import aten_rules
from lightning_coreset.structure.ops.einsum import contract
from lightning_coreset.structure.ops.elementwise import follow_elementwise
from lightning_coreset.structure.ops.pieces import unite_pieces
from lightning_coreset.structure.propagation import Propagation
from lightning_coreset.structure.registry import overload_of
from lightning_coreset.structure.steps import Step


@dataclass(frozen=True)
class Elementwise:
    """Every element of the result is computed of the elements at its place, by the same function for all places.

    All tensors among the arguments broadcast to the result's shape. One that varies along the channels, such as a slope
    for each of them, must be a parameter or buffer, which is cut along. The operator may also write into its first
    argument instead of returning a result.

    The mathematics of coresets does not know the function, so channels behind the operator are ranked by norms;
    ``register_activation`` says what it is.

    Example:
        >>> import torch
        >>> from lightning_coreset.structure import Elementwise, register_rule
        >>> @torch.library.custom_op("shop::softcap", mutates_args=())
        ... def softcap(x: torch.Tensor, cap: float) -> torch.Tensor:
        ...     return cap * torch.tanh(x / cap)
        >>> register_rule(torch.ops.shop.softcap, Elementwise()).remove()
    """

    def __call__(self, propagation: Propagation, call: OpCall) -> None:
        """Follow a call."""
        shape = torch.broadcast_shapes(*[tensor.shape for tensor in call.tensors])
        if not call.results or any(result.shape != shape for result in call.results):
            raise NotImplementedError("the shape of a result is not that of the elements that enter it")
        if any(tensor is not call.tensors[0] for tensor in call.written):
            raise NotImplementedError("it writes into another tensor than its first")
        changed = [tensor for tensor in call.written if all(tensor is not result for result in call.results)]
        follow_elementwise(propagation, replace(call, results=[*call.results, *changed]), self.step(call))

    def step(self, call: OpCall) -> Step:
        """The step of a call on the paths between layers."""
        return Step(call.name, call.numbers)


@dataclass(frozen=True)
class Movement:
    """Every element of the result is an element of the first argument: the channels are only moved.

    Where they are moved to is found by moving their labels. What also matters is whether the operator would move the
    channels that are left in the same way after others were removed: state with ``equal_chunks`` or ``pinned`` where
    that holds only for some of them.

    Args:
        like: What moves elements in the same way: an operator of aten that has a rule (``torch.ops.aten.permute``) and
            takes the same arguments, whose own limits hold as well; or a function that takes the arguments of the
            operator and is called with labels (int64) in place of the first one.
        equal_chunks: By dimension of the first argument, in how many equal chunks it is taken: all of them lose the
            same positions.
        pinned: Dimensions of the first argument along which no single index may go.

    Raises:
        TypeError: If ``like`` is not callable.
        ValueError: If an operator that it names has no rule, or several overloads; or if a number of chunks is below 2.

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
            if overload.overloadpacket not in aten_rules():
                raise ValueError(f"Expected like to be an operator of aten that has a rule but got {self.like}.")
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
            propagation.block(other, f"says where {call.title} moves channels")
        for dim, count in self.equal_chunks.items():
            size, rest = divmod(source.shape[dim], count)
            if rest:
                raise NotImplementedError(f"dimension {dim} is not {count} equal chunks")
            unite_pieces(propagation, source, dim % source.dim(), size, f"is taken in equal chunks by {call.title}")
        dims = {dim % source.dim() for dim in self.pinned}
        axes = propagation.pin_dims(source, dims, f"is moved at fixed positions by {call.title}")
        if hasattr(self.like, "overloadpacket"):
            aten_rules()[self.like.overloadpacket](propagation, self._as_aten(call))
        else:
            self._move(propagation, call, axes)
        _check_shapes(propagation, call)

    def _as_aten(self, call: OpCall) -> OpCall:
        return replace(OpCall.read(self.like, call.args, call.kwargs, call.tensors, None), results=call.results)

    def _move(self, propagation: Propagation, call: OpCall, axes: Sequence[ChannelLabels]) -> None:
        source, info = call.args[0], propagation.info(call.args[0])
        arguments = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, list(call.args[1:]))
        moved = []
        for axis in axes:
            labels = self.like(axis.labels.expand(source.shape).clone(), *arguments, **call.kwargs)
            labels = list(labels) if isinstance(labels, (list, tuple)) else [labels]
            if [one.shape for one in labels] != [result.shape for result in call.results]:
                raise NotImplementedError("labels are moved into another shape than the tensor")
            moved.append([axis.with_labels(one) for one in labels])
        for number, result in enumerate(call.results):
            own = tuple(labels[number] for labels in moved)
            propagation.set_info(result, TensorInfo(own, info.constant, None, info.producer_paths))


@dataclass(frozen=True)
class Contraction:
    """A product of a tensor with a weight, as ``torch.einsum`` writes it, and a bias that may be added.

    The result must be that product exactly, for the mathematics of coresets takes the weight for that of a layer.

    Args:
        notation: As for ``torch.einsum``, with two operands and ``->``: ``"...k,mk->...m"`` for a Linear. Every letter
            that only one operand has is in the result.
        operands: The positions of both operands among the operator's arguments.
        weight: The position of the weight among its arguments, one of ``operands``.
        bias: The position of the bias, one number for each channel of the result; ``None`` without one.

    Raises:
        ValueError: If the notation cannot be read, or the positions do not fit each other.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lightning_coreset.structure import Contraction, find_groups, register_rule
        >>> @torch.library.custom_op("shop::linear", mutates_args=())
        ... def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        ...     return x @ weight.T + bias
        >>> class Fused(nn.Linear):
        ...     def forward(self, x):
        ...         return linear(x, self.weight, self.bias)
        >>> net = nn.Sequential(Fused(4, 8), nn.ReLU(), Fused(8, 2))
        >>> with register_rule(torch.ops.shop.linear, Contraction("...k,mk->...m", weight=1, bias=2)):
        ...     [(group.name, group.size) for group in find_groups(net, torch.randn(1, 4))]
        [('0', 8)]
    """

    notation: str
    operands: tuple[int, int] = (0, 1)
    weight: int = 1
    bias: int | None = None

    def __post_init__(self) -> None:
        if self.weight not in self.operands or self.bias in self.operands or len(set(self.operands)) != 2:
            raise ValueError(
                f"Expected two operands, one of them the weight, and another argument as the bias, but got operands "
                f"{self.operands}, weight {self.weight} and bias {self.bias}."
            )
        first, second, out = self._parts()
        fits = (
            all(letter.isalpha() for letter in first + second + out)
            and all(len(set(part)) == len(part) for part in (first, second, out))
            and set(first) ^ set(second) <= set(out) <= set(first) | set(second)
            and self.notation.count("...") == (2 if self._dotted()[2] else 0)
        )
        if not fits:
            raise ValueError(
                f"Expected a product of two operands in einsum notation, such as '...k,mk->...m', but got "
                f"{self.notation!r}."
            )

    def _parts(self) -> tuple[str, str, str]:
        """The letters of both operands and of the result, without the dots."""
        operands, arrow, out = self.notation.replace(" ", "").partition("->")
        parts = [*operands.split(","), out]
        if not arrow or len(parts) != 3:
            return "", "", "-"
        first, second, out = (part.removeprefix("...") for part in parts)
        return first, second, out

    def _dotted(self) -> list[bool]:
        """Whether dimensions are left out in front of each part."""
        return [part.startswith("...") for part in self.notation.replace(" ", "").replace("->", ",").split(",")]

    def __call__(self, propagation: Propagation, call: OpCall) -> None:
        """Follow a call."""
        given = list(call.arguments.values())
        first, second = (given[place] for place in self.operands)
        bias = given[self.bias] if self.bias is not None else None
        if len(call.results) != 1 or call.written or len(call.tensors) != 2 + (bias is not None):
            raise NotImplementedError("it is not a product of two tensors")
        if not propagation.info(given[self.weight]).constant:
            raise NotImplementedError("its weight is computed from the input")
        (out,), notation = call.results, self._for(first, second)
        if out.shape != _shape(notation, first, second):
            raise NotImplementedError("the shape of its result is not that of the product")
        contract(propagation, first, second, notation, out, self._placed(propagation, bias, notation, out))

    def _for(self, first: Tensor, second: Tensor) -> str:
        """The notation for these operands, with letters for the dots."""
        parts = self._parts()
        used = {letter for part in parts for letter in part}
        spare = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" if letter not in used]
        names = []
        dotted = self._dotted()
        for part, dots, tensor in zip(parts[:2], dotted[:2], (first, second), strict=True):
            lead = "".join(spare[: tensor.dim() - len(part)]) if dots else ""
            if len(lead) + len(part) != tensor.dim():
                raise NotImplementedError("an operand has another number of dimensions")
            names.append(lead + part)
        lead = max((name[: len(name) - len(part)] for name, part in zip(names, parts, strict=False)), key=len)
        return f"{names[0]},{names[1]}->{lead if dotted[2] else ''}{parts[2]}"

    def _placed(self, propagation: Propagation, bias: Tensor | None, notation: str, out: Tensor) -> Tensor | None:
        """The bias along the dimension of the result that the weight makes."""
        if bias is None:
            return None
        names, _, letters = notation.partition("->")
        own, other = names.split(",") if self.weight == self.operands[0] else names.split(",")[::-1]
        made = [letters.index(letter) for letter in own if letter in letters and letter not in other]
        if len(made) != 1 or bias.shape != (out.shape[made[0]],):
            raise NotImplementedError("its bias is not one number for each channel of the result")
        if made[0] == out.dim() - 1:
            return bias
        shape = [1] * out.dim()
        shape[made[0]] = -1
        placed, info = bias.view(shape), propagation.info(bias)
        axes = tuple(axis.with_labels(axis.labels.view(shape)) for axis in info.channel_labels)
        propagation.set_info(placed, TensorInfo(axes, info.constant, info.direct, info.producer_paths))
        return placed


@dataclass(frozen=True)
class Pinned:
    """The operator reads fixed positions, or computes over them: no single channel along some dimensions may go.

    Channels along the other dimensions of the first argument pass to the results; further tensors are left whole.

    Args:
        dims: Dimensions of the first argument, from the end if negative; ``None`` for all of them.

    Raises:
        ValueError: If ``dims`` are not whole numbers.

    Example:
        Statistics over the last dimension, as in a fused LayerNorm. Channels of images lie along another one:

        >>> import torch
        >>> from lightning_coreset.structure import Pinned, register_rule
        >>> @torch.library.custom_op("shop::standardize", mutates_args=())
        ... def standardize(x: torch.Tensor) -> torch.Tensor:
        ...     return (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True)
        >>> register_rule(torch.ops.shop.standardize, Pinned(dims=(-1,))).remove()
    """

    dims: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.dims is not None and not all(isinstance(dim, int) for dim in self.dims):
            raise ValueError(f"Expected dims to be whole numbers or None but got {self.dims!r}.")

    def __call__(self, propagation: Propagation, call: OpCall) -> None:
        """Follow a call."""
        if call.written:
            raise NotImplementedError("it writes into its arguments")
        source = call.tensors[0]
        reason = f"is read at fixed positions by {call.title}"
        for other in call.tensors[1:]:
            propagation.block(other, reason)
        dims = range(source.dim()) if self.dims is None else {dim % source.dim() for dim in self.dims}
        axes = propagation.pin_dims(source, dims, reason)
        info = TensorInfo(axes, producer_paths=propagation.producer_paths(call.tensors, Step(call.name, call.numbers)))
        for result in call.results:
            propagation.set_info(result, info)
        _check_shapes(propagation, call)


def _check_shapes(propagation: Propagation, call: OpCall) -> None:
    """Labels that do not fit the result are none of it."""
    for result in call.results:
        for axis in propagation.info(result).channel_labels:
            if axis.labels.dim() != result.dim() or any(
                result.shape[dim] != axis.labels.shape[dim] for dim in axis.dims
            ):
                raise NotImplementedError("labels do not fit the shape of its result")


def _shape(notation: str, first: Tensor, second: Tensor) -> tuple[int, ...]:
    names, _, out = notation.partition("->")
    sizes: dict[str, int] = {}
    for letters, tensor in zip(names.split(","), (first, second), strict=True):
        for letter, size in zip(letters, tensor.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise NotImplementedError("its operands do not fit the notation")
    return tuple(sizes[letter] for letter in out)
