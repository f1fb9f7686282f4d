"""Qualified names of modules and tensors: which lies in which, and how messages list them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def lies_in(path: str, container: str) -> bool:
    """Whether a name is that of a module, or of something in it; all lie in the network itself, ``""``."""
    return not container or path == container or path.startswith(f"{container}.")


def common_module(paths: Iterable[str]) -> str:
    """The smallest module that contains some, ``""`` if that is the network itself.

    Example:
        >>> common_module(["net.encoder.0", "net.encoder.1.conv", "net.encoder"])
        'net.encoder'
    """
    parts = [path.split(".") for path in paths]
    shared = 0
    while parts and all(len(part) > shared and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    return ".".join(parts[0][:shared]) if parts else ""


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first of some names, and how many others there are.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
