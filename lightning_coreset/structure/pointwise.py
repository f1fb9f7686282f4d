"""Which tensors hold a function of one other tensor, element by element: activations that are written out.

``x * torch.sigmoid(x)`` are two operations along two ways that meet. Every operation here computes each element of its
result of the elements at the same place alone, so what all of them make together is by construction a function of one
number, the same for all channels and positions. It is recorded as an :class:`Expression`, which can be computed again
at any argument.

A tensor is followed from its *origin*, the tensor that the first of these operations reads. Two tensors are combined
only if they have the same origin and have been moved alike since: ``x * x.flip(-1)`` has another origin on either side,
and ``x.t() * x`` was moved on one side. Writes end what is known of all tensors that show the same memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_coreset.expressions import LONGEST, Expression, ScalarTensor, applied
from lightning_coreset.structure.op_call import OpCall, name_of
from lightning_coreset.structure.steps import Step, StepKind
from lightning_coreset.structure.views import SharedMemory
from lightning_coreset.structure.weak_map import IdentityWeakMap

if TYPE_CHECKING:
    from lightning_coreset.structure.layer_records import Paths
    from lightning_coreset.structure.propagation import Propagation

POINTWISE = frozenset(
    """
relu relu6 gelu silu mish sigmoid tanh hardtanh hardswish hardsigmoid leaky_relu elu celu selu softplus log_sigmoid
log_sigmoid_forward hardshrink softshrink threshold exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal
abs neg sign sgn sin cos tan asin acos atan sinh cosh asinh acosh atanh erf erfc erfinv round floor ceil trunc frac
clamp clamp_min clamp_max zeros_like ones_like full_like logit sinc
add sub rsub mul div pow maximum minimum fmax fmin eq ne lt gt le ge where lerp addcmul addcdiv
logical_not logical_and logical_or logical_xor bitwise_not bitwise_and bitwise_or bitwise_xor
""".split()
)
"""Operators whose results are, element by element, functions of the elements at the same place and of numbers."""

_MOVING = frozenset("view _unsafe_view reshape _reshape_alias transpose t permute unsqueeze squeeze".split())
_SAME = frozenset("alias detach clone contiguous _to_copy".split())
_FORMS = frozenset("dtype layout device pin_memory memory_format non_blocking".split())
"""Arguments that say where and how a result lies, not what it is."""


@dataclass(frozen=True, eq=False)
class Origin:
    """The tensor that a chain of operations starts from, as it was then; told from all others by identity.

    Attributes:
        paths: The steps since every producer.
    """

    paths: Paths


@dataclass(frozen=True, eq=False)
class Pointwise:
    """What a tensor holds.

    Attributes:
        origin: What it is a function of.
        shape: Its shape.
        expression: The function.
        moves: How the elements were moved since, in order: operator, arguments and the shape that it got.
    """

    origin: Origin
    shape: tuple[int, ...]
    expression: Expression = field(default_factory=Expression)
    moves: tuple[tuple[str, str, tuple[int, ...]], ...] = ()


class PointwiseFunctions:
    """Follows element-wise operations of a run.

    Args:
        propagation: The propagation, of which it asks what is known of tensors.
    """

    def __init__(self, propagation: Propagation) -> None:
        self._propagation = propagation
        # Beside what a tensor holds, the paths that it had then: who sets others says that it is something else.
        self._known: IdentityWeakMap[tuple[Pointwise, Paths]] = IdentityWeakMap()
        self._constants: IdentityWeakMap[float] = IdentityWeakMap()
        self._memory = SharedMemory()
        self._numbers_read = False

    def begin_run(self) -> None:
        """No number has been read of a tensor yet."""
        self._numbers_read = False

    def note_read(self) -> None:
        """The network's code has read values: numbers that it uses from now on may be made of them."""
        self._numbers_read = True

    def see(self, func: Any, tensors: Sequence[Tensor], result: Any) -> None:
        """Note reads of single numbers, and constants that the code makes without any other tensor."""
        name = name_of(func)
        if name == "_local_scalar_dense":
            self._numbers_read |= tensors[0].dtype != torch.bool  # a mask decides what is done, and is no number
        elif isinstance(result, Tensor) and result.dim() == 0 and result.is_floating_point() and tensors:
            # ``torch.tensor(0.5)``, where the code has read nothing that the number could be made of, and what
            # ``torch.sqrt`` makes of it: single numbers, the same for all elements.
            made = name == "lift_fresh" and not self._numbers_read and not self._propagation.is_followed(tensors[0])
            derived = name in POINTWISE or name in _SAME
            if made or (derived and all(tensor in self._constants for tensor in tensors)):
                self._memory.add([result])
                self._constants[result] = float(result)

    def forget_written(self, written: Iterable[Tensor]) -> None:
        """Know nothing any more of tensors whose memory is written into."""
        for tensor in written:
            for one in (tensor, *self._memory.others(tensor)):
                self._known.forget(one)
                self._constants.forget(one)

    def before(self, call: OpCall) -> list[Pointwise] | None:
        """What the tensors hold that enter a call, but for constants, before its rule changes what is known of them.

        Tensors of which nothing is known yet, and which channels reach, are origins. ``None`` if one holds nothing, or
        if the operator makes nothing of it that could be followed.
        """
        if call.name not in POINTWISE and call.name not in _MOVING and call.name not in _SAME:
            return None
        entered = [self._at(tensor) for tensor in call.tensors if tensor not in self._constants]
        known = [one for one in entered if one is not None]
        return known if known and len(known) == len(entered) else None

    def _at(self, tensor: Tensor) -> Pointwise | None:
        info, entry = self._propagation.info(tensor), self._known.get(tensor)
        if entry is not None and entry[1] is info.producer_paths:
            return entry[0]
        if info.constant or not info.producer_paths or not tensor.is_floating_point():
            return None
        origin = Pointwise(Origin(info.producer_paths), tuple(tensor.shape))
        self.remember(tensor, origin)
        return origin

    def remember(self, tensor: Tensor, holds: Pointwise) -> None:
        """Say what a tensor holds; its paths are known already."""
        self._known[tensor] = holds, self._propagation.info(tensor).producer_paths
        self._memory.add([tensor])

    def after(self, call: OpCall, entered: Sequence[Pointwise]) -> Pointwise | None:
        """What the first result of a call holds, by what entered it."""
        result, first = call.results[0], entered[0]
        if not result.is_floating_point() and result.dtype != torch.bool:
            return None
        if call.name in POINTWISE:
            return self._computed(call, entered)
        if call.inplace or len(entered) > 1:
            return None
        if call.name == "_to_copy":
            if not result.is_floating_point():
                return None
            # Rounding between floating types is left out; of a mask it makes numbers.
            is_mask = call.tensors[0].dtype == torch.bool
            return replace(first, expression=applied("_to_copy", [first.expression])) if is_mask else first
        if call.name in _SAME:
            return first
        shape = tuple(result.shape)
        return replace(first, shape=shape, moves=(*first.moves, (call.name, str(call.args[1:]), shape)))

    def _computed(self, call: OpCall, entered: Sequence[Pointwise]) -> Pointwise | None:
        first, shape = entered[0], tuple(call.results[0].shape)
        for one in entered:
            if one.origin is not first.origin or one.moves != first.moves or one.shape != shape:
                return None
        if call.inplace and not self._propagation.is_alone(call.tensors[0]):
            return None
        expression = self._expression(call, iter(entered))
        if expression is None or len(expression.operations) > LONGEST:
            return None
        return replace(first, expression=expression)

    def _expression(self, call: OpCall, entered: Iterator[Pointwise]) -> Expression | None:
        """The function that a call computes; ``None`` if one of its arguments may be another one in another run."""
        defaults = call.signature.defaults

        def operand(value: Any, default: Any) -> Any:
            if isinstance(value, Tensor):
                constant = self._constants.get(value)
                return next(entered).expression if constant is None else ScalarTensor(constant)
            plain = value is None or isinstance(value, str | bool) or value == default
            if plain or (isinstance(value, int | float) and not self._numbers_read):
                return value
            raise TypeError

        try:
            args = [operand(value, default) for value, default in zip(call.args, defaults.values(), strict=False)]
            named = {name: value for name, value in call.kwargs.items() if name not in _FORMS}
            kwargs = {name: operand(value, defaults[name]) for name, value in named.items()}
        except TypeError:
            return None
        return applied(call.name, args, kwargs)


def step_of(call: OpCall, holds: Pointwise) -> Step | None:
    """The step from the origin to the result of a call, of which it is known what it holds; ``None`` for movement."""
    is_cast_mask = call.name == "_to_copy" and call.tensors[0].dtype == torch.bool
    if call.name not in POINTWISE and not is_cast_mask:
        return None
    if len(holds.expression.operations) == 1 and len(call.tensors) == 1:
        return Step(call.name, call.numbers, None, holds.expression)
    return Step(StepKind.WRITTEN_OUT, (), None, holds.expression)
