"""Give a model other shapes, smaller or larger, for contents that are loaded afterwards."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_coreset._compat import renew_weights
from lightning_coreset.indexing import match_memory_format
from lightning_coreset.module_specs import changed_attributes, owner, read_size
from lightning_coreset.surgery.apply import replace_data, set_attributes
from lightning_coreset.surgery.model_shapes import ModelShapes, all_tensors, record_original_shapes
from lightning_coreset.surgery.settling import settling


def resize(model: nn.Module, target: ModelShapes) -> None:
    """Give the tensors and modules of a model other shapes and sizes, in place, all or nothing.

    ``Parameter`` objects keep their identity, ties, ``requires_grad``, dtype, device and memory format. A tensor that
    changes is zero afterwards, since its contents are about to be loaded, and has no ``.grad``; constants are set. All
    new tensors are made before the first one replaces an old one, so running out of memory changes nothing.

    Args:
        model: The model; what the target does not name stays.
        target: The new shapes and sizes; to make a copy of a model follow it, ``ModelShapes.of(model)``.

    Raises:
        ValueError: If the target has a name that the model has not, or two shapes for one tied tensor. The model is
            unchanged then.

    Example:
        >>> import copy
        >>> from lightning_coreset import prune
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> twin = copy.deepcopy(model)
        >>> _ = prune(model, torch.randn(1, 4), 0.5)
        >>> resize(twin, ModelShapes.of(model))
        >>> twin[0]
        Linear(in_features=4, out_features=4, bias=True)
    """
    _check(model, target)
    tensors = all_tensors(model)
    with record_original_shapes(model), torch.inference_mode(False):  # its tensors could not be trained
        ready: dict[int, tuple[Tensor, Tensor]] = {}  # by id, since a tied tensor comes more than once
        for name, shape in target.shapes.items():
            tensor = tensors[name]
            if tuple(tensor.shape) != shape and id(tensor) not in ready:
                ready[id(tensor)] = (tensor, match_memory_format(tensor.detach().new_zeros(shape), tensor))
        waiting = settling(model, ready)
        places = [(*owner(model, name), size) for name, size in target.sizes.items()]
        values = changed_attributes(place for place in places if read_size(*place[:2]) != place[2])
        for tensor, value in ready.values():
            replace_data(tensor, value)
        with torch.no_grad():
            for name, value in target.constants.items():
                if id(tensors[name]) in ready:
                    tensors[name].copy_(value)
        set_attributes(values)
        for settle in waiting:
            settle()
    for module in model.modules():
        renew_weights(module)


def _check(model: nn.Module, target: ModelShapes) -> None:
    present = ModelShapes.of(model)
    foreign = [
        *(name for name in target.shapes if name not in present.shapes),
        *(name for name in target.sizes if name not in present.sizes),
        *(name for name in target.constants if name not in present.constants),
    ]
    if foreign:
        raise ValueError(f"Expected names of {type(model).__name__} but got {foreign[:4]}, which it does not have.")
    shapes: dict[int, tuple[int, ...]] = {}
    for name, tensor in all_tensors(model).items():
        shape = target.shapes.get(name, tuple(tensor.shape))
        if shapes.setdefault(id(tensor), shape) != shape:
            raise ValueError(
                f"Expected one shape for the tied tensor {name!r} but got {shapes[id(tensor)]} and {shape}."
            )
