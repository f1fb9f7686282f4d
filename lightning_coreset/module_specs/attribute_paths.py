"""Sizes that modules remember, by the path to each: ``"heads"``, ``"parts[1]"``, ``"config.hidden_size"``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from lightning_coreset.module_specs.configs import ConfigCopies, Steps, configs_of, fields_of, is_config, sizes_in
from lightning_coreset.module_specs.values import Size, is_integer, is_size, plain_size, size_like


def remembered_sizes(module: nn.Module) -> dict[str, Size]:
    """Every size that is an attribute of a module or a field of a config object among these, by its path."""
    sizes = {name: plain_size(value) for name, value in vars(module).items() if is_size(value)}
    for name, config in configs_of(module):
        sizes |= {".".join((name, *steps)): plain_size(value) for steps, value in sizes_in(config)}
    return sizes


def remembered_integers(module: nn.Module) -> dict[str, int]:
    """The same one by one: the elements of a tuple each with its own path."""
    integers: dict[str, int] = {}
    for path, size in remembered_sizes(module).items():
        if isinstance(size, int):
            integers[path] = size
        else:
            integers |= {f"{path}[{number}]": element for number, element in enumerate(size)}
    return integers


def read_size(module: nn.Module, path: str) -> Any:
    """What stands at a path, a size as an int or a tuple of ints; ``None`` if a module has no such attribute."""
    (name, *steps), number = _parse(path)
    value = getattr(module, name, None)
    for step in steps:
        value = fields_of(value).get(step) if is_config(value) else None
    if number is not None:
        return plain_size(value)[number] if _has_element(value, number) else None  # type: ignore[index]
    return plain_size(value) if is_size(value) else value


def can_be_set(module: nn.Module, path: str) -> bool:
    """Whether what stands at a path can be given another value: not what a property without a setter computes.

    Such a value follows from others by itself, or is a number in the code.
    """
    name = _parse(path)[0][0]
    computed = inspect.getattr_static(type(module), name, None)
    return not isinstance(computed, property) or computed.fset is not None


def changed_attributes(changes: Iterable[tuple[nn.Module, str, Size]]) -> list[tuple[nn.Module, str, Any]]:
    """New values of attributes that give the sizes at some paths other values, computed before anything is set.

    A list, a tuple or a config object that holds a size is replaced by a copy, since others may hold the same one. The
    modules that hold one config object, and change it in the same way, get the same copy.

    Args:
        changes: Modules, paths and new sizes.
    """
    wanted: dict[tuple[int, str], tuple[nn.Module, dict[Steps, Any]]] = {}
    for module, path, size in changes:
        (name, *steps), number = _parse(path)
        values = wanted.setdefault((id(module), name), (module, {}))[1]
        where = tuple(steps)
        values[where] = size if number is None else _with_element(module, name, where, values, number, size)
    copies, results = ConfigCopies(), []
    for (_, name), (module, values) in wanted.items():
        old = getattr(module, name)
        fields = {steps: size for steps, size in values.items() if steps}
        results.append((module, name, copies.changed(old, fields) if fields else size_like(old, values[()])))
    return results


def owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module of a path that starts with the module's qualified name, and the rest of the path."""
    module, path = model, name
    while "." in path:
        first, _, rest = path.partition(".")
        child = getattr(module, first, None)
        if not isinstance(child, nn.Module):
            break
        module, path = child, rest
    return module, path


def _with_element(
    module: nn.Module, name: str, steps: Steps, values: dict[Steps, Any], number: int, size: Size
) -> tuple[int, ...]:
    """The whole tuple with another element, beside the elements that have changed already."""
    elements = list(values.get(steps) or read_size(module, ".".join((name, *steps))))
    elements[number] = size
    return tuple(elements)


def _parse(path: str) -> tuple[list[str], int | None]:
    match = re.fullmatch(r"(.+)\[(\d+)\]", path)
    return (path.split("."), None) if match is None else (match[1].split("."), int(match[2]))


def _has_element(value: Any, number: int) -> bool:
    return is_size(value) and not is_integer(value) and number < len(value)
