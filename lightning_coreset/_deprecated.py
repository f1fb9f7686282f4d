"""Public names that were renamed go on working, with a warning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

from lightning_coreset._arguments import is_default
from lightning_coreset._calls import OLD_ARGUMENTS, check_names, level_of_caller

P = ParamSpec("P")
R = TypeVar("R")


def takes_old_names(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function take arguments by their old names as well, with a warning; it only sees the new ones.

    The function has its old names of ``OLD_ARGUMENTS`` as keyword-only parameters, with the default ``None``, which
    stands for nothing given. So they are known to whatever reads signatures, such as type checkers and LightningCLI.
    A keyword that is no name of the function's is told with the closest one.

    Example:
        >>> @takes_old_names
        ... def scale(ratio: float, *, self_check: bool = True, check: bool | None = None) -> tuple[float, bool]:
        ...     return ratio, self_check
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore")
        ...     scale(0.5, check=False)
        (0.5, False)
        >>> scale(0.5, self_chek=False)
        Traceback (most recent call last):
            ...
        TypeError: scale() got an unexpected keyword argument 'self_chek'. Did you mean 'self_check'?
    """
    parameters = signature(function).parameters
    renamed = {old: new for old, new in OLD_ARGUMENTS.items() if old in parameters}

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        check_names(function, kwargs)
        for old, new in renamed.items():
            value = kwargs.pop(old, None)
            if value is None:
                continue
            default = parameters[new].default
            other = kwargs.get(new, default)
            if not is_default(other, default) and not is_default(other, value):  # a configuration has all defaults
                raise ValueError(
                    f"Expected {new} or its old name {old} but got both: {new}={other!r} and {old}={value!r}. "
                    f"Leave {old} out."
                )
            warnings.warn(
                f"The argument {old} was renamed: use {new}={value!r}.",
                DeprecationWarning,
                stacklevel=level_of_caller(),
            )
            kwargs[new] = value
        return function(*args, **kwargs)

    return call


def deprecated_names(module: str, renamed: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's ``__getattr__`` that finds old names under their new ones.

    Args:
        module: The module's ``__name__``.
        renamed: The new name of every old one, both in this module.

    Returns:
        A function that warns with a ``DeprecationWarning`` and returns the object, and raises ``AttributeError`` for
        any other name.
    """

    def find(name: str) -> Any:
        if name not in renamed:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed(module, name, renamed[name], stacklevel=3)
        return getattr(sys.modules[module], renamed[name])

    return find


def warn_renamed(owner: str, old: str, new: str, *, stacklevel: int = 3) -> None:
    """Warn that a module's or a class's name was renamed; by default at the line that calls the caller."""
    warnings.warn(f"{owner}.{old} was renamed: use {new}.", DeprecationWarning, stacklevel=stacklevel)
