"""Slice an optimizer's state with its parameters, so that training continues."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any

import torch
from torch import Tensor

from lightning_coreset._compat import inner_optimizer, lbfgs_numel, set_lbfgs_numel
from lightning_coreset.plan import ParameterChange

_SCALARS = (bool, int, float, complex, str, type(None))


def slice_optimizer_state(
    optimizer: torch.optim.Optimizer, changes: Mapping[Tensor, ParameterChange]
) -> tuple[str, ...]:
    """Slice the state of an optimizer the way its parameters have been sliced.

    Only ``optimizer.state`` changes: the optimizer, its parameter groups and the learning-rate schedulers that refer to
    them stay the same objects. For every optimizer of torch that works element by element, the next step then equals
    the step of the unpruned network on the elements that stay. A reweighted consumer keeps its sliced state as well.

    Scalars of the state are kept (the number of steps), and so are tensors of one element. A tensor is kept if each of
    its dimensions has the size that the parameter's had (then it is sliced) or 1 (then that dimension stays, as of
    Adafactor's factored variances). If the state of a parameter holds anything else, all state of that parameter is
    reset: the optimizer starts it anew. LBFGS has one history for all its parameters together, which is reset.

    Args:
        optimizer: The optimizer, also when wrapped in another one that has it as ``optimizer``.
        changes: The change of each parameter that changed, by the parameter itself, whose ``data`` has the new shape
            already. Parameters of other optimizers are ignored.

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
    for layer in innermost_first(optimizer):
        slice_one = _reset_lbfgs if isinstance(layer, torch.optim.LBFGS) else _slice_by_parameter
        reset.update(dict.fromkeys(slice_one(layer, changes)))
    return tuple(reset)


class StateSnapshot:
    """The state of an optimizer, to undo :func:`slice_optimizer_state`.

    The tensors are referred to, not copied, since slicing makes new ones.

    Args:
        optimizer: The optimizer, also when wrapped in another one.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._layers = [
            (layer, {key: copy(state) for key, state in layer.state.items()}, lbfgs_numel(layer))
            for layer in innermost_first(optimizer)
        ]

    def restore(self) -> None:
        """Restore the state in the same dict."""
        for layer, state, numel in self._layers:
            layer.state.clear()
            layer.state.update(state)
            if isinstance(layer, torch.optim.LBFGS):
                set_lbfgs_numel(layer, numel)


def innermost_first(optimizer: Any) -> Iterator[Any]:
    """Yield an optimizer and the optimizers that wrap it, each state once.

    Duck-typed, since Lightning's wrapper imitates the class and returns the state of what it wraps, while others
    (Lookahead) have a state of their own.
    """
    layers = [optimizer]
    while (inner := inner_optimizer(layers[-1])) is not None:
        layers.append(inner)
    seen: set[int] = set()
    for layer in reversed(layers):
        state = getattr(layer, "state", None)
        if isinstance(state, dict) and id(state) not in seen:
            seen.add(id(state))
            yield layer


def _reset_lbfgs(optimizer: torch.optim.LBFGS, changes: Mapping[Tensor, ParameterChange]) -> list[str]:
    changed = [changes[p].name for group in optimizer.param_groups for p in group["params"] if p in changes]
    if not changed:
        return []
    set_lbfgs_numel(optimizer, None)
    had_state = bool(optimizer.state)
    optimizer.state.clear()
    return changed if had_state else []


def _slice_by_parameter(optimizer: torch.optim.Optimizer, changes: Mapping[Tensor, ParameterChange]) -> list[str]:
    reset = []
    for parameter, change in changes.items():
        # The state is a defaultdict: reading an absent key would add it.
        if not change.kept or parameter not in optimizer.state:
            continue
        state = optimizer.state[parameter]
        sliced = _slice_state(state, parameter, change)
        if sliced is None:
            del optimizer.state[parameter]
            reset.append(change.name)
        else:
            state.update(sliced)
    return reset


def _slice_state(state: Any, parameter: Tensor, change: ParameterChange) -> dict[Any, Any] | None:
    """Slice all of one parameter's state, or return ``None`` if any of it has an unknown form."""
    if not isinstance(state, dict):
        return None
    sliced = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            value = _slice_tensor(value, parameter, change)
            if value is None:
                return None
        elif not isinstance(value, _SCALARS):
            return None
        sliced[key] = value
    return sliced


def _slice_tensor(value: Tensor, parameter: Tensor, change: ParameterChange) -> Tensor | None:
    if value.numel() == 1:
        return value
    if value.ndim != len(change.old_shape):
        return None
    if any(size not in (old, 1) for size, old in zip(value.shape, change.old_shape, strict=True)):
        return None
    with torch.no_grad():
        sliced = value
        for dim, kept in change.kept.items():
            if value.shape[dim] == change.old_shape[dim]:
                sliced = sliced.index_select(dim, kept.to(value.device))
        if sliced is value:
            return value
        if sliced.shape != parameter.shape:
            return sliced
        # In the parameter's memory format, as the optimizer would have made it: fused kernels read both by one index.
        return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(sliced)
