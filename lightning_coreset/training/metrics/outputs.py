"""Find what a network predicts in a step, and what it should predict, without the user saying where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_coreset.nested import Path, tensors_by_path
from lightning_coreset.training.metrics.dataflow import (
    has_parameters,
    inputs_of,
    is_network,
    named_like_a_label,
    not_read_by_networks,
    not_read_later,
    outputs_of,
    returns_scalars,
    storage,
)
from lightning_coreset.training.metrics.recorder import Call


@dataclass(frozen=True)
class OutputsAndTargets:
    """Where to read outputs and their targets in a step.

    Attributes:
        module: Qualified name of the module that returns the outputs.
        output: Where they are in what it returns.
        targets: Where the targets are in the batch.
        replayable: Whether calling this one module again on its inputs gives the outputs again: no other network
            contributes to them.
        logits: Of a classifier, the shape of one sample's logits: ``(K,)`` with K >= 2, or ``()`` or ``(1,)`` for a
            single, binary logit. ``None`` if outputs may be of any kind and shape.
    """

    module: str
    output: Path
    targets: Path
    replayable: bool
    logits: tuple[int, ...] | None = None

    def read(self, calls: Sequence[Call], batch: Any) -> tuple[Call, Tensor, Tensor] | None:
        """Read another batch.

        Args:
            calls: The outermost calls of the step on the batch.
            batch: The batch.

        Returns:
            The call, its outputs and the targets: of a classifier logits ``(B, K)``, or ``(B,)`` if binary, and targets
            ``(B,)``; otherwise both as they are. ``None`` if they are not there, or the module was not called once.
        """
        of_module = [call for call in calls if call.name == self.module]
        if len(of_module) != 1:
            return None
        (call,) = of_module
        outputs, targets = self.take(call.output), tensors_by_path(batch).get(self.targets)
        if outputs is None or targets is None:
            return None
        if self.logits is None:
            return call, outputs, targets
        return (call, outputs, targets.flatten().long()) if targets.numel() == len(outputs) else None

    def take(self, output: Any) -> Tensor | None:
        """Take the outputs from what the module returned; ``None`` if they are not there or have another shape."""
        outputs = outputs_of(output).get(self.output)
        if outputs is None or self.logits is None:
            return outputs
        if not _may_be_logits(outputs) or outputs.shape[1:] != self.logits:
            return None
        return outputs if outputs.shape[1:].numel() > 1 else outputs.flatten()


def find_classifier(calls: Sequence[Call], batch: Any) -> OutputsAndTargets | None:
    """Find the one pair of logits and targets in a step.

    Logits are a floating tensor ``(B, K)``, or ``(B,)`` or ``(B, 1)`` if binary, that a network returns and that goes
    into no other network. Targets are an integer tensor ``(B,)`` or ``(B, 1)`` of the batch with values in [0, K) that
    goes into no network, except by the name of a label. If several tensors of the batch may be the targets, the one
    that is named like a label is.

    Args:
        calls: The outermost calls of the step on the batch.
        batch: The batch.

    Returns:
        Where logits and targets are, or ``None`` if there is not exactly one such pair.

    Example:
        >>> import torch
        >>> from lightning_coreset.training.metrics import ForwardRecorder
        >>> network = torch.nn.Linear(4, 3)
        >>> batch = torch.ones(5, 4), torch.tensor([0, 1, 2, 0, 1])
        >>> with ForwardRecorder(network) as recorder:
        ...     _ = network(batch[0])
        >>> find_classifier(recorder.calls, batch)
        OutputsAndTargets(module='', output=(), targets=(1,), replayable=True, logits=(3,))
    """
    unread = not_read_by_networks(calls, batch)
    targets = {path: tensor for path, tensor in unread.items() if _may_be_targets(tensor)}
    named = {path: tensor for path, tensor in targets.items() if named_like_a_label(path)}
    pairs = [
        (call, path, logits, where)
        for call, path, logits in _logits(calls)
        for where, labels in (named or targets).items()
        if labels.numel() == len(logits) and labels.min() >= 0 and labels.max() < max(2, logits.shape[1:].numel())
    ]
    if len(pairs) != 1:
        return None
    call, path, logits, where = pairs[0]
    if logits.shape[1:].numel() == 1 and any(
        t.is_floating_point() and t.numel() == len(logits) for t in unread.values()
    ):
        return None  # more likely a regression on that tensor, in a batch that also holds a flag
    return OutputsAndTargets(call.name, path, where, _is_only_network(call, calls), tuple(logits.shape[1:]))


def find_prediction(calls: Sequence[Call], batch: Any) -> OutputsAndTargets | None:
    """Find the one pair of predictions and targets in a step, of any shapes.

    Predictions are the only floating tensor that a module returns and that goes into no other one, except losses.
    Targets are the only tensor of the batch that goes into no network, except by the name of a label; of several, the
    only one that is named like a label.

    Args:
        calls: The outermost calls of the step on the batch.
        batch: The batch.

    Returns:
        Where predictions and targets are, or ``None`` if there is not exactly one of both.

    Example:
        >>> import torch
        >>> from lightning_coreset.training.metrics import ForwardRecorder
        >>> network = torch.nn.Conv2d(3, 4, 1)
        >>> batch = {"image": torch.ones(2, 3, 8, 8), "mask": torch.zeros(2, 8, 8, dtype=torch.long)}
        >>> with ForwardRecorder(network) as recorder:
        ...     _ = network(batch["image"])
        >>> find_prediction(recorder.calls, batch)
        OutputsAndTargets(module='', output=(), targets=('mask',), replayable=True, logits=None)
    """
    modules = [call for call in calls if not returns_scalars(call)]
    predictions = [
        (call, path)
        for i, call in enumerate(modules)
        for path, tensor in not_read_later(call, modules[i + 1 :]).items()
        if tensor.is_floating_point() and tensor.ndim > 0
    ]
    targets = [path for path, tensor in not_read_by_networks(calls, batch).items() if tensor.ndim > 0]
    if len(targets) > 1:
        targets = [path for path in targets if named_like_a_label(path)]
    if len(predictions) != 1 or len(targets) != 1:
        return None
    ((call, path),) = predictions
    return OutputsAndTargets(call.name, path, targets[0], _is_only_network(call, calls))


def _is_only_network(call: Call, calls: Sequence[Call]) -> bool:
    return [other for other in calls if is_network(other)] == [call]


def _logits(calls: Sequence[Call]) -> list[tuple[Call, Path, Tensor]]:
    found: list[tuple[Call, Path, Tensor]] = []
    for i, call in enumerate(calls):
        inputs = {storage(tensor) for tensor in inputs_of(call)}
        if not has_parameters(call) and any(storage(logits) in inputs for _, _, logits in found):
            continue  # a softmax of the logits
        # A loss with parameters takes in logits and returns a scalar: what goes into it are logits all the same.
        later = [other for other in calls[i + 1 :] if is_network(other)]
        for path, tensor in not_read_later(call, later).items():
            if _may_be_logits(tensor):
                found.append((call, path, tensor))
    return found


def _may_be_logits(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim in (1, 2) and tensor.numel() > 0


def _may_be_targets(tensor: Tensor) -> bool:
    integral = not tensor.is_floating_point() and not tensor.is_complex()
    return integral and tensor.numel() > 0 and (tensor.ndim == 1 or (tensor.ndim == 2 and tensor.shape[1] == 1))
