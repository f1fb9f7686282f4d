"""Which sizes of modules follow from the shapes of their tensors, and whether both agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from lightning_coreset._compat import own_tensors
from lightning_coreset.module_specs import ModuleSpec, Size, module_spec, other_sizes, sizing_tensor, updated_sizes
from lightning_coreset.surgery import ModelShapes

Shape = tuple[int, ...]


def inferred_sizes(model: nn.Module, original: ModelShapes, shapes: Mapping[str, Shape]) -> dict[str, Size]:
    """The sizes of modules that follow from new shapes, by qualified name.

    They follow from the original shapes and sizes, not from what the model is now: a depthwise convolution that was
    left with one channel looks like any other.
    """
    inferred: dict[str, Size] = {}
    for prefix, module in _modules(model):
        for attribute, tensor, _, dim in other_sizes(module):
            if prefix + tensor in shapes:
                inferred[prefix + attribute] = shapes[prefix + tensor][dim]
        found = sizing_tensor(module)
        name = None if found is None else prefix + found[0]
        if name is None or name not in shapes:
            continue
        sizes = _sizes_of(prefix, module, original)
        same = shapes[name] == original.shapes[name]
        updated = _try_updated_sizes(module, sizes, shapes[name])
        inferred |= {
            prefix + attribute: sizes[attribute] if same else size
            for attribute, size in updated.items()
            if attribute in sizes
        }
    return inferred


def mismatches(model: nn.Module, original: ModelShapes, target: ModelShapes) -> Iterator[str]:
    """In words, where a model of the target's shapes and sizes would have modules in which they do not agree."""
    for prefix, module in _modules(model):
        found = sizing_tensor(module)
        names = {*own_tensors(module), *(() if found is None else found[:1])}
        shapes = {name: target.shapes.get(prefix + name) for name in names}
        sizes = _sizes_of(prefix, module, target)
        unchanged = all(shape == original.shapes.get(prefix + name) for name, shape in shapes.items())
        if unchanged and sizes == _sizes_of(prefix, module, original):
            continue
        spec, attributes = module_spec(module), {**vars(module), **sizes}
        width = attributes.get(spec.width) if spec.width is not None else None
        for name in spec.vectors:
            shape = shapes.get(name)
            whole = width if isinstance(width, tuple) else (width,)
            if width is not None and shape is not None and len(shape) == len(whole) and shape != whole:
                yield f"{prefix + name!r} has shape {shape} where its module has {width} channels"
        for attribute, name, _, dim in other_sizes(module):
            shape, fixed = shapes[name], f"{attribute}={attributes[attribute]}"
            if shape is not None and shape[dim] != attributes[attribute]:
                yield f"{prefix + name!r} has shape {shape}, which does not fit {fixed}"
        shape = None if found is None else shapes[found[0]]
        if found is not None and shape is not None and not _fits(spec, attributes, shape):
            yield f"{prefix + found[0]!r} has shape {shape}, which does not fit {_in_words(spec, attributes, shape)}"


def _fits(spec: ModuleSpec, attributes: Mapping[str, Any], shape: Shape) -> bool:
    try:
        return spec.fits(attributes, shape)
    except Exception:  # a function of the user's that knows no module of such a shape
        return False


def _in_words(spec: ModuleSpec, attributes: Mapping[str, Any], shape: Shape) -> str:
    try:
        names = {*spec.updated_sizes(attributes, shape)}
    except Exception:
        names = set()
    names |= {name for name in (spec.width, spec.groups) if name is not None}
    return ", ".join(f"{name}={attributes[name]}" for name in sorted(names) if name in attributes) or "its module"


def _try_updated_sizes(module: nn.Module, sizes: Mapping[str, Size], shape: Shape) -> dict[str, Size]:
    try:
        return updated_sizes(module, sizes, shape)
    except Exception:  # `mismatches` finds that the shape is impossible
        return {}


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules(remove_duplicate=False):
        yield (f"{path}." if path else ""), module


def _sizes_of(prefix: str, module: nn.Module, shapes: ModelShapes) -> dict[str, Size]:
    """The sizes of one module, by attribute."""
    return {name: shapes.sizes[prefix + name] for name in vars(module) if prefix + name in shapes.sizes}
