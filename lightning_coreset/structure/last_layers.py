"""Which layers make the outputs of a network, or what its loss is computed of.

These are the layers from which nothing but operators without weights leads to an output. Their channels are the
network's results, such as classes, whatever the first of these operators is: a softmax before the loss says less of
why they stay than that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_coreset.structure.example import StepOutputs, output_tensors
from lightning_coreset.structure.op_call import tensors_among
from lightning_coreset.structure.penalties import is_scalar
from lightning_coreset.structure.weak_map import IdentityWeakMap

if TYPE_CHECKING:
    from lightning_coreset.structure.propagation import Propagation

MAKES_OUTPUTS = "makes outputs of the network"
MAKES_THE_LOSS = "makes inputs of the loss"


class LastLayers:
    """Follows which layers reach an output with no other layer in between.

    The paths of the labels tell that, up to an operator that has no rule, as most losses; from there on, it is noted
    here.
    """

    def __init__(self, propagation: Propagation) -> None:
        self._propagation = propagation
        self._beyond: IdentityWeakMap[frozenset[str]] = IdentityWeakMap()
        self._reasons: dict[str, str] = {}

    def keep(self, tensor: Tensor) -> None:
        """Keep what reaches a tensor of which nothing else will be known."""
        self._beyond[tensor] = self._makers(tensor)

    def see(self, tensors: Sequence[Tensor], result: Any) -> None:
        """Note what reaches the results of an operator that the paths do not tell."""
        makers = frozenset().union(*map(self._makers, tensors))
        if not makers or any(map(self._is_weight, tensors)):  # which may read the channels
            return
        for one in tensors_among((result,)):
            info = self._propagation.info(one)
            if not info.producer_paths and not info.constant:
                self._beyond[one] = makers

    def end(self, outputs: Any) -> None:
        """Note what reaches the outputs of a run.

        Args:
            outputs: What the network returned, or what a step of training made: of that, single numbers that
                ``forward`` does not return are losses.
        """
        features = outputs.features if isinstance(outputs, StepOutputs) else output_tensors(outputs)
        self._note(features, MAKES_OUTPUTS)
        if isinstance(outputs, StepOutputs):
            self._note((one for one in output_tensors(outputs) if not is_scalar(one)), MAKES_OUTPUTS)
            self._note(output_tensors(outputs), MAKES_THE_LOSS)

    def reason(self, weight: str) -> str | None:
        """Why the channels that a weight makes stay, if no layer reads them and an output is made of them."""
        if any(producer == weight for producer, _, _ in self._propagation.records.paths):
            return None
        return self._reasons.get(weight)

    def _note(self, tensors: Iterable[Tensor], reason: str) -> None:
        for tensor in tensors:
            for weight in self._makers(tensor):
                if self._reasons.get(weight) != MAKES_OUTPUTS:
                    self._reasons[weight] = reason

    def _makers(self, tensor: Tensor) -> frozenset[str]:
        return frozenset(self._propagation.info(tensor).producer_paths) | (self._beyond.get(tensor) or frozenset())

    def _is_weight(self, tensor: Tensor) -> bool:
        return tensor.dim() > 1 and self._propagation.info(tensor).constant
