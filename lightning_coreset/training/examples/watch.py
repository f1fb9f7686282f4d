"""Notice which layers run for the first time: a hook on each that no example has run yet."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import lightning.pytorch as pl
import torch
from torch.utils.hooks import RemovableHandle

from lightning_coreset.planning import layers_with_tensors
from lightning_coreset.training.metrics import Hook, called_from_python


class Watch:
    """Watches the layers of a module that no example has run yet; once all have run it costs nothing.

    Layers are modules with parameters or buffers of their own. Those in compiled code are not watched.

    Attributes:
        ran: Names of watched layers that ran since they were last cleared.
    """

    def __init__(self) -> None:
        self.ran: set[str] = set()
        self._handles: dict[str, RemovableHandle] = {}
        self._names: dict[str, set[str]] = {}

    def start(self, pl_module: pl.LightningModule) -> None:
        """Watch all layers."""
        self.stop()
        self._names = {path: {*own} for path, own in layers_with_tensors(pl_module).items()}
        for name, module in called_from_python(pl_module):
            if name and name in self._names and not isinstance(module, torch.jit.ScriptModule):  # these have no hooks
                hook = Hook(lambda *_, name=name: self.ran.add(name))
                self._handles[name] = module.register_forward_pre_hook(hook)

    @property
    def is_on(self) -> bool:
        """Whether there are layers left that have not run."""
        return bool(self._handles)

    def tensors(self, layers: Iterable[str]) -> frozenset[str]:
        """Names of the parameters and buffers of layers."""
        return frozenset().union(*(self._names[layer] for layer in layers))

    def forget(self, layers: Collection[str]) -> None:
        """Watch some layers no more."""
        for layer in list(self._handles.keys() & {*layers}):
            self._handles.pop(layer).remove()
        self.ran.difference_update(layers)

    def forget_used(self, used: Collection[str]) -> None:
        """Watch no layer any more of which some tensor was used."""
        self.forget([layer for layer in self._handles if not self._names[layer].isdisjoint(used)])

    def has_others(self, used: Collection[str]) -> bool:
        """Whether there is a layer of which no tensor was used."""
        return any(tensors.isdisjoint(used) for tensors in self._names.values())

    def stop(self) -> None:
        """Remove all hooks."""
        self.forget(list(self._handles))
        self._names = {}
