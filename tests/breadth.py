"""Cases that show one fact many times: some of them run always, the others with the slow tests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import pytest


def some_of(cases: Iterable[Any], *fast: Any) -> list[Any]:
    """All cases for ``parametrize``; those that are not among ``fast`` are slow.

    A mapping's cases are its keys.
    """
    cases = list(cases)
    unknown = [case for case in fast if case not in cases]
    assert not unknown, f"no such cases: {unknown}"
    return [case if case in fast else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def thinned(cases: Iterable[Any], step: int) -> list[Any]:
    """All cases for ``parametrize``; the first of each ``step`` are fast. Those of a mapping are its values."""
    named = cases.items() if isinstance(cases, Mapping) else ((None, case) for case in cases)
    return [_marked(case, name, slow=number % step > 0) for number, (name, case) in enumerate(named)]


def _marked(case: Any, name: Any, *, slow: bool) -> Any:
    """A case, which may be a ``pytest.param`` already, or a tuple of several arguments."""
    values, marks = (case.values, list(case.marks)) if hasattr(case, "marks") else (case, [])
    values = values if isinstance(values, tuple) else (values,)
    return pytest.param(*values, id=name or getattr(case, "id", None), marks=[*marks, *[pytest.mark.slow] * slow])


def crossed(*axes: Iterable[Any]) -> list[Any]:
    """All combinations of some axes for ``parametrize``; fast are as few of them as show each value of each axis once.

    These are the diagonal: the i-th of all fast combinations has the i-th value of every axis, which begins anew where
    it is shorter than others.
    """
    values: Sequence[list[Any]] = [list(axis) for axis in axes]
    longest = max(map(len, values))
    fast = {tuple(number % len(axis) for axis in values) for number in range(longest)}
    return [
        pytest.param(
            *(axis[number] for axis, number in zip(values, numbers, strict=True)),
            id="-".join(_label(axis[number]) for axis, number in zip(values, numbers, strict=True)),
            marks=[] if numbers in fast else pytest.mark.slow,
        )
        for numbers in product(*(range(len(axis)) for axis in values))
    ]


def _label(value: Any) -> str:
    """The same in every process, which the address of a function is not."""
    return getattr(value, "__name__", None) or str(value)
