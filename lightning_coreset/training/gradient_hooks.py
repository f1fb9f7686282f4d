"""Hooks of parameters that would fail in the first backward pass after an event."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset._compat import gradient_hooks, own_tensors
from lightning_coreset.nested import attributes_of
from lightning_coreset.plan import ParameterChange
from lightning_coreset.state.reach import contents

_DEPTH = 5
"""How many containers and objects within each other are entered."""


def check_gradient_hooks(changes: Mapping[Tensor, ParameterChange], model: nn.Module) -> None:
    """Refuse hooks that multiply or add to a gradient a tensor of the parameter's shape before the event.

    Such as ``parameter.register_hook(lambda gradient: gradient * mask)``. At the end of an event: the user's
    ``on_prune`` may have cut the mask.

    Args:
        changes: What has happened to the parameters.
        model: The model, whose own tensors follow by themselves.

    Raises:
        ValueError: For the first such hook.
    """
    own = {id(tensor) for module in model.modules() for tensor in own_tensors(module).values()}
    for parameter, change in changes.items():
        for hook in gradient_hooks(parameter) if change.kept else ():
            for tensor in _used_by(hook, parameter, change.name):
                if id(tensor) not in own and _is_stale(tensor, change):
                    raise ValueError(
                        f"Expected the hooks on the gradient of '{change.name}' to work with its new shape "
                        f"{change.new_shape} but got {_name(hook)}, which uses a tensor of shape "
                        f"{tuple(tensor.shape)}, as the parameter had. Nothing was pruned. Cut that tensor in "
                        "`on_prune`, compute it from the parameter, or exclude the layer with `ignore`."
                    )


def _is_stale(tensor: Tensor, change: ParameterChange) -> bool:
    return _broadcasts(tensor, change.old_shape) and not _broadcasts(tensor, change.new_shape)


def _broadcasts(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    try:
        return tuple(torch.broadcast_shapes(tensor.shape, shape)) == shape
    except RuntimeError:
        return False


def _used_by(hook: Any, parameter: Tensor, name: str) -> Iterator[Tensor]:
    """The tensors that a function can reach by names in its code; of a dict only what it has for the parameter."""
    if isinstance(hook, functools.partial):
        for value in (*hook.args, *hook.keywords.values()):
            yield from _tensors(value, parameter, name, _names(hook.func), _DEPTH)
        yield from _used_by(hook.func, parameter, name)
        return
    function = _function(hook)
    names = _names(hook)
    roots = [getattr(hook, "__self__", None if function is hook else hook)]
    if function is not None:
        roots += map(contents, function.__closure__ or ())
        roots += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        roots += [function.__globals__[each] for each in names if each in function.__globals__]
    for root in roots:
        yield from _tensors(root, parameter, name, names, _DEPTH)


def _function(hook: Any) -> Any:
    """The plain function of a function, a method or an object that can be called."""
    for candidate in (hook, type(hook).__dict__.get("__call__")):
        function = getattr(candidate, "__func__", candidate)
        if hasattr(function, "__code__"):
            return function
    return None


def _names(hook: Callable[..., Any]) -> tuple[str, ...]:
    function = _function(hook)
    return () if function is None else (*function.__code__.co_names, *function.__code__.co_freevars)


def _tensors(value: Any, parameter: Tensor, name: str, names: tuple[str, ...], depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth == 0 or isinstance(value, type | str | bytes):
        return
    elif isinstance(value, Mapping):
        for each in _of_parameter(value, parameter, name):
            yield from _tensors(each, parameter, name, names, depth - 1)
    elif isinstance(value, list | tuple | set):
        for each in value:
            yield from _tensors(each, parameter, name, names, depth - 1)
    else:
        held = {**attributes_of(value), **(own_tensors(value) if isinstance(value, nn.Module) else {})}
        for each in names:
            if each in held:
                yield from _tensors(held[each], parameter, name, names, depth - 1)


def _of_parameter(values: Mapping[Any, Any], parameter: Tensor, name: str) -> list[Any]:
    for key, value in values.items():
        if key is parameter or (isinstance(key, str) and (key == name or name.endswith(f".{key}"))):
            return [value]
    return list(values.values())


def _name(hook: Any) -> str:
    function = getattr(hook, "func", hook)
    return f"`{getattr(function, '__qualname__', type(hook).__qualname__)}`"
