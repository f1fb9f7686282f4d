"""What the sizes of a pruned model's tensors do not tell about it: heads, numbers that it remembers, constants."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from math import gcd
from typing import TypeAlias

from torch import nn

from lightning_coreset._compat import non_persistent_buffers
from lightning_coreset.checkpoint.read_names import is_others, names_read
from lightning_coreset.module_specs import COMMON_HEAD_COUNTS, ModuleSpec, Size, module_spec, remembered_sizes
from lightning_coreset.qualified_names import lies_in
from lightning_coreset.surgery import ModelShapes

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
Cuts: TypeAlias = dict[str, set[tuple[int, int]]]
"""Dimensions that change, before and after, by the module that owns the tensor."""

_OF_TORCH = ("unflattened_size",)  # what torch's modules keep beside the sizes of their tensors and pruning may change


def unknown_sizes(
    model: nn.Module, original: ModelShapes, shapes: Shapes, known: Mapping[str, Size]
) -> dict[str, Size]:
    """What pruning may have changed about a model beside the shapes of its tensors, by qualified name.

    Numbers are listed if the network's code reads them, or their names say that they count heads, and if they may count
    channels, of which there are fewer now. Constants are listed if they are as long as a dimension that changes.

    Args:
        model: The model.
        original: Its shapes and sizes before pruning.
        shapes: The shapes after it.
        known: Sizes that are known.

    Returns:
        For each its size, or shape, before pruning; the likeliest first.
    """
    cuts, read = _cuts(original, shapes), names_read(model)
    unknown: dict[str, Size] = {}
    if not cuts:
        return unknown
    for path, module in model.named_modules(remove_duplicate=False):
        around = _around(path, cuts, original)
        prefix = f"{path}." if path else ""
        for name, size in _remembered(prefix, module, original):
            if prefix + name not in known and _is_read(name, module, read):
                elements = (size,) if isinstance(size, int) else size
                if any(_may_count(each, around) for each in elements):
                    unknown[prefix + name] = size
        for name in non_persistent_buffers(module):
            shape = original.shapes.get(prefix + name, ())
            if prefix + name not in known and any(before in shape for before, _ in around):
                unknown[prefix + name] = shape
    return dict(sorted(unknown.items(), key=lambda item: item[0].rpartition(".")[2] not in COMMON_HEAD_COUNTS))


def derived_head_counts(model: nn.Module, original: ModelShapes, shapes: Shapes) -> dict[str, int]:
    """The numbers of heads for which only one fits the shapes, by qualified name; see ``ModuleSpec.head_widths``.

    No head becomes larger, so that heads of 64 with 11 * 64 channels left are 11. With 6 * 64 they may be 6, or 12 of
    32.
    """
    derived = {}
    for path, module in model.named_modules(remove_duplicate=False):
        spec, prefix = module_spec(module), f"{path}." if path else ""
        before, after = (_head_widths(spec, _within(prefix, each)) for each in (original.shapes, shapes))
        for name in spec.head_counts:
            number = original.sizes.get(prefix + name)
            if isinstance(number, int) and number > 0:
                fitting = [_fitting_counts(number, *widths) for widths in zip(before, after, strict=False)]
                left = set.intersection(*fitting) if fitting else set()
                if len(left) == 1:
                    derived[prefix + name] = left.pop()
    return derived


def _head_widths(spec: ModuleSpec, shapes: Shapes) -> tuple[int, ...]:
    try:
        return () if spec.head_widths is None else tuple(spec.head_widths(shapes))
    except Exception:  # a function of the user's that knows no module of such shapes: then nothing is derived
        return ()


def _within(prefix: str, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    return {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}


def _cuts(original: ModelShapes, shapes: Shapes) -> Cuts:
    cuts: Cuts = {}
    for name, before in original.shapes.items():
        changed = {pair for pair in zip(before, shapes.get(name, before), strict=True) if pair[0] != pair[1]}
        if changed:
            cuts.setdefault(name.rpartition(".")[0], set()).update(changed)
    return cuts


def _around(path: str, cuts: Cuts, original: ModelShapes) -> set[tuple[int, int]]:
    """What changes in a module, or, if it has no tensors, beside it: it may reshape what its neighbours make."""
    while path and not any(lies_in(name, path) for name in original.shapes if name not in original.constants):
        path = path.rpartition(".")[0]
    return set().union(*(pairs for owner, pairs in cuts.items() if lies_in(owner, path)))


def _remembered(prefix: str, module: nn.Module, original: ModelShapes) -> Iterator[tuple[str, Size]]:
    """The sizes that a module and its configs remember, as they were."""
    for name in remembered_sizes(module):
        if prefix + name in original.sizes:
            yield name, original.sizes[prefix + name]


def _is_read(name: str, module: nn.Module, read: frozenset[str] | None) -> bool:
    last = name.rpartition(".")[2]
    spec = module_spec(module)
    if last in spec.head_counts or name in {size.partition("[")[0] for size in spec.input_sizes}:
        return True
    if is_others(type(module)):
        return last in _OF_TORCH
    return last in COMMON_HEAD_COUNTS or read is None or last in read


def _may_count(number: int, cuts: Iterable[tuple[int, int]]) -> bool:
    """Whether a number may have become smaller with dimensions: if it counts their classes, or a multiple of these."""
    return any(_may_follow(number, before, after) for before, after in cuts if after < before)


@cache
def _may_follow(number: int, before: int, after: int) -> bool:
    shared = gcd(number, before) if number > 0 else 1
    divisors = [classes for classes in range(2, shared + 1) if shared % classes == 0]
    return any(_fitting_counts(classes, before, after) - {classes} for classes in divisors)


def _fitting_counts(classes: int, before: int, after: int) -> set[int]:
    """How many equal classes may be left, when a dimension has become smaller; each keeps its length or loses some."""
    longest = before // classes
    return {count for count in range(1, classes + 1) if after % count == 0 and after // count <= longest}
