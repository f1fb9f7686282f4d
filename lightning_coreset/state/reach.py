"""What objects hold: which of it belongs to the object, and which to the rest of the program."""

from __future__ import annotations

import enum
import functools
import random
import sys
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset._compat import own_tensors
from lightning_coreset.nested import slots_of

ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, range})
"""Types whose objects never change and hold nothing."""

_PLAIN = frozenset({dict, OrderedDict, list, tuple, deque, set, frozenset})
"""Containers without attributes."""
_SHARED = frozenset(
    {
        *("lightning", "pytorch_lightning", "lightning_fabric", "lightning_coreset", "logging", "io", "_io"),
        *("pathlib", "threading", "_thread", "multiprocessing", "concurrent", "asyncio"),
        *("socket", "subprocess", "ssl"),
    }
)
"""Packages whose objects are used by more than one module: the Trainer, loggers, files, threads."""
_SHARED_PARTS = ("torch.utils.data.", "torch.distributed.", "torch._ops.", "torch._dynamo.", "torch.jit.")
_LIBRARIES = frozenset({"torch", "torchmetrics", "lightning", "pytorch_lightning", "builtins", "abc", "typing"})
"""Packages whose classes keep no state of a training step."""


def is_shared(value: Any) -> bool:
    """Whether an object belongs to the program rather than to the module that refers to it, such as a Trainer."""
    if type(value) is types.FunctionType:  # what watches a network must not be put back with it
        return value.__module__ is not None and value.__module__.startswith("lightning_coreset.")
    return _is_shared_type(type(value))


@functools.cache
def _is_shared_type(kind: type) -> bool:
    if issubclass(kind, nn.Module):
        return False
    # By the type, since a proxy answers for what it refers to.
    if issubclass(kind, (weakref.ref, *weakref.ProxyTypes, types.ModuleType, enum.Enum)):
        return True
    return any(
        base.__module__.partition(".")[0] in _SHARED or f"{base.__module__}.".startswith(_SHARED_PARTS)
        for base in kind.__mro__
        if not issubclass(base, dict)  # Lightning's own containers of hyperparameters
    )


def has_own_state(kind: type) -> bool:
    """Whether a class is a user's, which may keep something for all of its objects."""
    return kind.__module__.partition(".")[0] not in _LIBRARIES


def parts_of(value: Any) -> Iterable[Any]:
    """What a value holds: of modules and objects their attributes, of functions what they enclose.

    The dict of an object's attributes counts as a part, so that there is one way to go through all of them.
    """
    if isinstance(value, Tensor):
        return ()
    if isinstance(value, nn.Module):
        if any(map(nn.parameter.is_lazy, own_tensors(value).values())):
            return value.children()  # its first call changes its class, which cannot be undone
        return (vars(value), type(value))
    if isinstance(value, dict):
        return value.values() if type(value) in _PLAIN else (*value.values(), *attributes_of(value))
    if isinstance(value, (list, tuple, deque, set, frozenset)):
        return value if type(value) in _PLAIN else (*value, *attributes_of(value))
    if isinstance(value, type):
        return _held_by_class(value)
    if isinstance(value, types.FunctionType):
        held = (value.__defaults__, value.__kwdefaults__)
        return (value.__dict__, *(part for part in held if part), *map(contents, value.__closure__ or ()))
    if isinstance(value, types.MethodType):
        return value.__self__, value.__func__
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    if isinstance(value, (staticmethod, classmethod)):
        return (value.__func__,)
    return attributes_of(value)


def attributes_of(value: Any) -> tuple[Any, ...]:
    """The dict of an object's attributes, and what stands in its slots."""
    own = getattr(value, "__dict__", None) if type(value) not in ATOMS else None
    held = tuple(getattr(value, name) for name in slots_of(type(value)) if hasattr(value, name))
    return (own, type(value), *held) if type(own) is dict else held


def contents(cell: types.CellType) -> Any:
    """What a function encloses; ``None`` as long as that has no value."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def data_of_class(kind: type) -> dict[str, Any]:
    """The attributes of a class that are neither methods nor descriptors."""
    return {
        name: value
        for name, value in vars(kind).items()
        if not name.startswith("__") and not callable(value) and not hasattr(value, "__get__")
    }


def _held_by_class(kind: type) -> Iterator[Any]:
    if has_own_state(kind):
        yield from data_of_class(kind).values()
        for value in vars(kind).values():
            if isinstance(value, (types.FunctionType, staticmethod, classmethod)):
                yield value
        yield from kind.__bases__


def reachable(root: Any, *, proxies: bool = False) -> Iterator[Any]:
    """Everything that an object holds, directly or through others, each once, in the order of their discovery.

    Args:
        root: The object.
        proxies: Whether weak proxies count. What they stand for may be gone, and then raises at every question.
    """
    # Ids suffice as long as what was seen is kept alive.
    seen: set[int] = set()
    alive: list[Any] = []
    pending: deque[Any] = deque([root])
    while pending:
        value = pending.popleft()
        if type(value) in ATOMS or id(value) in seen:
            continue
        seen.add(id(value))
        alive.append(value)
        if type(value) in weakref.ProxyTypes and not proxies:
            continue
        yield value
        if not is_shared(value):
            pending.extend(parts_of(value))


def random_states(value: Any) -> tuple[Any, Any] | None:
    """What gets and sets the state of a random generator; ``None`` for any other object."""
    if isinstance(value, torch.Generator):
        return value.get_state, value.set_state
    if isinstance(value, random.Random):
        return value.getstate, value.setstate
    numpy = sys.modules.get("numpy")  # not a dependency: what was never imported was not used
    if numpy is None:
        return None
    if isinstance(value, numpy.random.RandomState):
        return value.get_state, value.set_state
    if isinstance(value, numpy.random.Generator):
        bits = value.bit_generator
        return lambda: bits.state, lambda state: setattr(bits, "state", state)
    return None


def is_array(value: Any) -> bool:
    """Whether it is an array of numpy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)
