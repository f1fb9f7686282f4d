"""Tensors in nested containers: find them, name them by the keys that lead to them, replace them."""

from __future__ import annotations

import copy
import dataclasses
import functools
import types
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeAlias

from torch import Tensor, nn

Path: TypeAlias = tuple[Any, ...]
"""Keys, positions and field names that lead from a container to something in it."""


def tensors_by_path(tree: Any) -> dict[Path, Tensor]:
    """Return the tensors in nested tuples, lists, mappings and dataclasses, by the keys that lead to them.

    Example:
        >>> import torch
        >>> sorted(tensors_by_path([torch.ones(2), {"a": torch.ones(3), "b": "text"}]))
        [(0,), (1, 'a')]
    """
    return dict(_walk(tree, (), _items))


def tensors_in(tree: Any, depth: int = 6) -> Iterator[Tensor]:
    """Yield the tensors in nested containers, sets and plain objects as well, but not those of modules.

    Args:
        tree: Anything.
        depth: How many levels are entered: objects may refer to each other in a circle.
    """
    return (tensor for _, tensor in _walk(tree, (), _items_or_attributes, depth))


def map_tensors(
    function: Callable[[Tensor], Any],
    tree: Any,
    others: Callable[[Any], Any] = lambda value: value,
    closed: Callable[[Any], bool] = lambda value: False,
) -> Any:
    """Copy nested tuples, lists, mappings and dataclasses, with a function applied to the tensors in them.

    Types are kept, also those of Hugging Face's outputs, named tuples and frozen dataclasses.

    Args:
        function: Takes a tensor.
        tree: Anything.
        others: Takes anything else in it (numbers, sets, plain objects, subclasses of tuple and list), which is passed
            on as it is by default.
        closed: Whether a container is not entered, but one of the others.

    Torch's and Lightning's own functions do not serve here: torch's ``tree_map`` does not enter dataclasses and
    mappings that nobody registered, and Lightning's ``apply_to_collection`` refuses frozen dataclasses.

    Example:
        >>> import torch
        >>> map_tensors(lambda tensor: tuple(tensor.shape), [torch.ones(2, 3), {"a": (torch.ones(4), "b")}])
        [(2, 3), {'a': ((4,), 'b')}]
    """

    def mapped(value: Any) -> Any:
        return map_tensors(function, value, others, closed)

    if isinstance(tree, Tensor):
        return function(tree)
    if closed(tree):
        return others(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*map(mapped, tree))
    if type(tree) in (tuple, list):
        return type(tree)(map(mapped, tree))
    if isinstance(tree, MutableMapping):  # before dataclasses: the outputs of Hugging Face are both
        result = copy.copy(tree)
        for key, value in tree.items():
            result[key] = mapped(value)
        return result
    if _is_dataclass(tree):
        result = copy.copy(tree)
        for name, value in _items(tree):
            object.__setattr__(result, name, mapped(value))  # a frozen one refuses setattr
        return result
    return others(tree)


def _walk(
    tree: Any, path: Path, items: Callable[[Any], list[tuple[Any, Any]]], depth: int = -1
) -> Iterator[tuple[Path, Tensor]]:
    if isinstance(tree, Tensor):
        yield path, tree
    elif depth != 0:
        for key, value in items(tree):
            yield from _walk(value, (*path, key), items, depth - 1)


def _items(tree: Any) -> list[tuple[Any, Any]]:
    """The keys and values of a container; nothing of other objects."""
    if isinstance(tree, Mapping):  # before dataclasses: the outputs of Hugging Face are both
        return list(tree.items())
    if isinstance(tree, tuple | list):
        return list(enumerate(tree))
    if _is_dataclass(tree):
        return [(f.name, getattr(tree, f.name)) for f in dataclasses.fields(tree) if hasattr(tree, f.name)]
    return []


def _items_or_attributes(tree: Any) -> list[tuple[Any, Any]]:
    """Like ``_items``, and those of sets and the attributes of other objects."""
    if isinstance(tree, nn.Module | str | bytes | type):
        return []
    if isinstance(tree, set | frozenset):
        return list(enumerate(tree))
    if isinstance(tree, Mapping | tuple | list):
        return _items(tree)
    return list(attributes_of(tree).items())


def attributes_of(value: Any) -> dict[str, Any]:
    """What an object has in attributes of its own, also where its class has ``__slots__``."""
    held = {name: getattr(value, name) for name in slots_of(type(value)) if hasattr(value, name)}
    return {**getattr(value, "__dict__", {}), **held}


@functools.cache
def slots_of(kind: type) -> tuple[str, ...]:
    """The names of the slots that a class written in Python gives its objects."""
    found: list[str] = []
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if isinstance(vars(base).get(name), types.MemberDescriptorType):
                found.append(name)
    return tuple(found)


def _is_dataclass(tree: Any) -> bool:
    return dataclasses.is_dataclass(tree) and not isinstance(tree, type)
