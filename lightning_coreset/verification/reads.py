"""Which attributes of modules and config objects a network reads when it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


class Reads:
    """The attributes that some objects were asked for.

    Args:
        seen: Ids of objects, with names of attributes.
        watched: The types whose objects were watched; of others everything counts as read.
    """

    def __init__(self, seen: set[tuple[int, str]], watched: set[type]) -> None:
        self._seen, self._watched = seen, watched

    def __contains__(self, place: tuple[Any, str]) -> bool:
        owner, name = place
        if type(owner) not in self._watched:
            return True
        # Configs of transformers have other names for some fields, as ``hidden_size`` for ``n_embd``.
        aliases = getattr(owner, "attribute_map", None) or {}
        names = (name, *(alias for alias, real in aliases.items() if real == name))
        return any((id(owner), each) in self._seen for each in names)


def record_reads(owners: Iterable[object], run: Callable[[], object]) -> Reads:
    """Run a network and note which attributes of some objects it reads.

    Args:
        owners: The objects.
        run: Runs the network. If it raises, all attributes count as read.
    """
    seen: set[tuple[int, str]] = set()
    watched: set[type] = set()
    with ExitStack() as stack:
        for kind in {type(owner) for owner in owners}:
            if stack.enter_context(_watching(kind, seen)):
                watched.add(kind)
        try:
            run()
        except Exception:
            watched.clear()
    return Reads(seen, watched)


@contextmanager
def _watching(kind: type, seen: set[tuple[int, str]]) -> Iterator[bool]:
    """In the block, note every attribute that objects of a type are asked for; whether that is possible."""
    original = kind.__getattribute__

    def noted(self: object, name: str) -> Any:
        seen.add((id(self), name))
        return original(self, name)  # type: ignore[call-arg]

    own = vars(kind).get("__getattribute__")
    try:
        # On the type, since objects that are of another type for a while may not compute the same.
        kind.__getattribute__ = noted  # type: ignore[method-assign, assignment]
    except TypeError:  # a type that is not written in Python, such as dict
        yield False
        return
    try:
        yield True
    finally:
        if own is None:
            del kind.__getattribute__
        else:
            kind.__getattribute__ = own  # type: ignore[method-assign]
