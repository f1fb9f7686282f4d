"""Recompute the statistics of BatchNorms for a pruned model, on batches of the training so far."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, TypeGuard

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_coreset._arguments import is_whole_number
from lightning_coreset._compat import BatchNorm, eager_execution
from lightning_coreset.nested import map_tensors
from lightning_coreset.training.examples import recorded_calls, training_step
from lightning_coreset.training.metrics import ForwardRecorder, isolated
from lightning_coreset.training.strategies import run_on_all_ranks


class Recalibration:
    """Keeps training batches, and recomputes running means and variances on them.

    It keeps the first batches of every epoch, on the CPU, as they were before the step: a second iterator over the
    loader would disturb the first. They are run through the module's own ``training_step``, or, with manual
    optimization, where that would train, through the networks that the step called. The statistics are the plain
    average over the batches of all ranks, as :func:`torch.optim.swa_utils.update_bn` computes it.

    Not recomputed are BatchNorms that training does not update: in eval mode, without running statistics, frozen with
    ``track_running_stats=False`` (as ``BackboneFinetuning`` does), or not part of the training step; and the copies
    that EMA and SWA keep.

    Args:
        batches: How many batches are kept; 0 turns it off.

    Raises:
        ValueError: If that is not a non-negative integer.
    """

    def __init__(self, batches: int) -> None:
        if not is_whole_number(batches) or batches < 0:
            raise ValueError(f"Expected `recalibrate_batches` to be a non-negative integer but got {batches!r}.")
        self.batches = int(batches)
        self._recorder: ForwardRecorder | None = None
        self._kept: deque[Any] = deque(maxlen=self.batches)

    def see_batch(self, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep a batch, in ``on_train_batch_start``."""
        if batch_idx >= self.batches or batch is None:  # None if the step fetches it itself
            return
        if pl_module.automatic_optimization:
            self._kept.append(_on_cpu(batch))
        else:
            self._recorder = ForwardRecorder(pl_module, copy_inputs=True)
            self._recorder.start()

    def see_step_end(self) -> None:
        """Keep the calls of a step of manual optimization, in ``on_train_batch_end``."""
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.stop()
            self._kept.append([(call.name, *_on_cpu(call.before)) for call in recorder.calls])

    def run(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Recompute the statistics; a collective operation.

        Nothing else changes, and if it raises, on any rank, nothing at all.
        """
        norms = [module for module in pl_module.modules() if _follows_batches(module)]
        batches = int(_reduced(trainer, torch.tensor(len(self._kept), device=pl_module.device), "min"))
        if not norms or not batches:
            return
        latest = list(self._kept)[-batches:]  # as many on every rank, since SyncBatchNorm waits for the others
        sums = run_on_all_ranks(trainer, lambda: _sums(trainer, pl_module, norms, latest))
        for norm, total in zip(norms, sums, strict=True):
            _set_average(norm, _reduced(trainer, total, "sum"), trainer.world_size)

    def stop(self) -> None:
        """Remove all hooks from the module and drop batches."""
        if self._recorder is not None:
            self._recorder.stop()
        self._recorder = None
        self._kept.clear()


def _on_cpu(tree: Any) -> Any:
    return move_data_to_device(map_tensors(lambda tensor: tensor.to("cpu", copy=True), tree), "cpu")


def _follows_batches(module: nn.Module) -> TypeGuard[BatchNorm]:
    if not isinstance(module, BatchNorm) or not module.training or not module.track_running_stats:
        return False
    return module.running_mean is not None and not is_lazy(module.running_mean)


def _sums(
    trainer: pl.Trainer, pl_module: pl.LightningModule, norms: Sequence[BatchNorm], batches: Sequence[Any]
) -> list[Tensor]:
    """For every BatchNorm ``(2 C + 1,)``: means and variances, summed over batches, and the number of batches."""
    run = training_step if pl_module.automatic_optimization else recorded_calls
    with isolated(pl_module), trainer.precision_plugin.train_step_context(), eager_execution():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over all batches
        for batch in batches:
            run(pl_module, move_data_to_device(map_tensors(torch.clone, batch), pl_module.device))
        return [_sum(norm) for norm in norms]


def _sum(norm: BatchNorm) -> Tensor:
    mean, variance, count = _statistics(norm)
    # In double precision multiplying by a small integer and dividing again gives the same number.
    return torch.cat([mean.double() * count, variance.double() * count, count.double()[None]])


def _set_average(norm: BatchNorm, total: Tensor, ranks: int) -> None:
    count = total[-1]
    if count == 0:  # not a part of the training step
        return
    for buffer, value in zip(_statistics(norm), (*(total[:-1] / count).chunk(2), count / ranks), strict=True):
        buffer.data = value.to(buffer)  # new memory: an event that fails later restores the old one


def _statistics(norm: BatchNorm) -> tuple[Tensor, Tensor, Tensor]:
    """The running mean, the running variance and the number of batches in them."""
    return norm.running_mean, norm.running_var, norm.num_batches_tracked  # type: ignore[return-value]


def _reduced(trainer: pl.Trainer, value: Tensor, operation: str) -> Tensor:
    return trainer.strategy.reduce(value, reduce_op=operation)  # type: ignore[return-value]
