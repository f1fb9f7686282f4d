"""How outputs and targets of many batches, on all ranks, become one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_coreset.training.metrics.accuracy_counts import AccuracyCounts
from lightning_coreset.training.metrics.classifier import Classifier, find_classifier
from lightning_coreset.training.metrics.prediction import Prediction, find_prediction
from lightning_coreset.training.metrics.recorder import Call


class Scoring(Protocol):
    """What :class:`~lightning_coreset.training.metrics.probe.AccuracyProbe` has to know of a number."""

    def find(self, calls: Sequence[Call], batch: Any) -> Classifier | Prediction | None:
        """Find where a step shows outputs and targets; ``None`` if nowhere for sure."""
        ...

    def count(self) -> Metric:
        """A new, empty count."""
        ...

    def add(self, count: Metric, outputs: Tensor, targets: Tensor) -> None:
        """Take a batch into a count."""
        ...

    def compute(self, count: Metric, *, everywhere: bool) -> float | None:
        """The number that a count comes to over all ranks; a collective operation.

        Args:
            count: This rank's.
            everywhere: Whether no rank's count is empty.

        Returns:
            The number, or ``None`` if it cannot be told yet.

        Raises:
            NoNumberError: If there will never be one.
        """
        ...


class NoNumberError(Exception):
    """There is no number, and there will be none."""


class Accuracy:
    """How often the largest logit is the target's.

    The model counts as a classifier only if the labels seen so far go up to K - 1, for K logits: an embedding beside
    labels that the loss does not use shows the same shapes. A single logit is compared with 0, or with 0.5 if all of
    them so far are probabilities, in [0, 1].
    """

    def __init__(self) -> None:
        # Of all counts so far, the same on all ranks.
        self._labels = 0
        self._beyond_probability = False

    def find(self, calls: Sequence[Call], batch: Any) -> Classifier | None:
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
        """The accuracy; ``None`` if all counts are empty, and until the labels are those of the logits."""
        assert isinstance(count, AccuracyCounts)
        count.count()
        if not count.update_called:  # a rank that has seen no batch takes part all the same: torchmetrics would warn
            count.update(torch.zeros(3, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
        right, right_if_probability, total, labels, classes, beyond_probability, outside = count.compute().tolist()
        if outside:
            raise NoNumberError("a label is not in [0, K) for K logits")
        self._labels = max(self._labels, labels)
        self._beyond_probability |= bool(beyond_probability)
        if total == 0 or self._labels != classes:
            return None
        return (right if self._beyond_probability else right_if_probability) / total


class UserMetric:
    """A metric of the user's, of which copies count.

    Args:
        metric: Called as ``metric(outputs, targets)``; comes to one number.
    """

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def find(self, calls: Sequence[Call], batch: Any) -> Classifier | Prediction | None:
        """Find logits and targets as of a classifier, or else whatever output and target there is one of."""
        return find_classifier(calls, batch) or find_prediction(calls, batch)

    def count(self) -> Metric:
        """An empty copy of the metric."""
        copy = self._metric.clone()
        copy.reset()
        return copy

    def add(self, count: Metric, outputs: Tensor, targets: Tensor) -> None:
        """Update with a batch; outputs ``(B, 1)`` take the shape of targets ``(B,)``, and the other way round."""
        fits = outputs.numel() == targets.numel()
        count.update(outputs.reshape(targets.shape) if fits else outputs, targets)

    def compute(self, count: Metric, *, everywhere: bool) -> float | None:
        """The metric's value; ``None`` if a rank has seen no batch, for few metrics can be reduced then.

        Raises:
            NoNumberError: If it is not one number.
        """
        if not everywhere:
            return None
        value = count.compute()
        if not isinstance(value, Tensor) or value.numel() != 1:
            shown = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise NoNumberError(f"{type(count).__name__} comes to {shown}; choose how it averages, as average='macro'")
        return float(value)
