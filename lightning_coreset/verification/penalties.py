"""Runs a network without the values of its penalties on parameters.

A sum over all of a parameter is another number once a part of it is gone, and a mean is taken over fewer: that is no
difference in what the network computes. It may also be so large that no other one would show beside it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_coreset._compat import own_tensors, tree_map, weight_norms
from lightning_coreset.structure import note_alike
from lightning_coreset.structure.op_call import tensors_among
from lightning_coreset.structure.weak_map import IdentityWeakMap
from lightning_coreset.verification.layers_of_modes import Proceed, run


class ConstantPenalties:
    """Gives every number that is computed of several elements of parameters alone the value 1.

    The analysis has found that those of prunable channels meet nothing but scalars. What code reads of such a number as
    a Python number is its true value.

    Args:
        model: The network. The parts of which ``weight_norm`` makes weights are no parameters in this respect.

    Attributes:
        found: Whether any number was replaced.
        run: Runs an operation that no other watcher is to see.
    """

    def __init__(self, model: nn.Module) -> None:
        self.found = False
        self.run: Proceed = run
        self._made: IdentityWeakMap[bool] = IdentityWeakMap()  # of parameters
        self._values: IdentityWeakMap[Tensor] = IdentityWeakMap()  # the true ones
        self._alike: IdentityWeakMap[bool] = IdentityWeakMap()
        for module in model.modules():
            parts = {part.rpartition(".")[2] for pair in weight_norms(module).values() for part in pair}
            within = isinstance(module, parametrize.ParametrizationList)
            for name, tensor in own_tensors(module).items():
                if name not in parts and not within:
                    self._made[tensor] = True

    def begin(self) -> None:
        """Begin a run."""

    def end(self) -> None:
        """End it."""

    def operation(self, function: Any, args: Any, kwargs: Any, proceed: Proceed) -> Any:
        """Run an operation; a penalty becomes 1."""
        tensors = tensors_among((*args, *kwargs.values()))
        if not self._of_parameters(tensors):
            result = proceed(function, args, kwargs)
            note_alike(function, tensors, result, self._alike)
            return result
        values = None
        if any(tensor in self._values for tensor in tensors):
            values = proceed(function, tree_map(self._value, args), tree_map(self._value, kwargs))
        result = proceed(function, args, kwargs)
        if not isinstance(result, (Tensor, tuple, list)):
            return result if values is None else values
        several = any(tensor.numel() > 1 for tensor in tensors)
        parameters = [tensor for tensor in tensors if tensor not in self._values]
        for place, one in enumerate(tensors_among((result,))):
            self._made[one] = True
            if values is not None:
                self._values[one] = tensors_among((values,))[place]
            elif not several or getattr(function, "is_view", True) or any(one is tensor for tensor in parameters):
                continue  # an element of a parameter, or one itself
            if one.numel() == 1 and one.is_floating_point():
                if values is None:
                    # What comes next would leave removed channels out, as a network does that normalises.
                    self._values[one] = tensors_among((self.run(function, args, kwargs),))[place]
                self.found = True
                proceed(torch.ops.aten.fill_.Scalar, (one, 1.0), {})
        return result

    def _of_parameters(self, tensors: list[Tensor]) -> bool:
        made = [tensor in self._made for tensor in tensors]
        return any(made) and all(own or tensor in self._alike for own, tensor in zip(made, tensors, strict=True))

    def _value(self, leaf: Any) -> Any:
        known = self._values.get(leaf) if isinstance(leaf, Tensor) else None
        return leaf if known is None else known
