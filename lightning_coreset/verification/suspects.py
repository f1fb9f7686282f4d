"""Which groups an error points at: those of the module that raised it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightning_coreset.qualified_names import lies_in
from lightning_coreset.structure import ChannelGroup


def raised_in(error: BaseException, model: nn.Module) -> str | None:
    """The innermost module of a network whose code was running when an error was raised, by its path."""
    paths = {id(module): path for path, module in model.named_modules()}
    found, trace = None, error.__traceback__
    while trace is not None:
        found = paths.get(id(trace.tb_frame.f_locals.get("self")), found)
        trace = trace.tb_next
    return found


def suspects_of(groups: Sequence[ChannelGroup], path: str) -> list[ChannelGroup]:
    """The groups with tensors in a module, or in the nearest one around it that has any; at most half of all."""
    while path:
        found = [group for group in groups if any(lies_in(member.name, path) for member in group.members)]
        if found:
            return found if 2 * len(found) <= len(groups) else []
        path = path.rpartition(".")[0]
    return []
