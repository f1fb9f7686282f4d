"""Whether a run of a network depended on its being in evaluation mode."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from lightning_coreset.module_specs import module_spec

_ONE_WATCH = threading.RLock()


@dataclass
class FlagWatch:
    """What was seen.

    Attributes:
        matters: Whether the network may do something else in training mode.
    """

    matters: bool


@contextmanager
def watched_training_flag(model: nn.Module) -> Iterator[FlagWatch]:
    """See whether anything asks a module whether it is in training mode.

    A network whose modules are never asked runs in training mode just as it did in evaluation mode. ``nn.Module`` keeps
    the flag in the instance, where reading leaves no trace; while the watch is on, a property of the class stands
    before it.
    """
    watch = FlagWatch(any(map(_is_beyond_watching, model.modules())))

    def read(module: nn.Module) -> bool:
        watch.matters = watch.matters or not module_spec(module).always_eval
        return vars(module)["training"]

    def write(module: nn.Module, value: bool) -> None:
        vars(module)["training"] = value

    with _ONE_WATCH:
        outer = vars(nn.Module).get("training")
        setattr(nn.Module, "training", property(read, write))  # noqa: B010 - to pyright it is declared a bool
        try:
            yield watch
        finally:
            delattr(nn.Module, "training")
            if outer is not None:  # a network that itself analyses another one
                setattr(nn.Module, "training", outer)  # noqa: B010


def _is_beyond_watching(module: nn.Module) -> bool:
    """Whether changing its mode can do more than set the flag, or the flag is read elsewhere."""
    switches = (getattr(switch, "__func__", None) for switch in (module.train, module.eval))
    return (
        tuple(switches) != (nn.Module.train, nn.Module.eval)
        or isinstance(module, torch.jit.ScriptModule)
        or any("training" in vars(base) for base in type(module).__mro__ if base is not nn.Module)
    )
