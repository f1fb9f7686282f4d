"""What the shapes of a module's tensors tell about its sizes, and whether they go together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from lightning_coreset._compat import BatchOrInstanceNorm, Convolution, own_tensors
from lightning_coreset.surgery import ModelShapes, sizing_tensor, updated_sizes

# The attribute that says how long a module's vectors are.
_WIDTH: dict[type[nn.Module], str] = {
    nn.Linear: "out_features",
    Convolution: "out_channels",
    BatchOrInstanceNorm: "num_features",
    nn.GroupNorm: "num_channels",
}
_VECTORS = ("weight", "bias", "running_mean", "running_var")


def inferred_sizes(model: nn.Module, original: ModelShapes, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """The sizes of modules that follow from new shapes, by qualified name.

    They follow from the original layout, not from what the model is now: a depthwise convolution that was left with
    one channel looks like any other.
    """
    inferred: dict[str, int] = {}
    for prefix, module in _modules(model):
        weight = _sizing_name(prefix, module)
        if weight is None or weight not in shapes:
            continue
        sizes = _sizes_of(prefix, module, original)
        mended = updated_sizes(module, sizes, shapes[weight])
        same = shapes[weight] == original.shapes[weight]
        inferred |= {prefix + name: sizes[name] if same else size for name, size in mended.items()}
    return inferred


def misfits_within_modules(model: nn.Module, original: ModelShapes, target: ModelShapes) -> Iterator[str]:
    """In words, where a target layout gives a module shapes and sizes that do not go together."""
    for prefix, module in _modules(model):
        own = {name: target.shapes.get(prefix + name) for name in own_tensors(module)}
        if all(shape == original.shapes.get(prefix + name) for name, shape in own.items()):
            continue
        sizes = _sizes_of(prefix, module, target)
        width = next((sizes[name] for kind, name in _WIDTH.items() if isinstance(module, kind)), None)
        for name in _VECTORS:
            shape = own.get(name)
            if width is not None and shape is not None and len(shape) == 1 and shape != (width,):
                yield f"{prefix + name!r} has shape {shape} where its module has {width} channels"
        weight = own.get("weight")
        if isinstance(module, Convolution) and weight not in (None, _weight_shape(module, sizes)):
            yield f"{prefix + 'weight'!r} has shape {weight}, which does not make {sizes['groups']} groups"
        if isinstance(module, nn.GroupNorm) and sizes["num_channels"] % max(sizes["num_groups"], 1):
            yield f"{prefix + 'weight'!r} has shape {weight}, which does not make {sizes['num_groups']} groups"


def _weight_shape(module: Convolution, sizes: Mapping[str, int]) -> tuple[int, ...] | None:
    """The shape of the weight of a convolution of these sizes; ``None`` if there can be none."""
    inputs, outputs, groups = sizes["in_channels"], sizes["out_channels"], sizes["groups"]
    if groups < 1 or inputs % groups or outputs % groups:
        return None
    channels = (inputs, outputs // groups) if module.transposed else (outputs, inputs // groups)
    return (*channels, *module.kernel_size)


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules(remove_duplicate=False):
        yield (f"{path}." if path else ""), module


def _sizing_name(prefix: str, module: nn.Module) -> str | None:
    tensor = sizing_tensor(module)
    names = (name for name, own in own_tensors(module).items() if own is tensor)
    return None if tensor is None else prefix + next(names)


def _sizes_of(prefix: str, module: nn.Module, layout: ModelShapes) -> dict[str, int]:
    """What a layout says of the sizes that a module itself remembers, by attribute."""
    return {name: layout.sizes[prefix + name] for name in vars(module) if prefix + name in layout.sizes}
