"""Sizes of modules as their specs describe them: read, updated, checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from lightning_coreset._compat import own_tensors, registered_buffers, weight_norms
from lightning_coreset.module_specs.attribute_paths import read_size
from lightning_coreset.module_specs.registry import find, module_spec
from lightning_coreset.module_specs.spec import ModuleSpec, Shape
from lightning_coreset.module_specs.values import Size, is_integer, is_size, plain_size


def sizing_tensor(module: nn.Module) -> tuple[str, Tensor] | None:
    """The tensor that a module's sizes follow, with its name in the module; ``None`` if it has none."""
    for name in module_spec(module).tensor_names:
        path, _, attribute = name.rpartition(".")
        owner = _submodule(module, path)
        # Not by ``getattr``: a parametrized weight is computed anew, and in training mode that has side effects.
        tensor = None if owner is None else own_tensors(owner).get(attribute)
        if tensor is not None:
            return name, tensor
        _, direction = weight_norms(owner).get(attribute, ("", "")) if owner is not None else ("", "")
        if owner is not None and direction:  # which has the shape of the weight
            return f"{path}.{direction}" if path else direction, owner.get_parameter(direction)
    return None


def new_sizes(path: str, module: nn.Module, shape: Shape) -> dict[str, Size]:
    """The sizes of a module once its :func:`sizing_tensor` has another shape.

    Args:
        path: Its qualified name, for errors.
        module: The module, not changed yet.
        shape: The new shape, of as many dimensions as before.

    Raises:
        ValueError: If its spec cannot say, or, for a registered spec, does not describe the module as it is.
    """
    entry = find(type(module))
    if entry.registered:  # torch's own classes may be wrong about themselves: surgery then corrects them
        _check(path, module, entry.spec)
    updated = _updated(path, module, entry.spec, shape)
    return {name: size for name, size in updated.items() if name in vars(module)}


def other_sizes(module: nn.Module) -> Iterator[tuple[str, str, Tensor, int]]:
    """The attributes that follow other tensors than the sizing one: each with a tensor's name, itself and dimension."""
    tensors = own_tensors(module)
    for attribute, (name, dim) in module_spec(module).other_sizes.items():
        if name in tensors and attribute in vars(module):
            yield attribute, name, tensors[name], dim


def updated_sizes(module: nn.Module, sizes: Mapping[str, Size], shape: Shape) -> dict[str, Size]:
    """The sizes that follow from another shape, for a module that had other ``sizes`` than it has now."""
    return module_spec(module).updated_sizes({**vars(module), **sizes}, shape)


def check_module_sizes(model: nn.Module) -> None:
    """Check that the modules with registered specs are as these describe them.

    Raises:
        ValueError: If a module lacks an attribute or a tensor, or they disagree.
    """
    for path, module in model.named_modules():
        entry = find(type(module))
        if entry.registered:
            _check(path, module, entry.spec)


def _check(path: str, module: nn.Module, spec: ModuleSpec) -> None:
    where = f"module {path!r} ({type(module).__name__})"
    sizes = (*(() if callable(spec.sizes) else spec.sizes), *(() if spec.width is None else (spec.width,)))
    counts = [name for name in (spec.groups, *spec.head_counts, *spec.input_sizes) if name is not None]
    for name in dict.fromkeys((*sizes, *counts)):
        value = read_size(module, name)
        if not (is_size(value) if name in sizes else is_integer(value)):
            raise ValueError(
                f"Expected {where} to have the integer attribute {name!r}, which its ModuleSpec lists, "
                f"but got {value!r}."
            )
    for attribute, name, tensor, dim in other_sizes(module):
        if read_size(module, attribute) != tensor.shape[dim]:
            raise ValueError(
                f"Expected {attribute!r} of {where} to be {tensor.shape[dim]}, by its ModuleSpec and the shape "
                f"{tuple(tensor.shape)} of its {name!r}, but got {read_size(module, attribute)!r}. Correct the "
                "ModuleSpec or the module."
            )
    for name in spec.running_stats or ():
        if name not in registered_buffers(module):
            raise ValueError(f"Expected {where} to have the buffer {name!r}, which its ModuleSpec lists.")
    found = sizing_tensor(module)
    if found is None:
        _check_tensor_is_optional(where, module, spec)
        return
    name, tensor = found
    if is_lazy(tensor):
        return
    shape = tuple(tensor.shape)
    for attribute, size in _updated(path, module, spec, shape).items():
        present = vars(module).get(attribute)
        if not is_size(present) or plain_size(present) != size:
            raise ValueError(
                f"Expected {attribute!r} of {where} to be {size}, by its ModuleSpec and the shape {shape} of its "
                f"{name!r}, but got {present!r}. Correct the ModuleSpec or the module."
            )


def _check_tensor_is_optional(where: str, module: nn.Module, spec: ModuleSpec) -> None:
    if (not callable(spec.sizes) and not spec.sizes) or parametrize.is_parametrized(module):
        return
    for name in spec.tensor_names:
        path, _, attribute = name.rpartition(".")
        if hasattr(_submodule(module, path), attribute):  # it is None, as the weight of a norm that is not affine
            return
    raise ValueError(
        f"Expected {where} to have a parameter or buffer {' or '.join(map(repr, spec.tensor_names))}, whose sizes its "
        "ModuleSpec lists."
    )


def _submodule(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except (AttributeError, RuntimeError):  # TorchScript modules do not have it
        return None


def _updated(path: str, module: nn.Module, spec: ModuleSpec, shape: Shape) -> dict[str, Size]:
    attributes: Mapping[str, Any] = vars(module)
    try:
        updated = spec.updated_sizes(attributes, shape)
    except Exception as error:
        raise ValueError(
            f"Expected the ModuleSpec of {type(module).__name__} to give the sizes of module {path!r} for a tensor of "
            f"shape {shape} but it raised {type(error).__name__}: {error}"
        ) from error
    wrong = {name: size for name, size in updated.items() if not is_size(size)}
    if wrong:
        raise ValueError(
            f"Expected the ModuleSpec of {type(module).__name__} to give integers or tuples of integers as sizes of "
            f"module {path!r} but got {wrong}."
        )
    return {name: plain_size(size) for name, size in updated.items()}
