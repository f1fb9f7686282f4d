"""The arguments of a constructor as attributes that can be read, and as the call that would make the same again."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any, TypeVar

from lightning_coreset._arguments import is_default, is_number
from lightning_coreset._calls import OLD_ARGUMENTS

_MOST = 200
"""Characters of a call, in a ``repr``."""

T = TypeVar("T", bound=type)


class _Setting:
    """One argument, as it was given or by default. It cannot be set: that would change nothing any more."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        try:
            return vars(instance)["_given"][self._name]
        except KeyError:
            raise AttributeError(f"{type(instance).__name__} does not know its {self._name} yet.") from None

    def __set__(self, instance: Any, value: Any) -> None:
        kind = type(instance).__name__
        raise AttributeError(
            f"{self._name} of a {kind} cannot be changed: make a new one, such as {kind}({self._name}={value!r})."
        )


def readable_settings(cls: T) -> T:
    """Make the arguments of a class's constructor attributes of its instances.

    For that, the constructor keeps :func:`given_arguments` as ``self._given``. Names that the class has already stay
    what they are.
    """
    for name in _arguments(cls.__init__):
        if name not in vars(cls):
            setattr(cls, name, _Setting(name))
    return cls


def given_arguments(init: Callable[..., None], local: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor by name.

    Args:
        init: The constructor.
        local: Its ``locals()``, where it begins.

    Example:
        >>> def init(self, ratio, *, seed=0): ...
        >>> given_arguments(init, {"self": None, "ratio": 0.5, "seed": 0, "other": 1})
        {'ratio': 0.5, 'seed': 0}
    """
    return {name: local[name] for name in _arguments(init)}


def short_call(name: str, init: Callable[..., None], given: Mapping[str, Any]) -> str:
    """A constructor's call with the arguments that are not the default, long values cut short.

    Example:
        >>> def init(self, ratio=0.5, *, unit="params", ignore=()): ...
        >>> short_call("Prune", init, {"ratio": 0.7, "unit": "params", "ignore": ["stem", "head"]})
        "Prune(0.7, ignore=['stem', 'head'])"
    """
    shown: list[str] = []
    for argument, parameter in _arguments(init).items():
        value = given[argument]
        if is_default(value, parameter.default):
            continue
        positional = parameter.kind is not Parameter.KEYWORD_ONLY and not shown
        shown.append(_short(value) if positional else f"{argument}={_short(value)}")
    text = ", ".join(shown)
    return f"{name}({text if len(text) <= _MOST else text[: _MOST - 3] + '...'})"


def _arguments(init: Callable[..., None]) -> dict[str, Parameter]:
    several = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    own = {name: one for name, one in signature(init).parameters.items() if one.kind not in several}
    return {name: one for name, one in own.items() if name != "self" and name not in OLD_ARGUMENTS}


def _short(value: Any) -> str:
    """A value in a few characters; of a tensor its shape, numbers of numpy as those of Python."""
    if is_number(value):
        return str(value)
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"<{type(value).__name__} {tuple(shape)}>"
    if callable(value) and hasattr(value, "__qualname__"):
        return value.__qualname__
    return _SHORT.repr(value)


class _Short(reprlib.Repr):
    """Classes, as in rules for layers, by their names alone."""

    def repr_type(self, x: type, level: int) -> str:
        return x.__qualname__


_SHORT = _Short()
_SHORT.maxother = _SHORT.maxstring = 40
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = 4
