"""Config objects that modules hold: found, read, and replaced by changed copies.

Objects of this kind are often shared: by the modules of a model, by two models, by the user's own code. So they are
never changed in place.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, TypeAlias

from torch import nn

from lightning_coreset.module_specs.values import Size, is_size, size_like

Steps: TypeAlias = tuple[str, ...]
"""The way from a config object to one of its fields: the names of the objects within it, then the field's."""

_NAMESPACES = (SimpleNamespace, argparse.Namespace)
_ENDINGS = ("config", "configuration", "args", "hparams")
_MOST_FIELDS = 256
_DEPTH = 3


def is_config(value: object) -> bool:
    """Whether an object does nothing but hold settings: a dict, a namespace, a dataclass, or one named a config."""
    if isinstance(value, (type, nn.Module)):
        return False
    if type(value) is dict:
        return 0 < len(value) <= _MOST_FIELDS and all(type(key) is str and key.isidentifier() for key in value)
    kind = type(value)
    if kind.__module__ in ("builtins", "torch"):
        return False
    named = any(base.__name__.lower().endswith(_ENDINGS) for base in kind.__mro__)
    return isinstance(value, _NAMESPACES) or dataclasses.is_dataclass(value) or named


def configs_of(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """The config objects among a module's own attributes, by name.

    Not those with an underscore: what Lightning saves as hyper-parameters (``_hparams``) says how the model is built.
    """
    for name, value in vars(module).items():
        if not name.startswith("_") and is_config(value):
            yield name, value


def fields_of(config: Any) -> dict[str, Any]:
    """The fields of a config object, without private ones."""
    try:
        if isinstance(config, Mapping):  # of OmegaConf, reading a value may fail
            found = {str(key): config[key] for key in config}
        else:
            slots = [each.name for each in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
            found = {name: getattr(config, name) for name in slots if hasattr(config, name)}
            found |= getattr(config, "__dict__", {})
    except Exception:
        return {}
    return {name: value for name, value in found.items() if name.isidentifier() and not name.startswith("_")}


def parts_of(config: Any, steps: Steps = ()) -> Iterator[tuple[Steps, Any]]:
    """A config object and those within it, each with the way to it."""
    yield steps, config
    if len(steps) < _DEPTH:
        for name, value in fields_of(config).items():
            if is_config(value):
                yield from parts_of(value, (*steps, name))


def sizes_in(config: Any) -> Iterator[tuple[Steps, Any]]:
    """The fields of a config object that are sizes, and those of the objects within it, each with the way to it."""
    for steps, part in parts_of(config):
        for name, value in fields_of(part).items():
            if is_size(value):
                yield (*steps, name), value


class ConfigCopies:
    """Copies of config objects with other values; objects that are one, and change in the same way, stay one."""

    def __init__(self) -> None:
        self._copies: dict[tuple[int, frozenset[tuple[Steps, Size]]], Any] = {}
        self._originals: list[Any] = []  # so that no id is used again

    def changed(self, config: Any, values: Mapping[Steps, Size]) -> Any:
        """A copy of an object with other values of some fields."""
        key = (id(config), frozenset(values.items()))
        if key not in self._copies:
            self._originals.append(config)
            self._copies[key] = self._copy(config, values)
        return self._copies[key]

    def _copy(self, config: Any, values: Mapping[Steps, Size]) -> Any:
        fields, result = fields_of(config), copy.copy(config)
        within: dict[str, dict[Steps, Size]] = {}
        for (first, *rest), value in values.items():
            if rest:
                within.setdefault(first, {})[tuple(rest)] = value
            else:
                _set_field(result, first, size_like(fields[first], value))
        for name, inner in within.items():
            _set_field(result, name, self.changed(fields[name], inner))
        return result


def _set_field(config: Any, name: str, value: Any) -> None:
    if isinstance(config, Mapping):
        config[name] = value  # type: ignore[index]
        return
    try:
        setattr(config, name, value)
    except dataclasses.FrozenInstanceError:
        object.__setattr__(config, name, value)
