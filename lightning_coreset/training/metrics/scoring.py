"""How outputs and targets of many batches, on all ranks, become one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_coreset.training.metrics.outputs import OutputsAndTargets, find_classifier, find_prediction
from lightning_coreset.training.metrics.recorder import Call

_BATCHES_AT_ONCE = 64
"""Batches that are counted together: a count is about twenty small operations, however many samples it is over."""


class Scoring(Protocol):
    """What :class:`~lightning_coreset.training.metrics.probe.AccuracyProbe` needs to measure a number."""

    def find(self, calls: Sequence[Call], batch: Any) -> OutputsAndTargets | None:
        """Find where outputs and targets are in a step; ``None`` if that is ambiguous."""
        ...

    def count(self) -> Metric:
        """A new, empty count."""
        ...

    def add(self, count: Metric, outputs: Tensor, targets: Tensor) -> None:
        """Add a batch to a count."""
        ...

    def compute(self, count: Metric, *, everywhere: bool) -> float | None:
        """The number of a count over all ranks; a collective operation.

        Args:
            count: This rank's.
            everywhere: Whether no rank's count is empty.

        Returns:
            The number, or ``None`` if it is not known yet.

        Raises:
            NoNumberError: If there will never be one.
        """
        ...


class NoNumberError(Exception):
    """There is no number, and there will be none."""


class Accuracy:
    """How often the largest logit is the target's.

    The model counts as a classifier only if the labels seen so far go up to K - 1, for K logits: an embedding beside
    labels that the loss does not use has the same shapes. A single logit is compared with 0, or with 0.5 if all of
    them so far are probabilities, in [0, 1].
    """

    def __init__(self) -> None:
        # Of all counts so far, the same on all ranks.
        self._labels = 0
        self._beyond_probability = False

    def find(self, calls: Sequence[Call], batch: Any) -> OutputsAndTargets | None:
        """Find logits and targets."""
        return find_classifier(calls, batch)

    def count(self) -> Metric:
        """Counts of right answers."""
        return AccuracyCounts()

    def add(self, count: Metric, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch."""
        assert isinstance(count, AccuracyCounts)
        count.add_batch(outputs, targets)

    def compute(self, count: Metric, *, everywhere: bool) -> float | None:
        """The accuracy; ``None`` if all counts are empty, and until the labels go up to K - 1."""
        assert isinstance(count, AccuracyCounts)
        count.count()
        if not count.update_called:  # torchmetrics would warn, but a rank without a batch takes part as well
            count.update(torch.zeros(3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
        right, right_if_probability, total, labels, classes, beyond_probability, outside = count.compute().tolist()
        if outside:
            raise NoNumberError("a label is not in [0, K) for K logits")
        self._labels = max(self._labels, labels)
        self._beyond_probability |= bool(beyond_probability)
        if total == 0 or self._labels != classes:
            return None
        return (right if self._beyond_probability else right_if_probability) / total


class AccuracyCounts(Metric):
    """Counts of right answers, reduced over ranks.

    torchmetrics' own accuracies need the number of classes before they can be reduced, which a rank without a batch
    does not know. The numbers are the same.

    Batches are kept, and counted many at once. Nothing waits for the device.
    """

    full_state_update = False
    sums: Tensor  # right answers; right answers if outputs are probabilities; all answers
    maxima: Tensor  # largest label + 1; classes; whether an output is no probability; whether a label is outside [0, K)

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("maxima", torch.zeros(4, dtype=torch.int64), dist_reduce_fx="max")
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._kind: tuple[int | None, torch.device] | None = None  # of what is pending: classes, if not binary; device

    @property
    def update_called(self) -> bool:
        """Whether there was a batch since the last ``reset``."""
        return bool(self._pending) or super().update_called

    def add_batch(self, logits: Tensor, targets: Tensor) -> None:
        """Take in a batch, to be counted later; the tensors may be written to after this.

        Args:
            logits: ``(B, K)``, or ``(B,)`` if binary.
            targets: ``(B,)``.
        """
        kind = logits.shape[1] if logits.ndim == 2 else None, logits.device
        if kind != self._kind or len(self._pending) == _BATCHES_AT_ONCE:
            self.count()
            self._kind = kind
        answers = logits.argmax(1) if logits.ndim == 2 else logits.clone()
        self._pending.append((answers, targets.to(logits.device, copy=True)))

    def count(self) -> None:
        """Count the pending batches; has to be called before ``compute``."""
        if self._pending:
            assert self._kind is not None
            answers, targets = (torch.cat(batches) for batches in zip(*self._pending, strict=True))
            self._pending.clear()
            self.update(*_counts(answers, targets, self._kind[0]))

    def update(self, sums: Tensor, maxima: Tensor) -> None:
        """Add counts."""
        self.sums = self.sums + sums.to(self.sums.device)
        self.maxima = torch.maximum(self.maxima, maxima.to(self.maxima.device))

    def compute(self) -> Tensor:
        """Return ``sums`` and ``maxima`` over all ranks, in one tensor ``(7,)``."""
        return torch.cat([self.sums, self.maxima])

    def reset(self) -> None:
        """Start again from zero."""
        super().reset()
        self._pending.clear()


def _counts(answers: Tensor, targets: Tensor, classes: int | None) -> tuple[Tensor, Tensor]:
    """Count answers ``(N,)``: the classes with the largest logits, or logits if binary (``classes`` is ``None``)."""
    if classes is not None:
        right = right_if_probability = (answers == targets).sum()
        beyond_probability = torch.zeros_like(right)
    else:
        classes = 2
        right, right_if_probability = (((answers > bar) == targets.bool()).sum() for bar in (0.0, 0.5))
        beyond_probability = ((answers < 0) | (answers > 1)).any().long()
    outside = ((targets < 0) | (targets >= classes)).any().long()
    sums = torch.stack([right, right_if_probability, torch.full_like(right, len(targets))])
    return sums, torch.stack([targets.max() + 1, torch.full_like(right, classes), beyond_probability, outside])


class UserMetric:
    """A metric of the user's, of which copies count.

    Args:
        metric: Called as ``metric(outputs, targets)``; its value is one number.
    """

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def find(self, calls: Sequence[Call], batch: Any) -> OutputsAndTargets | None:
        """Find logits and targets of a classifier, or else the only output and the only target."""
        return find_classifier(calls, batch) or find_prediction(calls, batch)

    def count(self) -> Metric:
        """An empty copy of the metric."""
        copy = self._metric.clone()
        copy.reset()
        return copy

    def add(self, count: Metric, outputs: Tensor, targets: Tensor) -> None:
        """Update with a batch; outputs of as many elements as the targets take their shape."""
        same_size = outputs.numel() == targets.numel()
        count.update(outputs.reshape(targets.shape) if same_size else outputs, targets)

    def compute(self, count: Metric, *, everywhere: bool) -> float | None:
        """The metric's value; ``None`` if a rank has no batch: few metrics can be reduced then.

        Raises:
            NoNumberError: If it is not one number.
        """
        if not everywhere:
            return None
        value = count.compute()
        if not isinstance(value, Tensor) or value.numel() != 1:
            shown = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise NoNumberError(
                f"{type(count).__name__} returns {shown}; choose how it averages, as in average='macro'"
            )
        return float(value)
