"""Sizes of a pruned model that a user states, since nothing else tells them."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from lightning_coreset.checkpoint.record_check import is_smaller_size
from lightning_coreset.module_specs import Size, is_size, plain_size
from lightning_coreset.surgery import ModelShapes


def given_sizes(original: ModelShapes, sizes: Mapping[str, Any]) -> dict[str, Size]:
    """The sizes that a user states, by qualified name.

    Args:
        original: The model before pruning.
        sizes: Sizes by name or shell pattern; a later one takes precedence. Of a constant, its shape, which cannot have
            changed: nobody could tell its contents.

    Raises:
        ValueError: If a pattern matches no size, or one is not a part of the original.
    """
    if not isinstance(sizes, Mapping):
        raise ValueError(f"Expected `sizes` to be a dict of names and numbers but got {sizes!r}.")
    constants = {name: original.shapes[name] for name in original.constants}
    known: dict[str, Size] = {**original.sizes, **constants}
    given: dict[str, Size] = {}
    for pattern, value in sizes.items():
        names = [name for name in known if name == pattern or fnmatchcase(name, pattern)]
        if not names:
            raise ValueError(f"Expected names in `sizes` of numbers that the model remembers but got {pattern!r}.")
        for name in names:
            size = plain_size(value) if is_size(value) else None
            if size is None or not (
                size == known[name] or (name not in constants and is_smaller_size(size, known[name]))
            ):
                raise ValueError(
                    f"Expected at most {known[name]} in `sizes`, which {name!r} is without pruning, but got {value!r}."
                )
            given[name] = size
    return given
