"""Methods by name, and what else a user may give for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from lightning_coreset._registration import Registration
from lightning_coreset.methods.importance import Importance, Score
from lightning_coreset.methods.magnitude import Magnitude
from lightning_coreset.methods.method import Method
from lightning_coreset.methods.random import Random
from lightning_coreset.methods.reconstruction import Reconstruction
from lightning_coreset.methods.sensitivity import Sensitivity

MethodName: TypeAlias = Literal["reconstruction", "sensitivity", "magnitude", "random"]
MethodLike: TypeAlias = Method | str | Score
"""A method, the name of one, or a function that scores the channels of a group."""

_BY_NAME: dict[str, Callable[[], Method]] = {
    "reconstruction": Reconstruction,
    "sensitivity": Sensitivity,
    "magnitude": Magnitude,
    "random": Random,
}


def register_method(name: str, build: Callable[[], Method]) -> Registration:
    """Let ``method="name"`` stand for a method of yours, in Python, in YAML and on the command line.

    Args:
        name: The name, of a method that does not exist yet.
        build: Makes the method: its class, or a function without arguments.

    Returns:
        The registration, whose ``remove()`` takes the name back.

    Raises:
        ValueError: If the name is taken, or ``build`` cannot be called.

    Example:
        >>> from lightning_coreset.methods import Magnitude, as_method, register_method
        >>> with register_method("l1", lambda: Magnitude(p=1)):
        ...     as_method("l1")
        Magnitude(p=1)
    """
    if not isinstance(name, str) or not name or name in _BY_NAME:
        raise ValueError(f"Expected the name of a new method but got {name!r}; there are {sorted(_BY_NAME)}.")
    if not callable(build):
        raise ValueError(f"Expected a class or function that makes the method {name!r} but got {build!r}.")
    _BY_NAME[name] = build
    return Registration(lambda: _BY_NAME.pop(name, None))


def as_method(method: MethodLike) -> Method:
    """The method that a user means.

    Args:
        method: A :class:`Method`, which is returned as it is; a registered name; or a function of a group and the
            network's tensors, which becomes an :class:`~lightning_coreset.Importance`.

    Raises:
        ValueError: If it is none of these, or ambiguous: a method that can also be called.
    """
    if isinstance(method, Method):
        if callable(method):  # its author expects to be called, and no method is
            raise ValueError(
                f"Expected a method whose class defines select or scores but {type(method).__name__} defines __call__, "
                "which is never called. Rename it to what it is, or give the function alone as Importance(function)."
            )
        return method
    if isinstance(method, str) and method in _BY_NAME:
        built = _BY_NAME[method]()
        if not isinstance(built, Method):
            raise ValueError(f"Expected the method {method!r} to be built as a Method but got {built!r}.")
        return built
    if callable(method) and not isinstance(method, type):
        return Importance(method)
    raise ValueError(
        f"Expected method to be one of {sorted(_BY_NAME)}, an instance of a Method such as Reconstruction(), or a "
        f"function that scores the channels of a group, but got {method!r}."
    )
