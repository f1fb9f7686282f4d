"""Parameters that take the place of a network's own for a while, so that the network itself can be experimented on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import nn

from lightning_coreset.state.module_state import ModuleState
from lightning_coreset.state.reach import contents, is_shared, reachable


@contextmanager
def stand_ins(model: nn.Module, *, share_memory: bool = False) -> Iterator[None]:
    """Let a network have other parameters, which may be changed and pruned; its own are put back, whatever happens.

    Its own parameters are the same objects afterwards, with the same memory and content: optimizers, and the hooks that
    DDP has on them, notice nothing. All else that the block does to the network is undone, too.

    Args:
        model: The network.
        share_memory: Whether the stand-ins use the memory of the parameters that they stand for, whose content is kept
            on the CPU in the meantime. No operation may be watched in the block then, since it would be copied again.
    """
    state = ModuleState(model)
    values = list(reachable(model))
    own = [value for value in values if isinstance(value, nn.Parameter)]
    kept = [(value.data, value.data.to("cpu", copy=True)) for value in own] if share_memory else []
    try:
        others = {id(value): _like(value, share_memory) for value in own}
        for value in values:
            _replace(value, others)
        yield
    finally:
        state.restore()
        with torch.no_grad():
            for memory, content in kept:
                memory.copy_(content)


def _like(parameter: nn.Parameter, share_memory: bool) -> nn.Parameter:
    if not share_memory:
        result = copy.deepcopy(parameter)
        result.grad = None
        return result
    result = nn.Parameter(parameter.data, parameter.requires_grad)
    vars(result).update(vars(parameter))
    return result


def _replace(holder: Any, others: dict[int, nn.Parameter]) -> None:
    """Replace parameters in a container; those in tuples and sets stay, which is noticed when they are used."""
    if isinstance(holder, dict) and not is_shared(holder):
        items: Any = list(holder.items())
    elif isinstance(holder, list):
        items = list(enumerate(holder))
    elif isinstance(holder, FunctionType):
        for cell in holder.__closure__ or ():
            other = others.get(id(contents(cell)))
            if other is not None:
                cell.cell_contents = other
        return
    else:
        return
    for key, value in items:
        if id(value) in others:
            holder[key] = others[id(value)]
