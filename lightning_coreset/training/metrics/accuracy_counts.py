"""Count a classifier's right answers over many batches and all ranks, at next to no cost for each batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

_AT_ONCE = 64
"""Batches that are counted together: a count is some twenty small operations, however many samples it is of."""


class AccuracyCounts(Metric):
    """Counts of right answers, reduced over ranks.

    torchmetrics' own accuracies have to know the number of classes before they can be reduced, which a rank that has
    seen no batch does not. The numbers are the same.

    Batches are first noted, and later counted many at once. Nothing waits for the device.
    """

    full_state_update = False
    sums: Tensor  # right answers; right answers if outputs are probabilities; all answers
    maxima: Tensor  # largest label + 1; classes; whether an output is no probability; whether a label is none

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("maxima", torch.zeros(4, dtype=torch.int64), dist_reduce_fx="max")
        self._noted: list[tuple[Tensor, Tensor]] = []
        self._kind: tuple[int | None, torch.device] | None = None  # of what is noted: classes, if not binary; device

    @property
    def update_called(self) -> bool:
        """Whether there was a batch since the last ``reset``."""
        return bool(self._noted) or super().update_called

    def add_batch(self, logits: Tensor, targets: Tensor) -> None:
        """Take in a batch, to be counted later; it may be written to after this.

        Args:
            logits: ``(B, K)``, or ``(B,)`` if binary.
            targets: ``(B,)``.
        """
        kind = logits.shape[1] if logits.ndim == 2 else None, logits.device
        if kind != self._kind or len(self._noted) == _AT_ONCE:
            self.count()
            self._kind = kind
        answers = logits.argmax(1) if logits.ndim == 2 else logits.clone()
        self._noted.append((answers, targets.to(logits.device, copy=True)))

    def count(self) -> None:
        """Count what is noted, which has to come before ``compute``."""
        if self._noted:
            assert self._kind is not None
            answers, targets = (torch.cat(batches) for batches in zip(*self._noted, strict=True))
            self._noted.clear()
            self.update(*_counts(answers, targets, self._kind[0]))

    def update(self, sums: Tensor, maxima: Tensor) -> None:
        """Take in counts."""
        self.sums = self.sums + sums.to(self.sums.device)
        self.maxima = torch.maximum(self.maxima, maxima.to(self.maxima.device))

    def compute(self) -> Tensor:
        """Return ``sums`` and ``maxima`` over all ranks, in one tensor ``(7,)``."""
        return torch.cat([self.sums, self.maxima])

    def reset(self) -> None:
        """Begin anew."""
        super().reset()
        self._noted.clear()


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
