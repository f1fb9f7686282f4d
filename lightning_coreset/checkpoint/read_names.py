"""Names of attributes that the code of a network reads, as far as it can be seen without running it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache, cached_property, partial
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

from lightning_coreset.module_specs import configs_of, parts_of

_ENTRIES = ("forward", "training_step", "validation_step", "test_step", "predict_step")
_OTHERS = ("torch.", "lightning.", "pytorch_lightning.", "lightning_coreset.")


def names_read(model: nn.Module) -> frozenset[str] | None:
    """The names that ``forward`` and steps read, and what these call: methods of all modules, and functions.

    A method is followed by its name, whatever object it belongs to, so that there are rather too many. Not seen are
    names that code puts together (``getattr(self, name)``).

    Returns:
        The names; ``None`` if some module runs other code than Python's, so that it may read anything.
    """
    functions: dict[str, list[FunctionType]] = {}
    names: set[str] = set(_ENTRIES)
    for kind in {type(module) for module in model.modules()}:
        if not is_others(kind) and not _has_code(getattr(kind, "forward", None)):
            return None
        _add(functions, _methods(kind))
    for module in model.modules():
        _add(functions, ((name, value) for name, value in vars(module).items() if inspect.isroutine(value)))
        for _, config in configs_of(module):
            for _, part in parts_of(config):
                _add(functions, _methods(type(part)))
                names |= set(
                    getattr(type(part), "attribute_map", {}).values()
                )  # of transformers: other names of fields
    return _reached(functions, names)


def is_others(kind: type) -> bool:
    """Whether a class is torch's, Lightning's or this package's."""
    return f"{kind.__module__}.".startswith(_OTHERS)


def _reached(functions: dict[str, list[FunctionType]], names: set[str]) -> frozenset[str]:
    waiting, seen = list(names), set(names)
    done: set[CodeType] = set()
    while waiting:
        found: set[str] = set()
        for function in functions.get(waiting.pop(), ()):
            for code, called in _codes(function):
                if code not in done:
                    done.add(code)
                    found |= set(code.co_names)
                    _add(functions, called)
        waiting += found - seen
        seen |= found
    return frozenset(seen)


def _codes(function: FunctionType) -> Iterator[tuple[CodeType, list[tuple[str, Any]]]]:
    """The code of a function, of those within it and of those that it wraps, with the functions that each may call."""
    reachable = [function, *_enclosed(function)]
    for each in reachable:
        for code in _nested(each.__code__):
            named = [(name, each.__globals__.get(name)) for name in code.co_names]
            yield code, [(name, value) for name, value in named if isinstance(value, FunctionType)]


def _enclosed(function: FunctionType, depth: int = 0) -> Iterator[FunctionType]:
    """The functions that one encloses or wraps, as decorators make them."""
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    for value in (*cells, getattr(function, "__wrapped__", None)):
        inner = _plain_function(value)
        if inner is not None and inner is not function and depth < 8:
            yield inner
            yield from _enclosed(inner, depth + 1)


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # empty
        return False


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _add(functions: dict[str, list[FunctionType]], named: Any) -> None:
    for name, value in named:
        function = _plain_function(value)
        if function is not None and function not in functions.setdefault(name, []):
            functions[name].append(function)


@cache
def _methods(kind: type) -> list[tuple[str, Any]]:
    return [item for base in kind.__mro__ if base is not object and not is_others(base) for item in vars(base).items()]


def _plain_function(value: Any) -> FunctionType | None:
    """The function in a method, a property or a partial; ``None`` if it is anything else."""
    if isinstance(value, property):
        value = value.fget
    if isinstance(value, (staticmethod, classmethod, MethodType)):
        value = value.__func__
    if isinstance(value, (partial, cached_property)):
        value = value.func
    if inspect.isroutine(value) and not isinstance(value, FunctionType):  # one with a cache, for example
        value = getattr(value, "__wrapped__", None)
    return value if isinstance(value, FunctionType) else None


def _has_code(value: Any) -> bool:
    return _plain_function(value) is not None
