"""Put the changes of a plan in place: all or nothing, ``Parameter`` objects kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lightning_coreset.plan import AttributeChange, ParameterChange
from lightning_coreset.surgery.model_shapes import record_original_shapes
from lightning_coreset.surgery.modules import update_module_sizes
from lightning_coreset.surgery.slicing import index_dims, named_tensors, new_value


def apply_changes(
    model: nn.Module, changes: Iterable[ParameterChange], attributes: Iterable[AttributeChange] = ()
) -> dict[Tensor, ParameterChange]:
    """Apply the changes of a plan in place, all or nothing.

    All new tensors are made before the first is put in place, so running out of memory changes nothing.

    Returns:
        The changed ``Parameter`` objects (the same as before, smaller) with their change.

    Raises:
        ValueError: If a change does not fit the model; nothing is changed then.
    """
    with torch.inference_mode(False):  # its tensors could not be trained
        return _apply(model, list(changes), list(attributes))


def _apply(
    model: nn.Module, changes: Sequence[ParameterChange], attributes: Sequence[AttributeChange]
) -> dict[Tensor, ParameterChange]:
    tensors = named_tensors(model)
    _check_attributes(model, attributes)
    ready = []
    for change in changes:
        tensor = tensors.get(change.name)
        if tensor is None or tuple(tensor.shape) != change.old_shape:
            shape = None if tensor is None else tuple(tensor.shape)
            raise ValueError(
                f"Expected {change.name!r} to have shape {change.old_shape} but got {shape}. "
                "The plan was made for another model, or for this one before it was pruned."
            )
        value = new_value(change, tensor)
        grad = None if tensor.grad is None else index_dims(tensor.grad, change.kept)
        ready.append((tensor, value, grad, change))
    with record_original_shapes(model):
        for tensor, value, grad, _ in ready:
            replace_data(tensor, value, grad)
        update_module_sizes(model, {id(tensor) for tensor, *_ in ready})
        for attribute in attributes:
            setattr(model.get_submodule(attribute.module), attribute.name, attribute.new)
    return {tensor: change for tensor, _, _, change in ready if isinstance(tensor, nn.Parameter)}


def replace_data(tensor: Tensor, value: Tensor, grad: Tensor | None = None) -> None:
    """Give a tensor new data of any shape; the object, and all that refer to it, stay.

    The flip through another dtype drops autograd's cached gradient accumulator, which remembers the old shape: a
    graph kept from before would otherwise raise "invalid gradient".
    """
    tensor.grad = None
    flipped = torch.float32 if tensor.dtype == torch.float64 else torch.float64
    tensor.data = torch.empty(0, dtype=flipped, device=tensor.device)
    tensor.data = value
    tensor.grad = grad


def _check_attributes(model: nn.Module, attributes: Sequence[AttributeChange]) -> None:
    modules = dict(model.named_modules())
    for attribute in attributes:
        found = getattr(modules.get(attribute.module), attribute.name, None)
        if found != attribute.old:
            raise ValueError(
                f"Expected {attribute.name!r} of module {attribute.module!r} to be {attribute.old} but got {found}. "
                "The plan was made for another model, or for this one before it was pruned."
            )
