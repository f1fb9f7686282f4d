"""Find out, before anything is changed, whether optimizers can follow a change of their parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_coreset.optimizers.discovery import all_layers, name_of, parameters_of
from lightning_coreset.optimizers.entries import StateEntries
from lightning_coreset.optimizers.held_tensors import HeldTensor, held_tensors
from lightning_coreset.optimizers.slicing import is_elementwise
from lightning_coreset.plan import ParameterChange


def check_optimizers(
    optimizers: Sequence[Any], changes: Mapping[Tensor, ParameterChange], parameters: Iterable[Tensor]
) -> None:
    """Refuse optimizers that keep of the parameters what cannot be cut with these, outside of their ``state``.

    Args:
        optimizers: The optimizers, also when wrapped in others.
        changes: What is about to happen to parameters of the model, by the parameter, which has its old shape.
        parameters: All parameters of the model.

    Raises:
        ValueError: If an optimizer has tensors in other attributes that depend on shapes that change, and it is not
            plain how; or if it trains copies of the parameters, or a vector of all of them, in their place.
    """
    cut = {parameter: change for parameter, change in changes.items() if change.kept}
    for optimizer in optimizers:
        for held in held_tensors(optimizer):
            reason = _reason(held, cut)
            if reason:
                raise ValueError(
                    f"Expected {name_of(held.optimizer)} to keep what it knows of its parameters in `state`, or in "
                    f"lists and dicts with a tensor of its shape for each parameter, but got `{held.path}` of shape "
                    f"{tuple(held.tensor.shape)}, {reason}. Nothing was pruned. Keep it in "
                    "`optimizer.state[parameter]`, or use another optimizer."
                )
    _check_trained(optimizers, cut, parameters)


def _reason(held: HeldTensor, cut: Mapping[Tensor, ParameterChange]) -> str:
    """Why a tensor cannot follow; empty if it can, or does not have to."""
    parameters = parameters_of(held.optimizer)
    mine = [cut[parameter] for parameter in parameters if parameter in cut]
    if not mine:
        return ""
    shape = tuple(held.tensor.shape)
    if held.parameter is None:
        if held.tensor.numel() == sum(map(Tensor.numel, parameters)) and len(parameters) > 1:
            return "which has the elements of all parameters"
        same = next((change for change in mine if shape == change.old_shape and len(shape) > 1), None)
        return "" if same is None else f"which may belong to '{same.name}' or to another parameter"
    change = cut.get(held.parameter)
    if change is None:
        return ""
    if not is_elementwise(shape, change.old_shape):
        return f"which belongs to '{change.name}' and does not have its shape, {change.old_shape}"
    others = [
        (each.parameter, each.tensor)
        for each in held_tensors(held.optimizer)
        if each.parameter is not None and each.optimizer is held.optimizer and each.collection == held.collection
    ]
    entries = StateEntries({held.collection: others}, {}, {})
    if not entries.is_elementwise(held.collection, held.tensor, change):
        return f"which may be a matrix for the rows or the columns of '{change.name}'"
    return ""


def _check_trained(
    optimizers: Iterable[Any], cut: Mapping[Tensor, ParameterChange], parameters: Iterable[Tensor]
) -> None:
    """Refuse optimizers that train something else in place of the model's parameters."""
    own = set(map(id, parameters))
    trained = [
        (each, layer) for optimizer in optimizers for layer in all_layers(optimizer) for each in parameters_of(layer)
    ]
    known = {id(each) for each, _ in trained}
    foreign = [(each, layer) for each, layer in trained if id(each) not in own and each.numel()]
    for parameter, change in cut.items():
        if id(parameter) in known or not parameter.requires_grad:
            continue
        memory = parameter.untyped_storage().data_ptr()
        for each, layer in foreign:
            if each.untyped_storage().data_ptr() == memory or each.shape == parameter.shape:
                raise ValueError(
                    f"Expected {name_of(layer)} to train the model's own parameters but got others in its "
                    f"param_groups: one of shape {tuple(each.shape)} instead of '{change.name}', such as a copy in "
                    "another precision or a vector of all parameters. It would go on training what the model no "
                    "longer uses. Nothing was pruned. Give the optimizer the parameters themselves."
                )
