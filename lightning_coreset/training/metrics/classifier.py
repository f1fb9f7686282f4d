"""Tell a classifier by what its step shows: logits that come out of a network, and labels in the batch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_coreset.training.metrics.recorder import Call, named_tensors

Path = tuple[Any, ...]

_LABEL_ARGUMENTS = {"label", "labels", "target", "targets"}
LABEL_NAMES = _LABEL_ARGUMENTS | {"y", "class", "classes"}
"""Names of labels in a batch; as an argument, ``y`` may be a condition."""


@dataclass(frozen=True)
class Classifier:
    """Where to read a classifier's logits and targets.

    Attributes:
        module: Qualified name of the module that returns the logits.
        logits: Where the logits are in what it returns.
        targets: Where the targets are in the batch.
        shape: Shape of one sample's logits: ``(K,)`` with K >= 2, or ``()`` or ``(1,)`` for a single, binary logit.
        replayable: Whether calling this one module again on its inputs gives the logits anew: no other network has a
            part in them.
    """

    module: str
    logits: Path
    targets: Path
    shape: tuple[int, ...]
    replayable: bool

    def read(self, calls: Sequence[Call], batch: Any) -> tuple[Call, Tensor, Tensor] | None:
        """Read another batch.

        Args:
            calls: The outermost calls of the step on the batch.
            batch: The batch.

        Returns:
            The call, its logits ``(B, K)``, or ``(B,)`` if binary, and the targets ``(B,)``; ``None`` if the step does
            not show them, or not once.
        """
        mine = [call for call in calls if call.name == self.module]
        if len(mine) != 1:
            return None
        logits = self.take(mine[0].output)
        targets = named_tensors(batch).get(self.targets)
        if logits is None or targets is None or targets.numel() != len(logits):
            return None
        return mine[0], logits, targets.flatten().long()

    def take(self, output: Any) -> Tensor | None:
        """Take the logits, ``(B, K)`` or ``(B,)``, out of what the module returned; ``None`` if they are not there."""
        logits = outputs_of(output).get(self.logits)
        if logits is None or not _may_be_logits(logits) or logits.shape[1:] != self.shape:
            return None
        return logits if logits.shape[1:].numel() > 1 else logits.flatten()


def find_classifier(calls: Sequence[Call], batch: Any) -> Classifier | None:
    """Find the one pair of logits and targets that a step shows.

    Logits are a floating tensor ``(B, K)``, or ``(B,)`` or ``(B, 1)`` if binary, that a network returns and no other
    network takes in. Targets are an integer tensor ``(B,)`` or ``(B, 1)`` of the batch with values in [0, K) that no
    network takes in, unless by the name of a label. Where several tensors of the batch may be the targets, one that is
    named like a label is.

    Args:
        calls: The outermost calls of the step on the batch.
        batch: The batch.

    Returns:
        Where logits and targets are, or ``None`` if there is not exactly one such pair.

    Example:
        >>> from lightning_coreset.training.metrics.recorder import ForwardRecorder
        >>> network = torch.nn.Linear(4, 3)
        >>> batch = torch.ones(5, 4), torch.tensor([0, 1, 2, 0, 1])
        >>> with ForwardRecorder(network) as recorder:
        ...     _ = network(batch[0])
        >>> find_classifier(recorder.calls, batch)
        Classifier(module='', logits=(), targets=(1,), shape=(3,), replayable=True)
    """
    others = unused(calls, batch)
    targets = {path: tensor for path, tensor in others.items() if _may_be_targets(tensor)}
    named = {path: tensor for path, tensor in targets.items() if path and str(path[-1]).lower() in LABEL_NAMES}
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
        t.is_floating_point() and t.numel() == len(logits) for t in others.values()
    ):
        return None  # rather a regression on that, in a batch that happens to hold a flag
    networks = [other for other in calls if is_network(other)]
    return Classifier(call.name, path, where, tuple(logits.shape[1:]), replayable=networks == [call])


def unused(calls: Sequence[Call], batch: Any) -> dict[Path, Tensor]:
    """The tensors of a batch that no network takes in, unless by the name of a label."""
    inputs = {_identity(tensor) for call in calls if not returns_scalars(call) for tensor in inputs_of(call)}
    return {path: tensor for path, tensor in named_tensors(batch).items() if _identity(tensor) not in inputs}


def _logits(calls: Sequence[Call]) -> list[tuple[Call, Path, Tensor]]:
    found: list[tuple[Call, Path, Tensor]] = []
    for i, call in enumerate(calls):
        taken_in = {_storage(tensor) for tensor in inputs_of(call)}
        if not _has_parameters(call) and any(_storage(logits) in taken_in for _, _, logits in found):
            continue  # a softmax of the logits
        # A loss that learns takes in logits and returns a scalar; it makes nothing else of them.
        onwards = [later for later in calls[i + 1 :] if is_network(later)]
        for path, tensor in unconsumed(call, onwards).items():
            if _may_be_logits(tensor):
                found.append((call, path, tensor))
    return found


def unconsumed(call: Call, later: Sequence[Call]) -> dict[Path, Tensor]:
    """What a call returned that none of the later calls takes in."""
    consumed = {_storage(tensor) for other in later for tensor in inputs_of(other)}
    return {path: tensor for path, tensor in outputs_of(call.output).items() if _storage(tensor) not in consumed}


def outputs_of(output: Any) -> dict[Path, Tensor]:
    """Name what a call returned, or only ``logits`` if that is one of the names, as in Hugging Face and torchvision."""
    tensors = named_tensors(output)
    return {("logits",): tensors[("logits",)]} if ("logits",) in tensors else tensors


def inputs_of(call: Call) -> list[Tensor]:
    """What goes into a call, but for labels: some networks take them to return the loss beside the logits."""
    names = [*inspect.signature(call.module.forward).parameters]
    names += [""] * (len(call.args) - len(names))  # of *args
    inputs = [*zip(names, call.args, strict=False), *call.kwargs.items()]
    return list(named_tensors([value for name, value in inputs if name.lower() not in _LABEL_ARGUMENTS]).values())


def _may_be_logits(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.ndim in (1, 2) and tensor.numel() > 0


def _may_be_targets(tensor: Tensor) -> bool:
    integral = not tensor.is_floating_point() and not tensor.is_complex()
    return integral and tensor.numel() > 0 and (tensor.ndim == 1 or (tensor.ndim == 2 and tensor.shape[1] == 1))


def is_network(call: Call) -> bool:
    """Whether a call is of a network, not of a function or a loss."""
    return _has_parameters(call) and not returns_scalars(call)


def _has_parameters(call: Call) -> bool:
    return next(call.module.parameters(), None) is not None


def returns_scalars(call: Call) -> bool:
    """Whether a call is of a loss, by what it returns."""
    return all(tensor.ndim == 0 for tensor in named_tensors(call.output).values())


def _identity(tensor: Tensor) -> tuple[int, torch.Size]:
    return tensor.data_ptr(), tensor.shape


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
