"""Several watchers of operations in one mode: torch takes longer to enter a mode than most of them need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias

from lightning_coreset._compat import DispatchMode

Proceed: TypeAlias = Callable[[Any, Any, Any], Any]
"""Hands an operator with its positional and keyword arguments on to the next watcher, and in the end runs it."""


def run(function: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator, seen by no watcher any more."""
    return function(*args, **kwargs)


class Layer(Protocol):
    """What sees the operations of a run."""

    def operation(self, function: Any, args: Any, kwargs: Any, proceed: Proceed) -> Any:
        """Hand an operation on, and return its result, or something else."""
        ...

    def begin(self) -> None:
        """Begin a run."""
        ...

    def end(self) -> None:
        """End a run."""
        ...


class LayeredMode(DispatchMode):
    """Lets watchers see every operation, each handing it on to the next.

    Args:
        layers: The watchers, the one that sees an operation first at the beginning. What the code of one of them
            computes besides is seen by no other.
        last: Runs the operations in the end. What it does there takes less time than in a mode of its own.
    """

    def __init__(self, layers: Sequence[Layer], last: Proceed = run) -> None:
        super().__init__()
        self._layers = tuple(layers)
        proceed: Proceed = last
        for layer in reversed(self._layers):
            proceed = partial(layer.operation, proceed=proceed)
        self._first = proceed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation."""
        return self._first(func, args, kwargs or {})

    def __enter__(self) -> LayeredMode:
        """Begin a run."""
        super().__enter__()
        for layer in self._layers:
            layer.begin()
        return self

    def __exit__(self, *exception: Any) -> None:
        """End it."""
        for layer in reversed(self._layers):
            layer.end()
        super().__exit__(*exception)
