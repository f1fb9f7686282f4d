"""Runs a network without chance and without rounding: what is drawn at random has its expected value.

A network that draws as many random numbers as it has channels draws others once some are gone, so that its outputs
could not be compared. Neither could they where values are rounded to steps that depend on all channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_coreset._compat import DispatchMode
from lightning_coreset.structure import OpCall
from lightning_coreset.structure.ops.quantization import FAKE_QUANTIZERS


class Expectations(DispatchMode):
    """Gives every random operation that it knows the mean of what it would draw; dropout passes all on."""

    def concerns(self, func: Any) -> bool:
        """Whether an operator draws random numbers."""
        return torch.Tag.nondeterministic_seeded in getattr(func, "tags", ())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, without chance."""
        kwargs = kwargs or {}
        if not self.concerns(func):
            return func(*args, **kwargs)
        call = OpCall.read(func, args, kwargs, [], None)
        if call.arguments.get("generator") is not None:  # its own: the self-check draws from one
            return func(*args, **kwargs)
        if call.name == "native_dropout":
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        mean = _mean(call)
        if mean is None:
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        return result.copy_(mean) if isinstance(mean, Tensor) else result.fill_(mean)


class WithoutQuantization(DispatchMode):
    """Lets fake quantisation pass on what it is given, as if its steps were infinitely small.

    Its ranges are those that were observed of all channels, and are observed anew once some are gone.
    """

    def concerns(self, func: Any) -> bool:
        """Whether an operator quantises."""
        return getattr(getattr(func, "overloadpacket", None), "__name__", "") in FAKE_QUANTIZERS

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, which checks the sizes of scales and zero points; of a quantiser, return its input."""
        result = func(*args, **(kwargs or {}))
        if not self.concerns(func):
            return result
        return args[0].clone() if isinstance(result, Tensor) else (args[0].clone(), torch.ones_like(result[1]))


def _mean(call: OpCall) -> float | Tensor | None:
    """What a random operation draws on average; ``None`` where that is no number of its own."""
    given = call.arguments
    if call.name == "bernoulli":
        probability = given.get("p")
        return call.args[0].clone() if probability is None else probability
    if call.name in ("rand", "rand_like"):
        return 0.5
    if call.name in ("randn", "randn_like"):
        return 0.0
    if call.name == "uniform":
        return (given["from"] + given["to"]) / 2
    if call.name == "normal" and isinstance(given.get("mean"), (int, float)):
        return given["mean"]
    return 1.0 / given["lambd"] if call.name == "exponential" else None
