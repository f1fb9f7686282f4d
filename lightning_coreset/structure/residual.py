"""Which additions are residual: those that couple a layer with what came before its own input.

The channels of a residual stream are made by all the layers that add to it, and read by all the layers behind these:
when one goes, it goes from every block. Parallel branches are another matter. A layer whose output is a sum of several
products of the same tensor, such as the convolutions of RepVGG or ``W x + B A x`` of LoRA, is one layer in several
parts. What tells them apart is what the layers read. An addition is residual if

- one summand was made by a layer that reads, directly or through others, what made another summand (an identity
  shortcut); or
- one was made by a layer that reads all that the maker of another one reads, and in between what other layers made of
  it (a shortcut with a projection of its own). Layers that follow each other with nothing but linear operations between
  them, as A and B of LoRA do, are one layer here.

So each call of a layer has a number, and so has each input of the network; sets of them are the bits of integers.
Calls, not layers, since a cell that is called in every step of a loop reads what it made itself a step before, and adds
that to what it makes of the inputs: it is no shortcut.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from lightning_coreset.structure.op_call import name_of
from lightning_coreset.structure.weak_map import IdentityWeakMap

if TYPE_CHECKING:
    from lightning_coreset.structure.labels import ChannelLabels
    from lightning_coreset.structure.propagation import Propagation

_MOST_NUMBERS = 4096
"""From then on, calls of a layer share a number, so that long loops stay cheap. More additions may look residual."""

_LINEAR = frozenset(
    """
add sub rsub neg sum mean cat stack clone _to_copy detach alias dropout native_dropout constant_pad_nd index_select
avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d _adaptive_avg_pool2d _adaptive_avg_pool3d upsample_nearest1d
upsample_nearest2d upsample_nearest3d upsample_bilinear2d native_batch_norm _native_batch_norm_legit cudnn_batch_norm
_native_batch_norm_legit_no_training _batch_norm_with_update _unsafe_view
""".split()
)
_LINEAR_IN_EACH = frozenset({"mul", "div"})
_OF_A_SIZE = frozenset(
    "empty_like zeros_like ones_like full_like rand_like randn_like new_empty new_zeros new_ones new_full".split()
)


class Origin(NamedTuple):
    """Where the values of a tensor come from, as sets of numbers.

    Attributes:
        depends: The calls and inputs that they depend on in any way.
        beyond: The same without the calls that nothing but linear operations separate from the tensor.
        made_by: The calls that made its channels, with no other layer since.
    """

    depends: int = 0
    beyond: int = 0
    made_by: int = 0


_NOWHERE = Origin()


@dataclass(frozen=True)
class _Call:
    """What a call of a layer reads: see ``Origin``."""

    layer: str
    depends: int
    beyond: int
    made_by: int = 0


class ResidualAdditions:
    """Follows where tensors come from, and notes the channels that residual additions couple.

    Args:
        propagation: What follows the network.

    Attributes:
        beside: For layers that begin a branch of two linear layers, as A of LoRA does, the layers that read the same
            and to whose products this branch is added.
    """

    def __init__(self, propagation: Propagation) -> None:
        self.beside: dict[str, set[str]] = {}
        self._propagation = propagation
        self._labels: dict[tuple[int, int], Tensor] = {}  # by address and size, since loops add the same ones
        self._calls: list[_Call] = []  # and inputs, whose name is empty
        self._calls_of: dict[str, int] = {}
        self._known: IdentityWeakMap[Origin] = IdentityWeakMap()
        self._running: list[str] = []
        self._ignored = False

    @property
    def labels(self) -> list[Tensor]:
        """Labels of channels that residual additions couple, each in one dimension."""
        return list(self._labels.values())

    def begin_run(self) -> None:
        """Forget where tensors come from: what is left of a run before is an input of this one."""
        self._calls, self._calls_of, self._known = [], {}, IdentityWeakMap()

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """Note nothing in the block, which adds up what the inputs and states of a recurrent cell make."""
        self._ignored = True
        try:
            yield
        finally:
            self._ignored = False

    def begin_call(self, layer: str) -> None:
        """Say that the operator whose rule runs is a call of a layer."""
        self._running.append(layer)

    def see(self, function: Any, tensors: Iterable[Tensor], results: Iterable[Tensor]) -> None:
        """Note where the results of an operator come from, which may be tensors that it writes into."""
        of_a_size = hasattr(function, "overloadpacket") and name_of(function) in _OF_A_SIZE
        origins = [] if of_a_size else [origin for origin in map(self._origin, tensors) if origin.depends]
        layers, self._running = self._running, []
        depends = beyond = made = called = 0
        for origin in origins:
            depends, beyond, made = depends | origin.depends, beyond | origin.beyond, made | origin.made_by
        for layer in layers:
            called |= self._new(_Call(layer, depends, beyond, made))
        if not called and not _is_linear(function, len(origins)):
            beyond |= made
        depends |= called
        for result in results:
            names = self._propagation.info(result).producer_paths if depends else {}
            kept = self._among(made, names.keys() - {*layers}) if called else (made if names else 0)
            self._known[result] = Origin(depends, beyond, called | kept) if depends else _NOWHERE

    def note_sum(self, operands: Iterable[Tensor], axes: Sequence[ChannelLabels]) -> None:
        """Note the labels of a sum if it is residual."""
        summands = []
        for tensor in operands:
            info, origin = self._propagation.info(tensor), self._known.get(tensor) or _NOWHERE
            if info.channel_labels and info.producer_paths and origin.made_by:
                summands.append((origin.made_by, info.producer_paths.keys()))
        pairs = list(combinations(summands, 2))
        if any(self._are_residual(*one, *other) for one, other in pairs):
            self._note(axes)
        else:
            for (one, _), (other, _) in pairs:
                self._note_branches(one, other)
                self._note_branches(other, one)

    def note_bias(self, bias: Tensor, layer: str, inputs: Iterable[Tensor], axes: Sequence[ChannelLabels]) -> None:
        """The same for what is added to the product of a layer that reads ``inputs``, if that was made by one."""
        made, origins = self._origin(bias).made_by, list(map(self._origin, inputs))
        depends = beyond = 0
        for origin in origins:
            depends, beyond = depends | origin.depends, beyond | origin.beyond
        call = _Call(layer, depends, beyond)
        if depends & made or any(self._is_shortcut(one, call) for one in _bits(made)):
            self._note(axes)

    def _note_branches(self, deep: int, short: int) -> None:
        """Note the first of two linear layers, of which ``deep`` has the second, beside the layers of ``short``."""
        firsts = 0
        for second in map(self._calls.__getitem__, _bits(deep)):
            firsts |= second.made_by & ~second.beyond
        for first in map(self._calls.__getitem__, _bits(firsts)):
            for other in map(self._calls.__getitem__, _bits(short)):
                read_the_same = (first.beyond, first.made_by) == (other.beyond, other.made_by)
                if first.layer != other.layer and read_the_same:
                    self.beside.setdefault(first.layer, set()).add(other.layer)

    def _origin(self, tensor: Tensor) -> Origin:
        """What is known; a tensor that no operation made, and that the network does not hold, is an input."""
        known = self._known.get(tensor)
        if known is None:
            is_input = not self._propagation.info(tensor).constant and tensor.numel() > 1
            number = self._new(_Call("", 0, 0)) if is_input else 0
            known = self._known[tensor] = Origin(number, number, 0)
        return known

    def _note(self, axes: Iterable[ChannelLabels]) -> None:
        for flat in () if self._ignored else (axis.flat for axis in axes):
            self._labels[flat.data_ptr(), len(flat)] = flat

    def _new(self, call: _Call) -> int:
        """A new number, as a set of its own."""
        known = self._calls_of.get(call.layer, 0)
        if known and len(self._calls) >= _MOST_NUMBERS:
            number = known.bit_length() - 1
            before = self._calls[number]
            self._calls[number] = _Call(
                call.layer, before.depends | call.depends, before.beyond | call.beyond, before.made_by | call.made_by
            )
        else:
            number = len(self._calls)
            self._calls.append(call)
        self._calls_of[call.layer] = known | 1 << number
        return 1 << number

    def _among(self, calls: int, layers: Iterable[str]) -> int:
        """Those of the calls that are calls of these layers."""
        own = 0
        for layer in layers:
            own |= self._calls_of.get(layer, 0)
        return calls & own

    def _are_residual(self, one: int, makers: Collection[str], other: int, its_makers: Collection[str]) -> bool:
        """Whether the sum of two is; what both are made by says nothing."""
        own, its = {*makers} - {*its_makers}, {*its_makers} - {*makers}
        if not own or not its:
            return False
        one, other = self._among(one, own), self._among(other, its)
        if any(self._calls[number].depends & other for number in _bits(one)):
            return True
        if any(self._calls[number].depends & one for number in _bits(other)):
            return True
        pairs = ((first, second) for first in _bits(one) for second in _bits(other))
        return any(
            self._is_shortcut(first, self._calls[second]) or self._is_shortcut(second, self._calls[first])
            for first, second in pairs
        )

    def _is_shortcut(self, number: int, deep: _Call) -> bool:
        """Whether a call reads something of which other layers make what another call reads."""
        short = self._calls[number].beyond
        if not short or deep.beyond == short or deep.beyond | short != deep.beyond:
            return False
        # A cell that reads its own state reads more than its inputs, and yet does not come behind them.
        return not deep.depends & self._calls_of.get(deep.layer, 0)


def _is_linear(function: Any, operands: int) -> bool:
    """Whether an operator is linear in all tensors together that come from somewhere, of so many."""
    if not hasattr(function, "overloadpacket"):
        return False
    name = name_of(function)
    return function.is_view or name in _LINEAR or (name in _LINEAR_IN_EACH and operands < 2)


def _bits(calls: int) -> Iterator[int]:
    while calls:
        lowest = calls & -calls
        yield lowest.bit_length() - 1
        calls ^= lowest
