"""Weights that ``weight_norm`` makes of a direction and a magnitude, followed as if they were parameters.

The weight is the direction with each part scaled, so its rows and columns are the direction's. Followed operator by
operator, the norm that the direction is divided by would hold them all. Instead, the call that makes the weight is
seen as a whole, and surgery corrects the magnitude whenever the norm changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lightning_coreset._compat import can_defer, outside_of_modes, weight_norm_function, weight_norms
from lightning_coreset.structure.labels import TensorInfo
from lightning_coreset.structure.records import WeightNorm

if TYPE_CHECKING:
    from lightning_coreset.structure.propagation import Propagation


class MadeWeights(TorchFunctionMode):
    """Sees the calls that make weights, in either style of ``weight_norm`` and in modules that are written by hand."""

    def made(
        self, direction: Tensor, magnitude: Tensor, dim: int | None, compute: Callable[[], Tensor]
    ) -> Tensor | None:
        """The weight, or ``None`` if torch is to compute it where every mode sees how."""
        raise NotImplementedError

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch."""
        if function is weight_norm_function():
            made = self.made(*_arguments(*args, **(kwargs or {})), lambda: function(*args, **(kwargs or {})))
            if made is not None:
                return made
        return function(*args, **(kwargs or {}))


def _arguments(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor, int | None]:
    return v, g, None if dim == -1 else dim  # torch's name for a single number, not the last dimension


class FollowedWeightNorms(MadeWeights):
    """Gives the weights the labels of their directions, and notes which magnitude belongs to which direction.

    Args:
        propagation: What follows the network.
    """

    def __init__(self, propagation: Propagation) -> None:
        super().__init__()
        self._propagation = propagation
        self._weights = {
            f"{path}.{direction}" if path else direction: f"{path}.{weight}" if path else weight
            for path, module in propagation.modules.items()
            for weight, (_, direction) in weight_norms(module).items()
        }

    def made(
        self, direction: Tensor, magnitude: Tensor, dim: int | None, compute: Callable[[], Tensor]
    ) -> Tensor | None:
        """The weight with its labels, if both parts are parameters of the network."""
        names = [self._propagation.info(part).direct for part in (direction, magnitude)]
        whole = isinstance(direction, nn.Parameter) and isinstance(magnitude, nn.Parameter)
        fits = magnitude.numel() == (1 if dim is None else direction.shape[dim])
        if not (whole and fits and can_defer()) or names[0] is None or names[1] is None:
            return None
        norm = WeightNorm(self._weights.get(names[0], names[0]), names[1], names[0], dim)
        self._note(norm, direction, magnitude)
        with outside_of_modes(), torch.no_grad():
            weight = compute()
        info = self._propagation.info(direction)
        self._propagation.set_info(weight, TensorInfo(info.channel_labels, constant=True, direct=names[0]))
        return weight

    def _note(self, norm: WeightNorm, direction: Tensor, magnitude: Tensor) -> None:
        engine = self._propagation
        shared = {norm.direction, norm.magnitude}
        others = [other for other in engine.weight_norms.values() if shared & {other.direction, other.magnitude}]
        if any(other != norm for other in others):
            names = {name for other in (*others, norm) for name in (other.direction, other.magnitude)}
            for (name, _), labels in engine.union_find.ranges.items():
                if name in names:
                    reason = "shares magnitude or direction of its weight_norm with another weight"
                    engine.union_find.block(torch.arange(labels.start, labels.stop), reason)
            return
        engine.weight_norms[norm.direction] = norm
        if norm.dim is not None and magnitude.shape[norm.dim] > 1:
            own = engine.channel_labels(magnitude, norm.dim, "")
            engine.unite(own, engine.channel_labels(direction, norm.dim, ""), "")  # nothing is without a label
