"""Copies of networks, also of those that hold what cannot be copied, or functions that know the network by name."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Mapping
from types import BuiltinFunctionType, CellType, FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lightning_coreset.state.reach import ATOMS, contents, is_shared, reachable

Module = TypeVar("Module", bound=nn.Module)
_CONTAINERS = (dict, list, tuple, set, frozenset)


def duplicate(model: Module, instead: Mapping[int, Any] | None = None) -> Module:
    """A deep copy of a network; that of a LightningModule keeps its Trainer, which ``training_step`` may read.

    Locks, files, clients, generators and other things that cannot be copied are shared with the original, if no
    parameter is among what they hold. Functions that enclose the network or parts of it enclose the copy's.

    Args:
        model: The network.
        instead: What the copy holds in place of copies of some objects, by the ids of these.

    Raises:
        Exception: What ``copy.deepcopy`` raises, if something that holds parameters cannot be copied, or there is no
            memory.
    """
    values = list(reachable(model))
    memo: dict[int, Any] = {
        id(value): value
        for value in reachable(model, proxies=True)
        if is_shared(value) and type(value) is not weakref.ref
    }
    functions = _Functions(values)
    shared: list[Any] = []
    while True:
        # Anew in every try, since a copy that was begun is not whole.
        own = (
            memo | dict(instead or {}) | {id(value): value for value in shared} | _computed(values) | functions.begin()
        )
        try:
            result = copy.deepcopy(model, own)
            functions.finish(own)
            break
        except Exception as error:
            if ran_out_of_memory(error):
                raise
            more = _what_cannot_be_copied(values, shared)
            if not more:
                raise
            shared += more
    if "_trainer" in vars(model):
        vars(result)["_trainer"] = vars(model)["_trainer"]
    return result


def ran_out_of_memory(error: Exception) -> bool:
    """Whether an error says that there was not enough memory; on the CPU torch has no class for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error).lower()


def _computed(values: Iterable[Any]) -> dict[int, Tensor]:
    """Copies of computed tensors, such as the weights of an old-style ``weight_norm``, of which torch makes none."""
    return {id(value): value.detach().clone() for value in values if isinstance(value, Tensor) and not value.is_leaf}


def _what_cannot_be_copied(values: list[Any], known: list[Any]) -> list[Any]:
    """The innermost objects that raise an error when they are copied, and that hold no parameters."""
    # Modules and tensors stand for themselves, so that each try is cheap.
    stand = {id(value): value for value in values if isinstance(value, nn.Module | Tensor)}
    stand |= {id(value): value for value in known}
    found: dict[int, Any] = {}
    for value in reversed(values):  # what was discovered last lies deepest
        if isinstance(value, (nn.Module, Tensor, FunctionType, BuiltinFunctionType, type)) or id(value) in stand:
            continue
        try:
            copy.deepcopy(value, stand | {id(one): one for one in found.values()})
        except Exception:
            if isinstance(value, _CONTAINERS) or _holds_parameters(value):
                continue
            found[id(value)] = value
    return list(found.values())


def _holds_parameters(value: Any) -> bool:
    return any(isinstance(one, nn.Parameter) for one in reachable(value))


class _Functions:
    """Copies of functions that enclose parts of a network: ``copy.deepcopy`` passes functions on as they are.

    Args:
        values: All that the network reaches.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        of_classes = {id(value) for kind in values if isinstance(kind, type) for value in vars(kind).values()}
        self._originals = [
            value
            for value in values
            if isinstance(value, FunctionType) and id(value) not in of_classes and any(map(_may_change, _held(value)))
        ]
        self._cells: dict[int, tuple[CellType, CellType]] = {}
        self._copies: list[tuple[FunctionType, FunctionType]] = []

    def begin(self) -> dict[int, Any]:
        """The copies, by the ids of the originals; they enclose nothing yet."""
        self._cells, self._copies = {}, []
        for function in self._originals:
            cells = [self._cells.setdefault(id(cell), (cell, CellType()))[1] for cell in function.__closure__ or ()]
            result = FunctionType(
                function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(cells)
            )
            result.__qualname__, result.__module__ = function.__qualname__, function.__module__
            result.__doc__, result.__annotations__ = function.__doc__, function.__annotations__
            self._copies.append((function, result))
        return {id(function): result for function, result in self._copies}

    def finish(self, memo: dict[int, Any]) -> None:
        """Let the copies enclose copies of what the originals enclose."""
        for cell, own in self._cells.values():
            try:
                own.cell_contents = copy.deepcopy(cell.cell_contents, memo)
            except ValueError:  # it has no value yet
                continue
        for function, result in self._copies:
            result.__defaults__ = copy.deepcopy(function.__defaults__, memo)
            result.__kwdefaults__ = copy.deepcopy(function.__kwdefaults__, memo)
            result.__dict__.update(copy.deepcopy(function.__dict__, memo))


def _held(function: FunctionType) -> list[Any]:
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return [*defaults, *map(contents, function.__closure__ or ())]


def _may_change(value: Any) -> bool:
    """Whether what a function encloses may be a part of a network, or hold one."""
    return type(value) not in ATOMS and not isinstance(value, (type, BuiltinFunctionType)) and not is_shared(value)
