"""How users call what is public: signatures that functions share, names that are not theirs, the line that called."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection
from difflib import get_close_matches
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

OLD_ARGUMENTS = {"max_ratio": "max_layer_ratio", "check": "self_check"}
"""The new name of every argument that had another one."""

_BETWEEN = (__name__.partition(".")[0], "torch")


def same_arguments_as(model: Callable[P, Any]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """Give a function the arguments of another one, of the same module, without repeating them.

    ``help``, IDEs, type checkers and Sphinx show the other's parameters with their defaults. Calls are checked against
    them; the function gets what was given by name.

    Example:
        >>> def plan(model, ratio=0.5, *, seed=0): ...
        >>> @same_arguments_as(plan)
        ... def prune(**given):
        ...     return given
        >>> inspect.signature(prune)
        <Signature (model, ratio=0.5, *, seed=0)>
        >>> prune("net", seed=3)
        {'model': 'net', 'seed': 3}
        >>> prune()
        Traceback (most recent call last):
            ...
        TypeError: prune() got other arguments than it takes: missing a required argument: 'model'.
    """
    shared = inspect.signature(model)

    def decorate(function: Callable[..., R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            check_names(call, kwargs)
            try:
                bound = shared.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{function.__name__}() got other arguments than it takes: {error}.") from None
            return function(**bound.arguments)

        returned = function.__annotations__.get("return", inspect.Signature.empty)
        call.__signature__ = shared.replace(return_annotation=returned)  # type: ignore[attr-defined]
        call.__annotations__ = {**model.__annotations__, "return": returned}
        return call

    return decorate


def check_names(function: Callable[..., Any], names: Collection[str]) -> None:
    """Refuse keywords that a function does not take, with the name that was meant.

    Raises:
        TypeError: As Python does.
    """
    parameters = inspect.signature(function).parameters
    for name in names:
        if name not in parameters:
            known = [one for one in parameters if one != "self" and one not in OLD_ARGUMENTS]
            close = get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f" Did you mean {close[0]!r}?" if close else f" Its arguments are {', '.join(known)}."
            raise TypeError(f"{function.__qualname__}() got an unexpected keyword argument {name!r}.{hint}")


def level_of_caller() -> int:
    """The ``stacklevel`` with which ``warnings.warn``, called where this is, points at the user's line.

    That is the first one that is neither in this package nor in torch, whose decorators come in between.
    """
    level, frame = 1, sys._getframe(1)
    # By module: the __init__ of a dataclass has no file.
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    return level
