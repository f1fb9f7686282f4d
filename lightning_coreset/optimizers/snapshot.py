"""Undo what slicing did to the state of an optimizer."""

from __future__ import annotations

from copy import copy
from typing import Any

import torch

from lightning_coreset._compat import lbfgs_numel, set_lbfgs_numel
from lightning_coreset.optimizers.discovery import innermost_first
from lightning_coreset.optimizers.held_tensors import held_tensors


class StateSnapshot:
    """The state of an optimizer, to undo :func:`slice_optimizer_state`.

    The tensors are referred to, not copied, since slicing makes new ones.

    Args:
        optimizer: The optimizer, also when wrapped in another one.
    """

    def __init__(self, optimizer: Any) -> None:
        self._layers = [
            (layer, {key: copy(state) for key, state in layer.state.items()}, lbfgs_numel(layer))
            for layer in innermost_first(optimizer)
        ]
        self._held = [(each.tensor, each.tensor.data) for each in held_tensors(optimizer)]

    def restore(self) -> None:
        """Restore the state in the same dict."""
        for layer, state, numel in self._layers:
            layer.state.clear()
            layer.state.update(state)
            if isinstance(layer, torch.optim.LBFGS):
                set_lbfgs_numel(layer, numel)
        for tensor, data in self._held:
            if tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape:
                tensor.data = data
