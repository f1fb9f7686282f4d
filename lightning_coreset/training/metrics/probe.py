"""A classifier's accuracy without any setting, or a metric of the user's, measured by watching the module's steps."""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import Metric

from lightning_coreset._compat import trainer_of
from lightning_coreset.nested import map_tensors
from lightning_coreset.training.metrics.isolation import isolated
from lightning_coreset.training.metrics.outputs import OutputsAndTargets
from lightning_coreset.training.metrics.recorder import Call, ForwardRecorder
from lightning_coreset.training.metrics.scoring import Accuracy, NoNumberError, Scoring, UserMetric
from lightning_coreset.training.metrics.votes import RankVotes


class AccuracyProbe:
    """Watches the steps of a LightningModule, and measures how well its outputs match the targets.

    Outputs and targets are found in the first step (see
    :func:`~lightning_coreset.training.metrics.outputs.find_classifier`); the number is
    :class:`~lightning_coreset.training.metrics.scoring.Accuracy` or the user's metric. If anything is ambiguous, or a
    later batch has another form, there is no number rather than a wrong one, and steps are no longer watched; a metric
    that the user asked for raises instead.

    The ranks' counts are added up, so a callback calls on every rank:

    - ``start`` in ``on_validation_batch_start``, and ``batch_end`` in ``on_validation_batch_end``, or, without
      validation, in ``on_train_batch_start`` and ``on_train_batch_end``. The module has hooks only in between: on all
      submodules in the first step, on one of them in later steps, on none once it is known that there is no number;
    - ``compute_and_reset`` in ``on_validation_epoch_end`` or ``on_validation_end``, or in ``on_train_epoch_end``;
    - ``evaluate`` right before and after a pruning event;
    - ``stop`` in ``teardown``.

    Args:
        eval_batches: Number of batches kept for ``evaluate``, the latest that were seen; 0 turns it off.
        metric: A metric to measure instead, called as ``metric(outputs, targets)``: a classifier's logits and
            targets, or what :func:`~lightning_coreset.training.metrics.outputs.find_prediction` finds. It is copied.

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

    def __init__(self, eval_batches: int = 8, metric: Metric | None = None) -> None:
        self.eval_batches = eval_batches
        self.metric = metric
        self._recorder: ForwardRecorder | None = None
        self._votes = RankVotes()
        self.stop()

    def start(self, pl_module: pl.LightningModule, *, keep: bool = True) -> None:
        """Watch the step that begins now.

        Args:
            pl_module: The module.
            keep: Whether its batch may be among the last ``eval_batches`` before ``evaluate``. Others are not copied,
                unless there was a step without a call: then the last batches may be any.
        """
        self._unhook()
        if self._failure is not None:
            return
        if self._count.device != pl_module.device:
            self._count.to(pl_module.device)
        only = None if self._found is None else {self._found.module}
        self._recorder = ForwardRecorder(pl_module, only=only, copy_inputs=self._copies(keep))
        self._recorder.start()

    def batch_end(self, batch: Any) -> None:
        """Count the step that has been watched.

        Args:
            batch: Its batch, as the step got it.
        """
        assert self._failure is not None or self._recorder is not None, "start() comes before the step"
        calls = self._unhook()
        if not calls:  # a step may call nothing, say in a sanity check, and something the next time
            self._idle = True
            return
        if self._found is None:
            self._found = self._scoring.find(calls, batch)
        read = None if self._found is None else self._found.read(calls, batch)
        if self._found is None or read is None:
            self._fail("a step has more than one possible output or target, or none")
            return
        call, outputs, targets = read
        try:
            self._scoring.add(self._count, outputs, targets)
        except Exception as error:  # from the user's metric, maybe on one rank only: raised at the next collective call
            self._fail(f"it fails on outputs {tuple(outputs.shape)} and targets {tuple(targets.shape)}: {error}")
            return
        if self._found.replayable and call.before is not None:
            self._kept.append((*call.before, targets.clone()))

    def compute_and_reset(self) -> float | None:
        """Return the number over the steps since the last call, on all ranks, or ``None``; a collective operation.

        Raises:
            MisconfigurationException: On all ranks, if a metric of the user's cannot be measured.
        """
        if self._closed:
            return None
        number = self._reduce(self._count)
        self._count.reset()
        self._steady, self._idle = not self._idle, False
        return number

    def evaluate(self, pl_module: pl.LightningModule) -> float | None:
        """Return the number right now on the kept batches of all ranks, or ``None``; a collective operation.

        Calls the network that returns the outputs again, in eval mode, and has no side effects. ``None`` also if the
        outputs come from several networks in a row: then the inputs of the last one are not the data.
        """
        if self._closed or self.eval_batches == 0:
            return None
        count = self._scoring.count().to(pl_module.device)
        try:
            self._replay(pl_module, count)
        except Exception as error:  # a number that is only shown must not end a training run
            rank_zero_warn(
                f"The accuracy could not be measured at an event, and will not be measured any more: {error!r}"
            )
            count.reset()
            self._kept.clear()
            self._found = replace(self._found, replayable=False) if self._found else None
        return self._reduce(count)

    def stop(self) -> None:
        """Remove the hooks from the module, and drop batches and counts."""
        self._unhook()
        self._scoring: Scoring = Accuracy() if self.metric is None else UserMetric(self.metric)
        self._count = self._scoring.count()
        self._found: OutputsAndTargets | None = None
        self._kept: deque[tuple[Any, Any, Tensor]] = deque(maxlen=self.eval_batches)
        self._idle = False  # whether a step since the last number called nothing
        self._steady = False  # whether every step before that called something
        self._failure: str | None = None  # why there is no number, on this rank
        self._closed = False  # whether there is none on all ranks

    def _copies(self, keep: bool) -> bool:
        if self.eval_batches == 0 or (self._found is not None and not self._found.replayable):
            return False
        return keep or self._idle or not self._steady  # after a step without a call the last batches are earlier ones

    def _unhook(self) -> list[Call]:
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return []
        recorder.stop()
        return recorder.calls

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self._found = None
        self._kept.clear()

    def _replay(self, pl_module: pl.LightningModule, count: Metric) -> None:
        trainer: Any = trainer_of(pl_module)
        precision = nullcontext() if trainer is None else trainer.precision_plugin.forward_context()
        with isolated(pl_module, parameters=False), precision, torch.no_grad():
            pl_module.eval()
            for args, kwargs, targets in self._kept:
                assert self._found is not None
                module = pl_module.get_submodule(self._found.module)
                # Copied: the network may write to its inputs, and those from validation are inference tensors.
                args, kwargs = map_tensors(torch.clone, (args, kwargs))
                outputs = self._found.take(module(*args, **kwargs))
                assert outputs is not None
                self._scoring.add(count, outputs, targets)
        if self._recorder is not None:
            self._recorder.clear()

    def _reduce(self, count: Metric) -> float | None:
        """The number of all ranks' counts; called on every rank, also on one without a batch."""
        if self._votes.device != count.device:
            self._votes.to(count.device)
        self._votes.update(self._failure is not None, count.update_called)
        failed, everywhere = self._votes.compute()
        if not failed:
            try:
                return self._scoring.compute(count, everywhere=everywhere)
            except NoNumberError as error:
                self._fail(str(error))
        self._closed = True
        self._fail(self._failure or "see the message of another rank")
        if self.metric is not None:
            raise MisconfigurationException(
                f"Expected metric={type(self.metric).__name__} to be measured on a network's output and the batch's "
                f"targets, but {self._failure}. Log it in the module and give its name as `monitor=` instead."
            )
        return None
