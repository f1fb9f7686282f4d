"""Ways to get a network that a trial may change: a copy of it, or where that is impossible the network itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_coreset._compat import DispatchMode, outside_of_modes, storage_number
from lightning_coreset.state import duplicate, restored, stand_ins
from lightning_coreset.verification.concerned import Concerned
from lightning_coreset.verification.memory import PRECISIONS, precisions_that_fit
from lightning_coreset.verification.virtual import VirtualWeights, saves_memory


@dataclass(frozen=True)
class Usable:
    """A network that may be changed.

    Attributes:
        model: The network.
        dtypes: The precisions in which it may be run, the preferred one first.
        untouched: Parameters of the original, which it should not use.
        around: Modes that have to see what concerns them whenever it is run.
        virtual: Makes its large weights whenever they are read.
    """

    model: nn.Module
    dtypes: tuple[torch.dtype, ...]
    untouched: ParametersUsed
    around: tuple[Concerned, ...] = ()
    virtual: VirtualWeights | None = None


Way: TypeAlias = Callable[[nn.Module], AbstractContextManager[Usable]]


@contextmanager
def on_a_copy_without_weights(model: nn.Module) -> Iterator[Usable]:
    """A copy whose large weights are made of the original's whenever they are read, so that they take no memory."""
    own, virtual = ParametersUsed(model.parameters()), VirtualWeights(model)
    with restored(model, watch=False) as state, virtual:
        copy = duplicate(model, virtual.in_place_of_weights())
        yield Usable(copy, PRECISIONS, own, (state.watching(),), virtual)


@contextmanager
def on_a_copy(model: nn.Module) -> Iterator[Usable]:
    """A copy. What it shares with the original is put back."""
    precisions = precisions_that_fit(model)
    with restored(model, watch=False) as state:
        yield Usable(duplicate(model), precisions, ParametersUsed(model.parameters()), (state.watching(),))


@contextmanager
def with_other_parameters(model: nn.Module) -> Iterator[Usable]:
    """The network itself with copies of its parameters, for code that knows it by name: a closure, a global."""
    own, precisions = ParametersUsed(model.parameters()), precisions_that_fit(model)
    with restored(model, watch=False) as state, stand_ins(model):
        yield Usable(model, precisions, own, (state.watching(),))


@contextmanager
def in_its_memory(model: nn.Module) -> Iterator[Usable]:
    """The network itself, in the memory of its parameters, whose content is kept on the CPU until the end.

    Raises:
        RuntimeError: If they have a precision in which a trial would prove nothing.
    """
    own = ParametersUsed(model.parameters(), same_memory=True)
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if len(dtypes) != 1 or not dtypes <= {*PRECISIONS}:
        names = ", ".join(sorted(map(str, dtypes)))
        raise RuntimeError(f"expected parameters of one precision, float32 or float64, but got {names}")
    # Outside: what looks at writes would keep copies on the device.
    with outside_of_modes(), stand_ins(model, share_memory=True):
        yield Usable(model, tuple(dtypes), own)


WAYS: tuple[Way, ...] = (on_a_copy, with_other_parameters, in_its_memory)
"""The safer and faster ones first."""


def ways_for(model: nn.Module) -> tuple[Way, ...]:
    """The ways for a network: a large one is tried without a copy of its weights first."""
    return (on_a_copy_without_weights, *WAYS) if saves_memory(model) else WAYS


class ParametersUsed(DispatchMode):
    """Sees whether a network that should run on other parameters uses these.

    Args:
        parameters: The parameters.
        same_memory: Whether the others use the same memory, so that only the objects tell them apart.

    Attributes:
        found: Whether it has.
    """

    supports_higher_order_operators = True

    def __init__(self, parameters: Iterable[nn.Parameter], *, same_memory: bool = False) -> None:
        super().__init__()
        self.found = False
        self._own = {id(parameter): parameter for parameter in parameters}
        known = () if same_memory else self._own.values()
        self._memory = {storage_number(parameter) for parameter in known if _has_memory(parameter)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation."""
        for value in (*args, *(kwargs or {}).values()):
            for one in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(one, Tensor) and not self.found:
                    self.found = id(one) in self._own or (_has_memory(one) and storage_number(one) in self._memory)
        return func(*args, **(kwargs or {}))


def _has_memory(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_meta and tensor.numel() > 0
