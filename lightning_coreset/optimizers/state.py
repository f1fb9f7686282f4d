"""Slice an optimizer's state with its parameters, so that training continues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_coreset._compat import set_lbfgs_numel
from lightning_coreset.optimizers.discovery import innermost_first, parameters_of
from lightning_coreset.optimizers.entries import StateEntries, of_all_parameters
from lightning_coreset.optimizers.held_tensors import slice_held_tensors
from lightning_coreset.optimizers.renewal import initial_state
from lightning_coreset.plan import ParameterChange

_SCALARS = (bool, int, float, complex, str, type(None))


def slice_optimizer_state(
    optimizer: torch.optim.Optimizer,
    changes: Mapping[Tensor, ParameterChange],
    before: Mapping[Tensor, Tensor] | None = None,
) -> tuple[str, ...]:
    """Slice the state of an optimizer the way its parameters have been sliced.

    The optimizer, its parameter groups and the learning-rate schedulers that refer to them stay the same objects. For
    every optimizer of torch that works element by element, the next step then equals the step of the unpruned network
    on the elements that stay. A reweighted consumer keeps its sliced state as well.

    Scalars of the state are kept (the number of steps), and so are tensors of one element. A tensor is kept if each of
    its dimensions has the size that the parameter's had (then it is sliced) or 1 (then that dimension stays, as of
    Adafactor's factored variances), or if it is one vector of all the parameter's elements. If all entries of a name
    together look like the weights, as slow or averaged weights do, they move with the weights' new values. If the state
    of a parameter holds anything else, such as a matrix for pairs of rows or quantized numbers, all state of that
    parameter is reset: the optimizer starts it anew. LBFGS has one history for all its parameters, which is reset.

    Tensors that an optimizer keeps in other attributes are sliced as well, in place, where it is plain to which
    parameter each belongs; ``check_optimizers`` tells before whether any is not.

    Args:
        optimizer: The optimizer, also when wrapped in others; what it wraps is found in its attributes.
        changes: The change of each parameter that changed, by the parameter itself, whose ``data`` has the new shape
            already. Parameters of other optimizers are ignored.
        before: The content of these parameters before (their ``data``, kept until now). Without it, state that looks
            like weights is reset where the plan gives weights new values.

    Returns:
        The names of the parameters whose state was reset, for the caller to warn about; empty if all state was kept.

    Raises:
        ValueError: If a parameter does not have the new shape yet. No state has changed then.

    Example:
        >>> layer = torch.nn.Linear(3, 4, bias=False)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        >>> layer(torch.ones(1, 3)).sum().backward()
        >>> optimizer.step()
        >>> kept = torch.tensor([0, 2])
        >>> layer.weight.grad, layer.weight.data = None, layer.weight.data[kept]
        >>> change = ParameterChange("weight", old_shape=(4, 3), new_shape=(2, 3), kept={0: kept})
        >>> slice_optimizer_state(optimizer, {layer.weight: change})
        ()
        >>> optimizer.state[layer.weight]["momentum_buffer"].shape
        torch.Size([2, 3])
    """
    for parameter, change in changes.items():
        if tuple(parameter.shape) != change.new_shape:
            raise ValueError(
                f"Expected parameter '{change.name}' to have its new shape {change.new_shape} but got "
                f"{tuple(parameter.shape)}. Change the parameters before the state of their optimizer."
            )
    reset: dict[str, None] = {}  # a set that keeps its order
    seen: set[int] = set()
    for layer in innermost_first(optimizer):
        if isinstance(layer, torch.optim.LBFGS):
            reset.update(dict.fromkeys(_reset_lbfgs(layer, changes)))
        else:
            reset.update(dict.fromkeys(_slice_by_parameter(layer, changes, before or {}, seen)))
    slice_held_tensors(optimizer, changes, before or {})
    return tuple(reset)


def _reset_lbfgs(optimizer: torch.optim.LBFGS, changes: Mapping[Tensor, ParameterChange]) -> list[str]:
    changed = [changes[p].name for p in parameters_of(optimizer) if p in changes]
    if not changed:
        return []
    set_lbfgs_numel(optimizer, None)
    had_state = bool(optimizer.state)
    optimizer.state.clear()
    return changed if had_state else []


def _slice_by_parameter(
    optimizer: Any, changes: Mapping[Tensor, ParameterChange], before: Mapping[Tensor, Tensor], seen: set[int]
) -> list[str]:
    entries = StateEntries.of_state(optimizer, changes, before)
    ready: list[tuple[Tensor, dict[Any, Any] | None]] = []
    joint = of_all_parameters(optimizer, changes)
    for parameter, change in changes.items():
        # The state is a defaultdict: reading an absent key would add it. Some wrappers show the states of what they
        # wrap once more.
        if parameter in optimizer.state and id(optimizer.state[parameter]) not in seen and parameter not in joint:
            ready.append((parameter, _slice_state(optimizer.state[parameter], parameter, change, entries)))
    ready += [(parameter, None) for parameter in joint]
    reset = []
    for parameter, sliced in ready:
        state = optimizer.state[parameter]
        seen.add(id(state))
        if sliced is not None:
            state.update(sliced)
            continue
        renewed = initial_state(optimizer, parameter)
        if renewed is None:
            del optimizer.state[parameter]
        else:
            optimizer.state[parameter] = renewed
        reset.append(changes[parameter].name if parameter in changes else _ALL)
    return reset


_ALL = "all parameters together"


def _slice_state(
    state: Any, parameter: Tensor, change: ParameterChange, entries: StateEntries
) -> dict[Any, Any] | None:
    """The entries of one parameter's state that change; ``None`` if any of it has an unknown form."""
    if not isinstance(state, dict):
        return None if change.kept else {}
    sliced = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            value = entries.sliced(key, value, parameter, change)
            if value is None:
                return None
            sliced[key] = value
        elif change.kept and not isinstance(value, _SCALARS):
            return None
    return sliced
