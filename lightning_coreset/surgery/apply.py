"""Apply the changes of a plan in place: all or nothing, ``Parameter`` objects kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset._compat import renew_weights
from lightning_coreset.indexing import index_dims
from lightning_coreset.module_specs import Size, changed_attributes, new_sizes, other_sizes, read_size, sizing_tensor
from lightning_coreset.plan import AttributeChange, ParameterChange
from lightning_coreset.surgery.model_shapes import record_original_shapes
from lightning_coreset.surgery.settling import settling
from lightning_coreset.surgery.slicing import named_tensors, new_value
from lightning_coreset.surgery.weight_norms import Cut, new_values


def apply_changes(
    model: nn.Module,
    changes: Iterable[ParameterChange],
    attributes: Iterable[AttributeChange] = (),
    *,
    cut: Cut = new_value,
    record: bool = True,
) -> dict[Tensor, ParameterChange]:
    """Apply the changes of a plan in place, all or nothing.

    All new tensors are made before the first one replaces an old one, so running out of memory changes nothing.

    Args:
        model: The model.
        changes: Those of its tensors.
        attributes: Those of numbers that its modules remember.
        cut: Makes each of the new tensors.
        record: Whether to record on the model what its shapes were, which a model that is put back soon has no use for.

    Returns:
        The changed ``Parameter`` objects (the same as before, smaller) with their change.

    Raises:
        ValueError: If a change does not fit the model, or a module does not agree with its registered ``ModuleSpec``.
            Nothing is changed then.
    """
    with torch.inference_mode(False):  # its tensors could not be trained
        return _apply(model, list(changes), list(attributes), cut, record)


def _apply(
    model: nn.Module, changes: Sequence[ParameterChange], attributes: Sequence[AttributeChange], cut: Cut, record: bool
) -> dict[Tensor, ParameterChange]:
    tensors = named_tensors(model)
    _check_attributes(model, attributes)
    for change in changes:
        tensor = tensors.get(change.name)
        if tensor is None or tuple(tensor.shape) != change.old_shape:
            shape = None if tensor is None else tuple(tensor.shape)
            raise ValueError(
                f"Expected {change.name!r} to have shape {change.old_shape} but got {shape}. "
                "The plan was made for another model, or for this one before it was pruned."
            )
    ready = []
    for change, value in zip(changes, new_values(changes, tensors, cut), strict=True):
        tensor = tensors[change.name]
        grad = None if tensor.grad is None else index_dims(tensor.grad, change.kept)
        ready.append((tensor, value, grad, change))
    new_shapes = {id(tensor): change.new_shape for tensor, _, _, change in ready}
    sizes = [
        *_module_sizes(model, new_shapes),
        *((model.get_submodule(attribute.module), attribute.name, attribute.new) for attribute in attributes),
    ]
    values, waiting = changed_attributes(sizes), settling(model, new_shapes)
    with record_original_shapes(model) if record else nullcontext():
        for tensor, value, grad, _ in ready:
            replace_data(tensor, value, grad)
        set_attributes(values)
        for settle in waiting:
            settle()
    for module in model.modules():
        renew_weights(module)
    return {tensor: change for tensor, _, _, change in ready if isinstance(tensor, nn.Parameter)}


def replace_data(tensor: Tensor, value: Tensor, grad: Tensor | None = None) -> None:
    """Give a tensor new data of any shape; the object stays, and with it every reference to it.

    Setting data of another dtype in between makes autograd drop its cached gradient accumulator, which stores the old
    shape: a graph built before would otherwise raise "invalid gradient".
    """
    tensor.grad = None
    other_dtype = torch.float32 if tensor.dtype == torch.float64 else torch.float64
    tensor.data = torch.empty(0, dtype=other_dtype, device=tensor.device)
    tensor.data = value
    tensor.grad = grad


def set_attributes(values: Iterable[tuple[nn.Module, str, Any]]) -> None:
    """Set attributes to values that were computed before the tensors were replaced."""
    for module, name, value in values:
        setattr(module, name, value)


def _module_sizes(model: nn.Module, new_shapes: Mapping[int, tuple[int, ...]]) -> Iterator[tuple[nn.Module, str, Size]]:
    """The sizes of modules that follow the tensors with these ids."""
    for path, module in model.named_modules():
        found = sizing_tensor(module)
        if found is not None and id(found[1]) in new_shapes:
            for name, size in new_sizes(path, module, new_shapes[id(found[1])]).items():
                yield module, name, size
        for name, _, tensor, dim in other_sizes(module):
            if id(tensor) in new_shapes:
                yield module, name, new_shapes[id(tensor)][dim]


def _check_attributes(model: nn.Module, attributes: Sequence[AttributeChange]) -> None:
    modules = dict(model.named_modules())
    for attribute in attributes:
        module = modules.get(attribute.module)
        found = None if module is None else read_size(module, attribute.name)
        if found != attribute.old:
            raise ValueError(
                f"Expected {attribute.name!r} of module {attribute.module!r} to be {attribute.old} but got {found}. "
                "The plan was made for another model, or for this one before it was pruned."
            )
