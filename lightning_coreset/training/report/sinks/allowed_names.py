"""Names of scalars for loggers that do not allow every character."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from zlib import crc32

_LONGEST = 200  # MLflow's limit is 250, with the prefix that a logger may add


class AllowedNames:
    """Gives names of at most 200 letters, digits and ``_-./``, no two of them alike, the same one at every call.

    Other characters become underscores, and so do slashes after the first, which separates the kind of a scalar from a
    module: loggers that keep scalars in files would need a file and a folder of one name for ``a`` and ``a/b``.

    Example:
        >>> names = AllowedNames()
        >>> names("coreset/params")
        'coreset/params'
        >>> names("coreset_channels/conv 3×3/left"), names("coreset_channels/conv:3:3:left")
        ('coreset_channels/conv_3_3_left', 'coreset_channels/conv_3_3_left_916c4214')
    """

    def __init__(self) -> None:
        self._given: dict[str, str] = {}
        self._taken: set[str] = set()

    def __call__(self, name: str) -> str:
        """The allowed name."""
        if name not in self._given:
            allowed = _allowed(name)
            if allowed in self._taken:
                allowed = f"{allowed}_{_digest(name.partition('/')[2])}"
            self._given[name] = allowed
            self._taken.add(allowed)
        return self._given[name]

    def of(self, values: Mapping[str, float]) -> dict[str, float]:
        """The same values under allowed names."""
        return {self(name): value for name, value in values.items()}

    def changes(self, names: Iterable[str]) -> bool:
        """Whether any of the names is not allowed."""
        return any(self(name) != name for name in names)


def _allowed(name: str) -> str:
    kind, slash, module = name.partition("/")
    kind, module = (re.sub(r"[^A-Za-z0-9_.-]", "_", part) for part in (kind, module))
    if len(kind) + len(module) >= _LONGEST:  # of a module's name the last part says most
        room = _LONGEST - len(kind) - len("/_01234567")
        module = f"{_digest(module)}_{module[-room:]}"
    return f"{kind}{slash}{module}"


def _digest(name: str) -> str:
    return f"{crc32(name.encode('utf-8', 'replace')):08x}"
