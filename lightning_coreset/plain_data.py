"""Plain data of checkpoints, read into dataclasses with every value checked: a file may be damaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Any, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_Reader: TypeAlias = Callable[[Any], Any]


def from_plain(cls: type[T], plain: object, **read: Any) -> T:
    """Make a dataclass of a dict of plain values.

    Args:
        cls: The dataclass.
        plain: The dict.
        **read: Fields that were read already, in place of those of the dict.

    Raises:
        ValueError: If it is no dict, lacks a field or has another one, or a value is of another type.
    """
    if not isinstance(plain, Mapping):
        raise ValueError(f"Expected a dict of a {cls.__name__} but got {_shown(plain)}.")
    readers, values = _readers(cls), {**plain, **read}
    for name, value in values.items():
        if name not in readers:
            raise ValueError(f"Expected the fields of a {cls.__name__} but got {_shown(name)}, too.")
        if name not in read:
            values[name] = _read(readers[name], value, f"{cls.__name__}.{name}")
    try:
        return cls(**values)
    except TypeError as error:  # a field is missing
        raise ValueError(f"Expected all fields of a {cls.__name__}: {error}.") from error


def as_type(value: Any, hint: Any, name: str) -> Any:
    """The value, if it is of this type; a list becomes the tuple that is meant.

    Args:
        value: Any value.
        hint: A type of plain data, such as ``int | None`` or ``dict[str, float]``. A float may be an integer.
        name: What it is, for the error.

    Raises:
        ValueError: If it is of another type.
    """
    return _read(_reader(hint), value, name)


def _read(reader: _Reader, value: Any, name: str) -> Any:
    try:
        return reader(value)
    except _WrongTypeError as error:
        kind = str(error.kind) if get_origin(error.kind) else error.kind.__name__
        raise ValueError(f"Expected {name}{error.place} to be of type {kind} but got {_shown(error.value)}.") from None


class _WrongTypeError(Exception):
    """A value is of another type; ``place`` is where it lies in a container, as Python would write it."""

    def __init__(self, *, kind: Any, value: object) -> None:
        self.kind, self.value, self.place = kind, value, ""


def _read_item(reader: _Reader, value: Any, key: object) -> Any:
    try:
        return reader(value)
    except _WrongTypeError as error:
        error.place = f"[{key!r}]{error.place}"
        raise


@cache
def _readers(cls: type) -> dict[str, _Reader]:
    hints = get_type_hints(cls)
    return {one.name: _reader(hints[one.name]) for one in fields(cls)}  # type: ignore[arg-type]


@cache
def _reader(hint: Any) -> _Reader:
    """What checks a value of a type; made once, since a resumed run reads thousands of values."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return lambda value: value
    if origin in (Union, UnionType):
        return _any_of(hint, [_reader(one) for one in arguments])
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(hint, *map(_reader, arguments))
    if origin is not None and issubclass(origin, Sequence):
        return _sequence(hint, list if origin is list else tuple, _reader(arguments[0]))
    # A flag is no number.
    kinds, flags = {float: ((int, float), bool), int: (int, bool)}.get(hint, (hint, ()))

    def read(value: Any) -> Any:
        if isinstance(value, kinds) and not isinstance(value, flags):
            return value
        raise _WrongTypeError(kind=hint, value=value)

    return read


def _any_of(hint: Any, readers: Sequence[_Reader]) -> _Reader:
    def read(value: Any) -> Any:
        for reader in readers:
            try:
                return reader(value)
            except _WrongTypeError:
                continue
        raise _WrongTypeError(kind=hint, value=value)

    return read


def _mapping(hint: Any, key: _Reader, item: _Reader) -> _Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, Mapping):
            raise _WrongTypeError(kind=hint, value=value)
        return {key(name): _read_item(item, one, name) for name, one in value.items()}

    return read


def _sequence(hint: Any, kind: type, item: _Reader) -> _Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise _WrongTypeError(kind=hint, value=value)
        return kind(_read_item(item, one, place) for place, one in enumerate(value))

    return read


_LONGEST = 60


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."
