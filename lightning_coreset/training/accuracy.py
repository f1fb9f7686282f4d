"""A classifier's accuracy without the user saying a word, or nothing where the model may not be a classifier."""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from lightning_coreset.training.calls import OutermostCalls, copied
from lightning_coreset.training.classifier import Classifier, find_classifier
from lightning_coreset.training.undisturbed import undisturbed


class AccuracyProbe:
    """Watches the steps of a LightningModule, and measures how often the largest logit is the target's.

    Logits and targets are found in the first step (see
    :func:`~lightning_coreset.training.classifier.find_classifier`). The model counts as a classifier only if the labels
    seen so far go up to K - 1, for K logits: an embedding beside labels that the loss does not use shows the same
    shapes. Where anything is ambiguous, or a later batch does not fit, there is no accuracy rather than a wrong one,
    and steps are no longer watched. A single logit is compared with 0, or with 0.5 if all of them so far are
    probabilities, in [0, 1].

    A callback calls, on every rank, for the ranks' counts are added up:

    - ``start`` in ``on_validation_batch_start``, and ``batch_end`` in ``on_validation_batch_end``, or, where there is
      no validation, in ``on_train_batch_start`` and ``on_train_batch_end``. The module has hooks only in between: all
      its submodules in the first step, one of them in later ones, and none once it is known to be no classifier;
    - ``compute_and_reset`` in ``on_validation_epoch_end`` or ``on_validation_end``, or in ``on_train_epoch_end``;
    - ``evaluate`` right after a pruning event;
    - ``stop`` in ``teardown``.

    Args:
        eval_batches: Number of batches kept for ``evaluate``, the latest that were seen; 0 turns it off.

    Raises:
        ValueError: If ``eval_batches`` is not a non-negative integer.

    Example:
        >>> class Model(pl.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = torch.nn.Linear(2, 2)
        >>> model = Model()
        >>> probe = AccuracyProbe()
        >>> batch = torch.eye(2), torch.tensor([0, 1])
        >>> probe.start(model)
        >>> loss = torch.nn.functional.cross_entropy(model.layer(batch[0]), batch[1])
        >>> probe.batch_end(batch)
        >>> model.layer.weight.data, model.layer.bias.data = torch.eye(2), torch.zeros(2)
        >>> probe.evaluate(model)
        1.0
    """

    def __init__(self, eval_batches: int = 8) -> None:
        if isinstance(eval_batches, bool) or not isinstance(eval_batches, int) or eval_batches < 0:
            raise ValueError(f"Expected `eval_batches` to be a non-negative integer but got {eval_batches!r}.")
        self.eval_batches = eval_batches
        self._recorder: OutermostCalls | None = None
        self.stop()

    def start(self, pl_module: pl.LightningModule) -> None:
        """Watch the step that begins now."""
        self._unhook()
        if self._refused:
            return
        if self._score.device != pl_module.device:
            self._score.to(pl_module.device)
        only = None if self._classifier is None else {self._classifier.module}
        self._recorder = OutermostCalls(pl_module, only=only, copy_inputs=self.eval_batches > 0)
        self._recorder.start()

    def batch_end(self, batch: Any) -> None:
        """Count the step that has been watched.

        Args:
            batch: Its batch, as the step got it.
        """
        assert self._refused or self._recorder is not None, "start() comes before the step"
        calls = self._unhook()
        if not calls:  # a step may do nothing, say in a sanity check, and may next time
            return
        if self._classifier is None:
            self._classifier = find_classifier(calls, batch)
        shown = None if self._classifier is None else self._classifier.read(calls, batch)
        if self._classifier is None or shown is None:
            self._refuse()
            return
        call, logits, targets = shown
        self._score.update(*_counts(logits, targets))
        if self._classifier.replayable and call.before is not None:
            self._kept.append((*call.before, targets))

    def compute_and_reset(self) -> float | None:
        """Return the accuracy over the steps since the last call, on all ranks, or ``None``; a collective operation."""
        if self._closed:
            return None
        accuracy = self._reduce(self._score)
        self._score.reset()
        return accuracy

    def evaluate(self, pl_module: pl.LightningModule) -> float | None:
        """Return the accuracy right now on the kept batches of all ranks, or ``None``; a collective operation.

        Calls the network that returns the logits anew, in eval mode, and leaves no trace. ``None`` also where the
        logits come out of several networks in turn, for then the inputs of the last one are not the data.
        """
        if self._closed or self.eval_batches == 0:
            return None
        score = _Score().to(pl_module.device)
        try:
            self._replay(pl_module, score)
        except Exception as error:  # a number for the eye must not end a training run
            rank_zero_warn(f"The accuracy after pruning could not be measured, and will not be again: {error!r}")
            score.reset()
            self._kept.clear()
            self._classifier = replace(self._classifier, replayable=False) if self._classifier else None
        return self._reduce(score)

    def stop(self) -> None:
        """Take the hooks off the module, and forget it, its batches and all counts."""
        self._unhook()
        self._classifier: Classifier | None = None
        self._kept: deque[tuple[Any, Any, Tensor]] = deque(maxlen=self.eval_batches)
        self._score = _Score()
        # Of all epochs so far, the same on all ranks.
        self._labels = 0
        self._beyond_probability = False
        self._refused = False  # on this rank
        self._closed = False  # on all ranks

    def _unhook(self) -> list[Any]:
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return []
        recorder.stop()
        return recorder.calls

    def _refuse(self) -> None:
        self._refused = True
        self._classifier = None
        self._kept.clear()

    def _replay(self, pl_module: pl.LightningModule, score: _Score) -> None:
        trainer: Any = pl_module._trainer  # the property of that name raises where there is none
        precision = nullcontext() if trainer is None else trainer.precision_plugin.forward_context()
        with undisturbed(pl_module), precision, torch.no_grad():
            pl_module.eval()
            for args, kwargs, targets in self._kept:
                assert self._classifier is not None
                module = pl_module.get_submodule(self._classifier.module)
                # Copied: the network may write to its inputs, and those from validation are inference tensors.
                output = module(*copied(args), **copied(kwargs))
                logits = self._classifier.logits_of(output)
                assert logits is not None
                score.update(*_counts(logits, targets))
        if self._recorder is not None:
            self._recorder.clear()

    def _reduce(self, score: _Score) -> float | None:
        """Add up the ranks' counts and judge them; every rank gets here, also one that has seen nothing."""
        score.update(torch.zeros(3, dtype=torch.int64), torch.tensor([0, 0, 0, int(self._refused)]))
        correct, correct_if_probability, total, labels, classes, beyond_probability, refused = score.compute().tolist()
        self._labels = max(self._labels, labels)
        self._beyond_probability |= bool(beyond_probability)
        if refused:
            self._closed = True
            self._refuse()
            return None
        if total == 0 or self._labels != classes:
            return None
        return (correct if self._beyond_probability else correct_if_probability) / total


class _Score(Metric):
    """Counts of right answers, reduced over ranks.

    torchmetrics' own accuracies have to know the number of classes before they can be reduced, which a rank that has
    seen no batch does not. The numbers are the same.
    """

    full_state_update = False
    sums: Tensor  # right answers; right answers if outputs are probabilities; all answers
    maxima: Tensor  # largest label + 1; classes; whether an output is no probability; whether this is no classifier

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("maxima", torch.zeros(4, dtype=torch.int64), dist_reduce_fx="max")

    def update(self, sums: Tensor, maxima: Tensor) -> None:
        """Take in the counts of a batch."""
        self.sums = self.sums + sums.to(self.sums.device)
        self.maxima = torch.maximum(self.maxima, maxima.to(self.maxima.device))

    def compute(self) -> Tensor:
        """Return ``sums`` and ``maxima`` over all ranks, in one tensor ``(7,)``."""
        return torch.cat([self.sums, self.maxima])


def _counts(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Count logits ``(B, K)``, or ``(B,)`` if binary, with targets ``(B,)``; nothing waits for the device."""
    if logits.ndim == 2:
        classes = logits.shape[1]
        right = right_if_probability = (logits.argmax(1) == targets).sum()
        beyond_probability = torch.zeros_like(right)
    else:
        classes = 2
        right, right_if_probability = (((logits > bar) == targets.bool()).sum() for bar in (0.0, 0.5))
        beyond_probability = ((logits < 0) | (logits > 1)).any().long()
    outside = ((targets < 0) | (targets >= classes)).any().long()
    sums = torch.stack([right, right_if_probability, torch.full_like(right, len(targets))])
    return sums, torch.stack([targets.max() + 1, torch.full_like(right, classes), beyond_probability, outside])
