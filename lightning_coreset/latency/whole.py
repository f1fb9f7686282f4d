"""The time of a whole network, from the shortest times of its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import nn

from lightning_coreset.latency.timing import now, wait_for
from lightning_coreset.structure import Example

_LEAST_RUNS = 5
_MOST_RUNS = 200


@dataclass
class WholeTime:
    """The shortest times of a network, of all its runs so far.

    A run is cut where layers begin and end, and the shortest time of every part counts: on a machine that does other
    things as well, few runs of a whole network pass undisturbed, while many of each part do. On a GPU, which works
    behind the clock's back, a run is not cut.

    Attributes:
        model: The network, in evaluation mode.
        example: How it is run.
        layers: The names of the layers at which it is cut.
        device: Where it runs.
    """

    model: nn.Module
    example: Example
    layers: Sequence[str]
    device: torch.device
    _parts: list[tuple[bool, float]] = field(default_factory=list)
    _times: list[tuple[bool, float]] = field(default_factory=list)

    def run(self) -> None:
        """Run the network once."""
        cuts = self.layers if self.device.type == "cpu" else ()
        with self._noted(cuts):
            wait_for(self.device)
            self._times = [(False, now())]
            self.example.run(self.model, self.example.inputs)
            wait_for(self.device)
            self._times.append((False, now()))
        times = self._times
        parts = [(inside, end - start) for (_, start), (inside, end) in pairwise(times)]
        if len(parts) == len(self._parts):
            both = zip(parts, self._parts, strict=True)
            parts = [(inside, min(time, best)) for (inside, time), (_, best) in both]
        self._parts = parts  # from the start, if this run took another way

    @property
    def seconds(self) -> float:
        """The time of a run."""
        return sum(time for _, time in self._parts)

    @property
    def outside(self) -> float | None:
        """The time outside of the layers; ``None`` where a run was not cut."""
        return sum(time for inside, time in self._parts if not inside) if len(self._parts) > 1 else None

    @contextmanager
    def _noted(self, layers: Sequence[str]) -> Iterator[None]:
        modules = [self.model.get_submodule(name) for name in layers]
        # What stands before a layer's beginning lies outside of layers, what stands before its end within.
        handles = [module.register_forward_pre_hook(self._cut(False), prepend=True) for module in modules]
        handles += [module.register_forward_hook(self._cut(True)) for module in modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _cut(self, inside: bool) -> Callable[..., None]:
        return lambda *_: self._times.append((inside, now()))


def run_alternately(networks: Sequence[WholeTime], seconds: float) -> None:
    """Run networks in turns for about so many seconds, at least five times each."""
    start = now()
    for number in range(_MOST_RUNS):
        for network in networks if number % 2 == 0 else reversed(networks):
            network.run()
        if number + 1 >= _LEAST_RUNS and now() - start > seconds:
            break
