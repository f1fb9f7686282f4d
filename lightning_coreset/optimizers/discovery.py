"""Find optimizers: those that another one wraps, and those of a model that nobody handed over."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import compress
from typing import Any
from weakref import ProxyTypes

from torch import Tensor
from torch.optim import Optimizer

from lightning_coreset.nested import attributes_of

_DEPTH = 3
"""How many containers within each other are entered: optimizers by name, by group, by parameter."""
_FOUND: ContextVar[list[Optimizer] | None] = ContextVar("_FOUND", default=None)


def innermost_first(optimizer: Any) -> Iterator[Any]:
    """Yield an optimizer and the optimizers that it wraps, each state once.

    A wrapper comes after what it wraps. Wrappers whose state is that of what they wrap are left out: Lightning's, and
    the usual implementations of SAM.
    """
    seen: set[int] = set()
    for layer in all_layers(optimizer):
        state = getattr(layer, "state", None)
        if isinstance(state, dict) and id(state) not in seen:
            seen.add(id(state))
            yield layer


def all_layers(optimizer: Any) -> Iterator[Any]:
    """Yield an optimizer and all optimizers that it wraps, however they are called, innermost first.

    They are found by what the object holds in its attributes, also in containers there. Duck-typed, since wrappers are
    often no subclasses of ``torch.optim.Optimizer``.
    """
    return _visit(optimizer, set())


def optimizers_of(parameters: Iterable[Tensor]) -> list[Optimizer]:
    """All optimizers that are alive and have one of these parameters, in the order of their first such parameter.

    They may be out of sight, in the closure of a hook (``register_post_accumulate_grad_hook``) that steps each
    parameter within the backward pass. So Python's garbage collector is asked for them.
    """
    places = {id(parameter): place for place, parameter in enumerate(parameters)}
    found = []
    for optimizer in _optimizers_alive():
        mine = [places[id(parameter)] for parameter in parameters_of(optimizer) if id(parameter) in places]
        if mine:
            found.append((min(mine), optimizer))
    return [optimizer for _, optimizer in sorted(found, key=lambda each: each[0])]


@contextmanager
def optimizers_stay() -> Iterator[None]:
    """Within the block no optimizers are made, so that :func:`optimizers_of` looks for them once.

    To go through all objects of a program that has imported the usual libraries takes a tenth of a second.
    """
    if _FOUND.get() is not None:
        yield
        return
    token = _FOUND.set([])
    try:
        yield
    finally:
        _FOUND.reset(token)


def _optimizers_alive() -> list[Optimizer]:
    known = _FOUND.get()
    if known:
        return known
    kinds, objects = _kinds_of(Optimizer), gc.get_objects()
    # By `type`: `isinstance` would ask objects that stand in for others what they are, and these may raise or import.
    found = list(compress(objects, map(kinds.__contains__, map(type, objects))))
    if known is not None:
        known += found
    return found


def _kinds_of(kind: type) -> set[type]:
    return {kind}.union(*map(_kinds_of, type.__subclasses__(kind)))


def parameters_of(optimizer: Any) -> list[Tensor]:
    """The parameters of an optimizer, in the order of its groups."""
    groups = getattr(optimizer, "param_groups", None) or []
    return [parameter for group in groups for parameter in group["params"] if isinstance(parameter, Tensor)]


def name_of(optimizer: Any) -> str:
    """The name of an optimizer's class."""
    return type(optimizer).__name__


def _visit(optimizer: Any, seen: set[int]) -> Iterator[Any]:
    seen.add(id(optimizer))
    for name, value in attributes_of(optimizer).items():
        if name != "state":
            for held in _optimizers_in(value, _DEPTH):
                if id(held) not in seen:
                    yield from _visit(held, seen)
    yield optimizer


def _optimizers_in(value: Any, depth: int) -> Iterator[Any]:
    if is_optimizer(value):
        yield value
    elif type(value) in ProxyTypes:
        return
    elif depth > 0 and isinstance(value, Mapping):
        for each in value.values():
            yield from _optimizers_in(each, depth - 1)
    elif depth > 0 and isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from _optimizers_in(each, depth - 1)


def is_optimizer(value: Any) -> bool:
    """Whether an object is an optimizer, or stands in for one."""
    # A proxy answers for what it stands for, which may be gone.
    if type(value) in ProxyTypes or isinstance(value, type | Tensor):
        return False
    return isinstance(value, Optimizer) or (
        isinstance(getattr(value, "param_groups", None), list) and callable(getattr(value, "step", None))
    )
