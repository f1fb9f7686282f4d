"""The state of a module's attributes, whatever a user keeps there, to go back to."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset._compat import own_tensors


class ObjectState:
    """The state of all objects that a module refers to through modules and containers, to go back to.

    Restoring writes to the same objects. Parameters get their gradients and ``requires_grad`` back, not their content.

    Args:
        module: The module.
    """

    def __init__(self, module: nn.Module) -> None:
        self._restorers: list[Callable[[], object]] = []
        self._parameters: list[tuple[nn.Parameter, Tensor | None, bool]] = []
        # Ids suffice: the restorers keep the objects alive, so that no id is used twice.
        seen: set[int] = set()
        pending: list[Any] = [module]
        while pending:
            value = pending.pop()
            if id(value) not in seen:
                seen.add(id(value))
                pending.extend(self._save(value))

    def hide_gradients(self) -> None:
        """Set all gradients to ``None``: ``backward`` would add to them in place, and copying them costs more."""
        for parameter, _, _ in self._parameters:
            parameter.grad = None

    def restore(self) -> None:
        """Put everything back."""
        for restore in self._restorers:
            restore()
        for parameter, grad, requires_grad in self._parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad

    def _save(self, value: Any) -> Iterable[Any]:
        """Save a value, and return what it holds."""
        if isinstance(value, nn.Parameter):
            self._parameters.append((value, value.grad, value.requires_grad))
        elif isinstance(value, Tensor):
            if not nn.parameter.is_lazy(value) and not value.is_meta:
                self._restorers.append(partial(_restore_tensor, value, value.detach().clone()))
        elif isinstance(value, nn.Module):
            if any(map(nn.parameter.is_lazy, own_tensors(value).values())):
                return value.children()  # its first call changes its class, which cannot be undone
            return (vars(value),)
        elif isinstance(value, dict):
            self._restorers.append(partial(_restore_dict, value, dict(value)))
            return value.values()
        elif isinstance(value, list | deque):
            self._restorers.append(partial(_restore_sequence, value, list(value)))
            return value
        elif isinstance(value, set):
            self._restorers.append(partial(_restore_set, value, set(value)))
        elif isinstance(value, tuple):
            return value
        elif isinstance(value, torch.Generator):
            self._restorers.append(partial(value.set_state, value.get_state()))
        return ()


def _restore_tensor(tensor: Tensor, content: Tensor) -> None:
    # Through `data`: for autograd the content has not changed, since it is what it was; and the states of metrics that
    # were reset during validation are inference tensors, which cannot be written to directly.
    if tensor.shape != content.shape:
        tensor.data = content
    elif tensor.layout is not torch.strided or not torch.equal(tensor, content):
        tensor.data.copy_(content)


# Containers are written to only if they differ: some are modules' own dicts, and some may be shared between threads.
def _restore_dict(container: dict[Any, Any], content: dict[Any, Any]) -> None:
    if list(container) != list(content) or any(container[key] is not value for key, value in content.items()):
        container.clear()
        container.update(content)


def _restore_sequence(container: list[Any] | deque[Any], content: list[Any]) -> None:
    if len(container) != len(content) or any(a is not b for a, b in zip(container, content, strict=True)):
        container.clear()
        container.extend(content)


def _restore_set(container: set[Any], content: set[Any]) -> None:
    if container != content:
        container.clear()
        container.update(content)
