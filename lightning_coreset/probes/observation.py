"""Run a network once on its example inputs, and see which operators read them and how."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_coreset._compat import TorchDispatchMode
from lightning_coreset.nested import Path, map_tensors, tensors_by_path
from lightning_coreset.probes.ids import IdRanges
from lightning_coreset.probes.leaf import Leaf, Use
from lightning_coreset.probes.readers import readings
from lightning_coreset.probes.tracking import Numbers
from lightning_coreset.structure import Example, OpCall, plain_execution, preserved, set_mode
from lightning_coreset.structure.example import BOTH_MODES
from lightning_coreset.structure.op_call import tensors_among


def observe(model: nn.Module, example: Example) -> list[Leaf]:
    """The tensors among the inputs of an example, each with how the network reads it.

    The network runs once, in evaluation mode if it can, and is left as it was, random states included. A network that
    runs in no mode of the example is no error here: then little is known of how its inputs are read.
    """
    inputs = _copied(example.inputs)
    given = tensors_by_path(example.inputs)
    watcher = _Watcher({path: one for path, one in tensors_by_path(inputs).items() if one.layout is torch.strided})
    _run(model, replace(example, inputs=inputs), watcher)
    has_batch = {path: one.dim() > 0 and one.shape[0] == example.batch_size for path, one in given.items()}
    return [Leaf(path, tensor, has_batch[path], *watcher.seen(path)) for path, tensor in given.items()]


def why_not_run(model: nn.Module, example: Example) -> Exception | None:
    """What a network raises on an example in all of its modes; ``None`` if it runs. It is left as it was."""
    return _run(model, replace(example, inputs=_copied(example.inputs)), nullcontext())


def _run(model: nn.Module, example: Example, watcher: AbstractContextManager[Any]) -> Exception | None:
    """Run a network in the first mode of an example in which it runs; returns its last error if there is none."""
    error: Exception | None = None
    with preserved(model), plain_execution():
        for mode in BOTH_MODES:
            if mode not in example.modes:
                continue
            set_mode(model, mode)
            try:
                with watcher:
                    example.run(model, example.inputs)
                return None
            except Exception as raised:
                error = raised
    return error


def _copied(inputs: Any) -> Any:
    """Copies of the inputs, since some networks write into theirs."""
    with torch.inference_mode(False):
        return map_tensors(lambda tensor: tensor.detach().clone().requires_grad_(tensor.requires_grad), inputs)


class _Watcher(TorchDispatchMode):
    """Sees every operator of a run, and notes those that read elements of inputs.

    Args:
        leaves: The inputs by their paths.
    """

    def __init__(self, leaves: Mapping[Path, Tensor]) -> None:
        super().__init__()
        self._places = {path: place for place, path in enumerate(leaves)}
        self._numbers = Numbers(leaves.values())
        self._uses: list[dict[Use, None]] = [{} for _ in leaves]  # a set with an order
        self._ids = IdRanges(self._numbers, list(leaves.values()))

    def seen(self, path: Path) -> tuple[Any, ...]:
        """How an input was read, and the range of its elements that are rows of embeddings."""
        if path not in self._places:
            return (), None
        place = self._places[path]
        return tuple(self._uses[place]), self._ids.of(place)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = tensors_among((args, kwargs))
        if any(map(self._numbers.is_read, tensors)):
            self._note(OpCall.read(func, args, kwargs, tensors, result))
        return result

    def _note(self, call: OpCall) -> None:
        looked_up = self._ids.note(call)
        uses = [] if looked_up else list(readings(call, self._numbers))
        if not self._numbers.follow(call):
            for place, use in uses:
                self._uses[place].setdefault(use)
