"""Find what a network predicts, and what it ought to, where the model may be no classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_coreset.training.metrics.classifier import (
    LABEL_NAMES,
    Path,
    is_network,
    outputs_of,
    returns_scalars,
    unconsumed,
    unused,
)
from lightning_coreset.training.metrics.recorder import Call, named_tensors


@dataclass(frozen=True)
class Prediction:
    """Where to read predictions of any kind, and their targets.

    Attributes:
        module: Qualified name of the module that returns the predictions.
        output: Where they are in what it returns.
        targets: Where the targets are in the batch.
        replayable: Whether calling this one module again on its inputs gives the predictions anew.
    """

    module: str
    output: Path
    targets: Path
    replayable: bool

    def read(self, calls: Sequence[Call], batch: Any) -> tuple[Call, Tensor, Tensor] | None:
        """Read another batch.

        Args:
            calls: The outermost calls of the step on the batch.
            batch: The batch.

        Returns:
            The call, its predictions and the targets as they are; ``None`` if the step does not show them, or not once.
        """
        mine = [call for call in calls if call.name == self.module]
        if len(mine) != 1:
            return None
        predictions, targets = self.take(mine[0].output), named_tensors(batch).get(self.targets)
        return None if predictions is None or targets is None else (mine[0], predictions, targets)

    def take(self, output: Any) -> Tensor | None:
        """Take the predictions out of what the module returned; ``None`` if they are not there."""
        return outputs_of(output).get(self.output)


def find_prediction(calls: Sequence[Call], batch: Any) -> Prediction | None:
    """Find the one pair of predictions and targets that a step shows, of whatever shapes.

    Predictions are the only floating tensor that a module returns and no other one takes in, but for losses.
    Targets are the only tensor of the batch that no network takes in, unless by the name of a label; of several, the
    only one that is named like a label.

    Args:
        calls: The outermost calls of the step on the batch.
        batch: The batch.

    Returns:
        Where predictions and targets are, or ``None`` if there is not exactly one of both.

    Example:
        >>> import torch
        >>> from lightning_coreset.training.metrics.recorder import ForwardRecorder
        >>> network = torch.nn.Conv2d(3, 4, 1)
        >>> batch = {"image": torch.ones(2, 3, 8, 8), "mask": torch.zeros(2, 8, 8, dtype=torch.long)}
        >>> with ForwardRecorder(network) as recorder:
        ...     _ = network(batch["image"])
        >>> find_prediction(recorder.calls, batch)
        Prediction(module='', output=(), targets=('mask',), replayable=True)
    """
    modules = [call for call in calls if not returns_scalars(call)]
    predictions = [
        (call, path)
        for i, call in enumerate(modules)
        for path, tensor in unconsumed(call, modules[i + 1 :]).items()
        if tensor.is_floating_point() and tensor.ndim > 0
    ]
    targets = [path for path, tensor in unused(calls, batch).items() if tensor.ndim > 0]
    named = [path for path in targets if path and str(path[-1]).lower() in LABEL_NAMES]
    if len(targets) > 1:
        targets = named
    if len(predictions) != 1 or len(targets) != 1:
        return None
    ((call, path),) = predictions
    networks = [other for other in modules if is_network(other)]
    return Prediction(call.name, path, targets[0], replayable=networks == [call])
