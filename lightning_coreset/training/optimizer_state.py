"""The state of an optimizer as plain data on the CPU, and how to put it back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_coreset._compat import set_lbfgs_numel
from lightning_coreset.nested import map_tensors


def copy_to_cpu(tree: Any) -> Any:
    """A copy of nested data with its tensors on the CPU."""
    return map_tensors(lambda tensor: tensor.detach().to("cpu", copy=True), tree)


def copy_state(optimizer: Any) -> dict[int | str, Any]:
    """Copy an optimizer's state to the CPU.

    Args:
        optimizer: An optimizer, without those that wrap it.

    Returns:
        The state by the position of its parameter in ``param_groups``, and by name where the optimizer uses one.
    """
    positions = {id(parameter): position for position, (parameter, _) in enumerate(_parameters(optimizer))}
    entries = [(positions.get(id(key), key), value) for key, value in optimizer.state.items()]
    return {key: copy_to_cpu(value) for key, value in entries if isinstance(key, int | str)}


def restore_state(optimizer: Any, state: Mapping[int | str, Any]) -> None:
    """Put back a state of :func:`copy_state`; the parameters have the shapes that they had then.

    Parameters that were added later, as a finetuning callback does, come last and had no state.
    """
    parameters = dict(enumerate(_parameters(optimizer)))
    optimizer.state.clear()
    for key, value in state.items():
        if isinstance(key, int):
            parameter, group = parameters[key]
            optimizer.state[parameter] = _on_device_of(parameter, group, value)
        else:
            optimizer.state[key] = value
    if isinstance(optimizer, torch.optim.LBFGS):
        set_lbfgs_numel(optimizer, None)


def _parameters(optimizer: Any) -> list[tuple[Tensor, Mapping[str, Any]]]:
    return [(parameter, group) for group in optimizer.param_groups for parameter in group["params"]]


def _on_device_of(parameter: Tensor, group: Mapping[str, Any], state: Any) -> Any:
    """A copy of a parameter's state on its device, except for the step counter, which torch keeps on the CPU."""
    counts_on_cpu = not (group.get("capturable") or group.get("fused"))
    placed = map_tensors(lambda tensor: tensor.to(parameter.device, copy=True), state)
    if counts_on_cpu and isinstance(state, dict) and isinstance(state.get("step"), Tensor):
        placed["step"] = state["step"].clone()
    return placed
