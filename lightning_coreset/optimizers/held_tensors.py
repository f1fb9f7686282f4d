"""Tensors that an optimizer keeps outside of its ``state``, and the parameters that they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ProxyTypes

import torch
from torch import Tensor, nn

from lightning_coreset.nested import attributes_of
from lightning_coreset.optimizers.discovery import all_layers, is_optimizer, parameters_of
from lightning_coreset.optimizers.entries import StateEntries
from lightning_coreset.optimizers.slicing import is_elementwise
from lightning_coreset.plan import ParameterChange

_DEPTH = 4
"""How many containers and objects within each other are entered."""


@dataclass(frozen=True, eq=False)
class HeldTensor:
    """A tensor in an attribute or a parameter group of an optimizer.

    Attributes:
        optimizer: The optimizer.
        collection: The attribute in which it lies, alone or with others.
        path: Where it is in there.
        tensor: The tensor.
        parameter: The parameter that it belongs to, by the key or the place that it has among others; ``None`` if that
            cannot be told.
    """

    optimizer: Any
    collection: str
    path: str
    tensor: Tensor
    parameter: Tensor | None


def held_tensors(optimizer: Any, changes: Mapping[Tensor, ParameterChange] | None = None) -> list[HeldTensor]:
    """All tensors of more than one element that an optimizer, and all that it wraps, keep outside of ``state``.

    Args:
        optimizer: The optimizer.
        changes: The changes of parameters that have been cut already, whose old shapes the tensors still have.
    """
    found: dict[int, HeldTensor] = {}
    for layer in all_layers(optimizer):
        for held in _Walk(layer, changes or {}).all():
            known = found.get(id(held.tensor))
            if known is None or known.parameter is None:
                found[id(held.tensor)] = held
    return list(found.values())


def slice_held_tensors(
    optimizer: Any, changes: Mapping[Tensor, ParameterChange], before: Mapping[Tensor, Tensor]
) -> None:
    """Slice these tensors, in place, where the parameter that each belongs to is known."""
    known = [(each, each.parameter) for each in held_tensors(optimizer, changes) if each.parameter is not None]
    collections: dict[Any, list[tuple[Tensor, Tensor]]] = {}
    for held, parameter in known:
        collections.setdefault((id(held.optimizer), held.collection), []).append((parameter, held.tensor))
    entries = StateEntries(collections, changes, before)
    ready = []
    for held, parameter in known:
        if parameter in changes:
            key = (id(held.optimizer), held.collection)
            ready.append((held.tensor, entries.sliced(key, held.tensor, parameter, changes[parameter])))
    for tensor, sliced in ready:
        if sliced is not None and sliced is not tensor:
            tensor.data = sliced


def _no_proxy(value: Any) -> Any:
    """Nothing in place of a weak proxy, which answers for what it stands for, and that may be gone."""
    return None if type(value) in ProxyTypes else value


class _Walk:
    """Goes through what one optimizer holds."""

    def __init__(self, optimizer: Any, changes: Mapping[Tensor, ParameterChange]) -> None:
        self._optimizer, self._changes = optimizer, changes
        self._groups = [group["params"] for group in getattr(optimizer, "param_groups", None) or []]
        self._all = parameters_of(optimizer)
        self._by_id = {id(parameter): parameter for parameter in self._all}
        self._seen: set[int] = set()

    def all(self) -> Iterator[HeldTensor]:
        for name, value in attributes_of(self._optimizer).items():
            if name not in ("state", "param_groups", "defaults"):
                yield from self._within(_no_proxy(value), name, name, None, _DEPTH)
        for number, group in enumerate(getattr(self._optimizer, "param_groups", None) or []):
            for name, value in group.items():
                if name != "params":
                    yield from self._within(_no_proxy(value), name, f"param_groups[{number}][{name!r}]", None, _DEPTH)
        state = getattr(self._optimizer, "state", None)
        for key, value in list(state.items()) if isinstance(state, dict) else []:
            if not isinstance(key, Tensor):  # else it is the state of a parameter
                yield from self._within(_no_proxy(value), f"state[{key!r}]", f"state[{key!r}]", None, _DEPTH)

    def _within(
        self, value: Any, collection: str, path: str, parameter: Tensor | None, depth: int
    ) -> Iterator[HeldTensor]:
        if isinstance(value, Tensor):
            if value.numel() > 1 and id(value) not in self._by_id and not isinstance(value, nn.Parameter):
                owner = self._only(value) if parameter is None else parameter
                yield HeldTensor(self._optimizer, collection, path, value, owner)
            return
        if depth == 0 or id(value) in self._seen or isinstance(value, nn.Module | type) or is_optimizer(value):
            return
        for key, each, owner in self._items(value):
            if isinstance(each, Tensor) or not isinstance(each, str | int | float | bool | type(None)):
                self._seen.add(id(value))
                mine = parameter if owner is None else owner
                yield from self._within(each, collection, f"{path}[{key}]", mine, depth - 1)

    def _items(self, value: Any) -> Iterable[tuple[str, Any, Tensor | None]]:
        """What a container or an object holds, each with the parameter that it belongs to."""
        if isinstance(value, Mapping):
            items = [(key, _no_proxy(each)) for key, each in list(value.items())]
            return [(_shown(key, self._by_id), each, self._by_key(key, each)) for key, each in items]
        if (isinstance(value, Sequence) and not isinstance(value, str | bytes | torch.Size)) or _is_deque(value):
            values = [*map(_no_proxy, value)]
            owners = self._aligned(values)
            return [(str(place), each, owner) for place, (each, owner) in enumerate(zip(values, owners, strict=True))]
        if callable(value):
            return []
        return [(name, _no_proxy(each), None) for name, each in attributes_of(value).items()]

    def _by_key(self, key: Any, value: Any) -> Tensor | None:
        if isinstance(key, Tensor):
            return self._by_id.get(id(key))
        if isinstance(key, int) and not isinstance(key, bool):
            if key in self._by_id:
                return self._by_id[key]
            return self._all[key] if 0 <= key < len(self._all) and self._fits(value, self._all[key]) else None
        if isinstance(key, str):
            named = [p for p, c in self._changes.items() if c.name == key or c.name.endswith(f".{key}")]
            return named[0] if len(named) == 1 and id(named[0]) in self._by_id else None
        return None

    def _aligned(self, values: Sequence[Any]) -> Sequence[Tensor | None]:
        """The parameters of a list with something for each of them, in their order."""
        if any(isinstance(value, Tensor) for value in values):
            for parameters in (self._all, *self._groups):
                if len(parameters) == len(values) and all(map(self._fits, values, parameters)):
                    return list(parameters)
        return [None] * len(values)

    def _only(self, value: Tensor) -> Tensor | None:
        """The only parameter of the optimizer, for a tensor of its shape."""
        return self._all[0] if len(self._all) == 1 and self._fits(value, self._all[0]) else None

    def _fits(self, value: Any, parameter: Tensor) -> bool:
        if value is None:
            return True
        change = self._changes.get(parameter)
        shape = tuple(parameter.shape) if change is None else change.old_shape
        return isinstance(value, Tensor) and is_elementwise(value.shape, shape)


def _is_deque(value: Any) -> bool:
    return type(value).__name__ == "deque"


def _shown(key: Any, parameters: Mapping[int, Tensor]) -> str:
    if isinstance(key, Tensor):
        return "a parameter" if id(key) in parameters else "a tensor"
    return repr(key)
