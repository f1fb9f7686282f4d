"""The state of an optimizer as plain data on the CPU, and how to put it back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_coreset._compat import belongs_to_other_strategy, set_lbfgs_numel
from lightning_coreset.nested import map_tensors
from lightning_coreset.optimizers import all_layers, held_tensors, innermost_first, optimizers_of
from lightning_coreset.surgery import recorded_shapes


def all_optimizers(trainer: pl.Trainer, pl_module: pl.LightningModule) -> list[Any]:
    """The Trainer's optimizers, and then those that it does not know but that train parameters of the module.

    Such as the optimizers of a module that steps them itself, in its hooks or within the backward pass.
    """
    known = {id(layer.state) for optimizer in trainer.optimizers for layer in innermost_first(optimizer)}
    found = optimizers_of(pl_module.parameters())
    for optimizer in found:
        if belongs_to_other_strategy(optimizer, trainer.strategy):
            known |= {id(layer.state) for layer in innermost_first(optimizer)}
    before = _original_shapes(pl_module)
    others = []
    # Those that wrap others first. Lightning's wrappers of the Trainer's optimizers show a state that is known.
    for optimizer in sorted(found, key=lambda each: -len(list(all_layers(each)))):
        states = {id(layer.state) for layer in innermost_first(optimizer)}
        if not states <= known and not _is_outdated(optimizer, before):
            known |= states
            others.append(optimizer)
    return [*trainer.optimizers, *others]


def _original_shapes(pl_module: pl.LightningModule) -> dict[int, tuple[int, ...]]:
    """The shapes before all surgery of the parameters that have others now, by id."""
    shapes = recorded_shapes(pl_module).shapes
    return {id(one): shapes[name] for name, one in pl_module.named_parameters() if name in shapes}


def _is_outdated(optimizer: Any, before: Mapping[int, tuple[int, ...]]) -> bool:
    """Whether an optimizer is left from before the first event: nothing will step it again.

    Then all entries of a name have the shapes that the parameters had. Entries of other shapes say nothing: those of
    low-rank and factored states never have the parameters' shapes, and after an event is taken back those of an
    optimizer in use have the pruned ones.
    """
    fits: dict[Any, set[str]] = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items() if isinstance(state, dict) and isinstance(parameter, Tensor) else ():
            if isinstance(value, Tensor) and value.dim() == parameter.dim() > 0:
                at_first = tuple(value.shape) == before.get(id(parameter))
                now = value.shape == parameter.shape
                fits.setdefault(key, set()).add("now" if now else "at first" if at_first else "never")
    return any("at first" in found and "never" not in found for found in fits.values())


def copy_optimizers(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
    """What :func:`restore_optimizers` puts back: what all optimizers keep of their parameters, as plain data."""
    optimizers = all_optimizers(trainer, pl_module)
    states = [[copy_state(layer) for layer in innermost_first(optimizer)] for optimizer in optimizers]
    known = len(trainer.optimizers)
    held = [[copy_to_cpu(each.tensor) for each in held_tensors(optimizer)] for optimizer in optimizers]
    return {"optimizers": states[:known], "other_optimizers": states[known:], "held_tensors": held}


def restore_optimizers(trainer: pl.Trainer, pl_module: pl.LightningModule, content: Mapping[str, Any]) -> None:
    """Put back what :func:`copy_optimizers` copied; the parameters have the shapes that they had then.

    Optimizers that the Trainer does not know may be others now, after a resume. They start anew then, as they do
    after every resume.
    """
    optimizers = all_optimizers(trainer, pl_module)
    known = len(trainer.optimizers)
    for optimizer, states in zip(trainer.optimizers, content["optimizers"], strict=True):
        for layer, state in zip(innermost_first(optimizer), states, strict=True):
            restore_state(layer, state)
    others = content.get("other_optimizers", [])
    for place, optimizer in enumerate(optimizers[known:]):
        layers = list(innermost_first(optimizer))
        states = others[place] if len(others) == len(optimizers) - known else []
        if len(states) != len(layers):
            states = [{} for _ in layers]
        for layer, state in zip(layers, states, strict=True):
            restore_state(layer, state)
    for optimizer, copies in zip(optimizers, content.get("held_tensors", []), strict=False):
        held = held_tensors(optimizer)
        if len(held) == len(copies):  # else it was made anew, and keeps none yet
            for each, value in zip(held, copies, strict=True):
                each.tensor.data = value.to(each.tensor.device, each.tensor.dtype, copy=True)


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
