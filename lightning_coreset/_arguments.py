"""What arguments of users are, whatever they came as: from Python, a configuration file, the command line or numpy."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from torch import nn


def is_whole_number(value: Any) -> bool:
    """Whether a value is an integer, also numpy's; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number, also numpy's; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_is_module(model: Any) -> None:
    """Refuse a model that is none, such as its class.

    Raises:
        ValueError: If it is something else.
    """
    if isinstance(model, nn.Module):
        return
    if isinstance(model, type):
        raise ValueError(
            f"Expected model to be an nn.Module but got the class {model.__name__}. Make one: {model.__name__}(...)."
        )
    raise ValueError(f"Expected model to be an nn.Module but got {type(model).__name__}.")


def is_default(value: Any, default: Any) -> bool:
    """Whether a value is the default, or as good as: 1 is 1.0, but True is not 1.

    Types are compared first: ``==`` of two metrics makes a third one.
    """
    if is_number(value) and is_number(default):
        return bool(value == default)
    return value is default or (type(value) is type(default) and bool(value == default))


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of all parameters that have one."""
    parameters = inspect.signature(function).parameters
    return {name: one.default for name, one in parameters.items() if one.default is not inspect.Parameter.empty}


def check_left_alone(name: str, value: object, flat: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse arguments beside the object that holds them. The defaults, which configurations have, are none.

    Args:
        name: The argument that the object was given as.
        value: The object.
        flat: What else was given, by name.
        defaults: The defaults of these.

    Raises:
        ValueError: If one is not the default.
    """
    beside = {one: given for one, given in flat.items() if not is_default(given, defaults[one])}
    if beside:
        kind, said = type(value).__name__, ", ".join(f"{one}={given!r}" for one, given in beside.items())
        raise ValueError(
            f"Expected either {name}={kind}(...) or {' and '.join(beside)} but got both, with {said}. Write "
            f"{name}={kind}(..., {said}), or leave {name} out."
        )
