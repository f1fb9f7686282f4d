"""Elementwise operators."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from lightning_coreset.structure.op_call import OpCall
from lightning_coreset.structure.ops.elementwise import follow_elementwise
from lightning_coreset.structure.propagation import Propagation
from lightning_coreset.structure.steps import Step


@dataclass(frozen=True)
class Elementwise:
    """Every element of the result is computed of the elements at its place, by the same function for all places.

    All tensors among the arguments broadcast to the result's shape. One that varies along the channels, such as a slope
    for each of them, must be a parameter or buffer, which is cut along. The operator may also write into its first
    argument instead of returning a result.

    The mathematics of coresets does not know the function, so channels behind the operator are ranked by norms;
    ``register_activation`` says what it is.

    Example:
        >>> import torch
        >>> from lightning_coreset.structure import Elementwise, register_rule
        >>> @torch.library.custom_op("shop::softcap", mutates_args=())
        ... def softcap(x: torch.Tensor, cap: float) -> torch.Tensor:
        ...     return cap * torch.tanh(x / cap)
        >>> register_rule(torch.ops.shop.softcap, Elementwise()).remove()
    """

    passes_statistics: ClassVar[bool] = True

    def __call__(self, propagation: Propagation, call: OpCall) -> None:
        """Follow a call."""
        shape = torch.broadcast_shapes(*[tensor.shape for tensor in call.tensors])
        if not call.results or any(result.shape != shape for result in call.results):
            raise NotImplementedError("the shape of a result is not that of the elements that enter it")
        if any(tensor is not call.tensors[0] for tensor in call.written):
            raise NotImplementedError("it writes into another tensor than its first")
        changed = [tensor for tensor in call.written if all(tensor is not result for result in call.results)]
        follow_elementwise(propagation, replace(call, results=[*call.results, *changed]), self.step(call))

    def step(self, call: OpCall) -> Step:
        """The step of a call on the paths between layers.

        It bears the operator's name, by which the mathematics finds a registered function, only where the call computes
        one result from one tensor and numbers. Numbers that are the schema's defaults are left out.
        """
        tensor, *others = call.arguments.values()
        plain = tensor is call.tensors[0] and len(call.tensors) == 1 and len(call.numbers) == len(others)
        if not plain or len(call.results) > 1:
            return Step(f"{call.name} in another form")
        defaults = list(call.signature.defaults.values())[1:]
        return Step(call.name, () if others == defaults else call.numbers)
