"""Tensors that modules hold without registering them, such as a list of shadow weights in an attribute.

They are no parameters or buffers, so that torch neither names nor saves them. Those that mirror weights are noted on
the model by a name and the way there, to be cut with these; copies of the model have them, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Path: TypeAlias = tuple[tuple[str, Any], ...]
"""The way from an object to what it holds: attributes, items of containers and submodules, each with what it is."""

_NOTED = "_coreset_held"
_DEEPEST = 4
_LONGEST = 10_000
"""Longer containers hold data, not weights."""
_REGISTERED = ("_parameters", "_buffers", "_modules")
_FOREIGN = ("torch.", "lightning.", "pytorch_lightning.", "torchmetrics.", "builtins", "lightning_coreset.")
"""What objects of these packages hold is theirs: a plan or a savepoint has weights as they were, and keeps them so."""


def note_held(model: nn.Module, places: Mapping[str, Path]) -> None:
    """Note on a model which tensors it holds, by the names that they are to have; in place of those noted before."""
    if places:
        vars(model)[_NOTED] = dict(places)
    else:
        vars(model).pop(_NOTED, None)


def held_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that were noted, by name; without those that are gone by now."""
    found = {name: follow_path(model, path) for name, path in vars(model).get(_NOTED, {}).items()}
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}


def follow_path(root: Any, path: Path) -> Any:
    """What lies at the end of a path; ``None`` if there is nothing any more."""
    value = root
    for kind, key in path:
        try:
            if kind == "module":
                value = value.get_submodule(key)
            else:
                value = vars(value)[key] if kind == "attribute" else value[key]
        except (AttributeError, KeyError, IndexError, TypeError):
            return None
    return value


def path_name(path: Path) -> str:
    """A path as Python would write it: ``penalty.means['0.weight']``."""
    name = ""
    for kind, key in path:
        name += f"[{key!r}]" if kind == "item" else f".{key}" if name and key else key
    return name


@dataclass(frozen=True, eq=False)
class TensorCollection:
    """Tensors that lie together in a list, tuple, dict, or in the attributes of one object.

    Attributes:
        path: The way there.
        kind: How they are found there: as items or attributes.
        tensors: By key.
    """

    path: Path
    kind: str
    tensors: Mapping[Any, Tensor]

    def path_to(self, key: Any) -> Path:
        """The way to one of the tensors."""
        return (*self.path, (self.kind, key))


def held_by(root: Any, module: nn.Module) -> tuple[list[TensorCollection], dict[str, nn.Module]]:
    """What an object holds in its attributes, and in containers and objects of users' classes there.

    Args:
        root: An object. Of a module, all its submodules are looked at as well.
        module: The module whose own tensors and modules do not count, since they are known by name.

    Returns:
        Collections of tensors, and modules by the way to them.
    """
    own = {id(one) for one in (*module.modules(), *module.parameters(), *module.buffers())}
    collections: list[TensorCollection] = []
    modules: dict[str, nn.Module] = {}
    seen: set[int] = set()
    pending: deque[tuple[Any, Path]] = deque([(root, ())])
    if isinstance(root, nn.Module):
        pending.extend((one, (("module", name),)) for name, one in root.named_modules() if name)
    while pending:
        value, path = pending.popleft()
        if id(value) in seen or len(path) > _DEEPEST:
            continue
        seen.add(id(value))
        kind, items = _items(value)
        tensors = {
            key: one for key, one in items.items() if isinstance(one, Tensor) and id(one) not in own and not one.is_meta
        }
        if tensors:
            collections.append(TensorCollection(path, kind, tensors))
        for key, one in items.items():
            if isinstance(one, nn.Module):
                if id(one) not in own and id(one) not in seen:
                    seen.add(id(one))
                    modules[path_name((*path, (kind, key)))] = one
            elif _may_hold(one):
                pending.append((one, (*path, (kind, key))))
    return collections, modules


def _items(value: Any) -> tuple[str, Mapping[Any, Any]]:
    """What a container or an object holds, and how it is found there."""
    if isinstance(value, Mapping):
        return "item", value if len(value) <= _LONGEST else {}
    if isinstance(value, (list, tuple, deque)):
        return "item", dict(enumerate(value)) if len(value) <= _LONGEST else {}
    return "attribute", {name: one for name, one in vars(value).items() if name not in (*_REGISTERED, _NOTED)}


def _may_hold(value: Any) -> bool:
    """Whether it is a container, or an object of a user's own class."""
    if isinstance(value, (Mapping, list, tuple, deque)):
        return True
    if isinstance(value, (Tensor, type, FunctionType, MethodType, ModuleType, torch.optim.Optimizer)):
        return False
    modules = (f"{cls.__module__}." for cls in type(value).__mro__[:-1])
    return hasattr(value, "__dict__") and not any(name.startswith(_FOREIGN) for name in modules)
