"""The final measurement: the pruned network and the one before, in turns."""

from __future__ import annotations

import torch
from torch import nn

from lightning_coreset.latency.layers import called_layers, evaluated
from lightning_coreset.latency.whole import WholeTime, run_alternately
from lightning_coreset.nested import tensors_in
from lightning_coreset.structure import Example

_SECONDS = 1.5
_MUCH = 0.1
"""Of the original's time: a difference that is worth a warning."""


def compared(before: nn.Module, after: nn.Module, example: Example) -> tuple[float, float]:
    """Seconds of one run of two networks on the same inputs, measured in turns.

    Args:
        before: The network before pruning; both are as before afterwards.
        after: The pruned network.
        example: How they are run.
    """
    device = next((tensor.device for tensor in tensors_in(example.inputs)), torch.device("cpu"))
    with evaluated(before, after):
        names = list(dict.fromkeys(call.layer for call in called_layers(after, example)))
        networks = [WholeTime(model, example, names, device) for model in (before, after)]
        run_alternately(networks, _SECONDS)
    return networks[0].seconds, networks[1].seconds


def is_doubtful(reached: float, measured: tuple[float, float]) -> bool:
    """Whether a measurement does not confirm what a plan counted.

    Args:
        reached: The fraction of the latency that is gone, as the plan counts.
        measured: Seconds before and after.
    """
    return abs(1 - measured[1] / measured[0] - reached) > _MUCH


def why_doubtful(reached: float, measured: tuple[float, float]) -> str:
    """What to say then."""
    gone = 1 - measured[1] / measured[0]
    return (
        f"The plan counts {reached:.1%} of the latency as removed, but measured it is {gone:.1%} "
        f"({1e3 * measured[0]:.3g} ms -> {1e3 * measured[1]:.3g} ms). Other load on the machine disturbs measurements, "
        "and what is outside of layers counts as a constant. Measure again with measure_latency and more seconds, or "
        "ask for another ratio."
    )
