"""A metric that the LightningModule logs itself: its value after a validation, and at an event on a few batches."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.data import extract_batch_size
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torchmetrics import Metric

from lightning_coreset.nested import map_tensors
from lightning_coreset.training.metrics.isolation import isolated


class LoggedMetric:
    """Reads a metric that the module logs under a name, as ``ModelCheckpoint(monitor=...)`` does.

    Args:
        name: The name.
        eval_batches: Number of validation batches kept for ``evaluate``, the latest that were seen; 0 turns it off.

    Attributes:
        was_logged: Whether it was ever logged in this training run; checkpoints hold it.
    """

    def __init__(self, name: str, eval_batches: int) -> None:
        self.name = name
        self.was_logged = False
        self._is_missing = False  # in the latest validation
        self._last: object = None  # when the latest validation began or ended
        self._seen: object = None  # when a number was last taken, an epoch ended or an event happened
        self._kept: deque[tuple[Any, int, int]] = deque(maxlen=eval_batches)
        loader = re.search(r"/dataloader_idx_(\d+)$", name)
        self._loader = None if loader is None else int(loader[1])

    def keep(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        """Keep a batch that may be one of the latest, in ``on_validation_batch_start``: the step may write to it.

        Of the loader that is in the name, if one is, as in ``"val_acc/dataloader_idx_0"``.
        """
        if self._kept.maxlen and self._loader in (None, dataloader_idx):
            self._kept.append((map_tensors(torch.clone, batch), batch_idx, dataloader_idx))

    def look(self, trainer: pl.Trainer) -> None:
        """From now on only what is logged after this counts as new, as at the start of a validation."""
        self._last = trainer.callback_metrics.get(self.name)

    def forget(self, trainer: pl.Trainer) -> None:
        """What was logged until now is old, as at an event."""
        self._last = self._seen = trainer.callback_metrics.get(self.name)

    def value(self, trainer: pl.Trainer, *, is_final: bool = True) -> float | None:
        """The value that was logged in a validation, as rank zero sees it, on all ranks; a collective operation.

        Args:
            trainer: The Trainer, at the end of the validation.
            is_final: Whether it should have been logged by now.

        Returns:
            The value; ``None`` if it was not logged since the last look.

        Raises:
            MisconfigurationException: If it was never logged, or is not one number, and is final.
        """
        number, names = self._new_value(trainer, lambda logged: logged is not self._last)
        self._is_missing = number is None
        if self.is_awaited and is_final and not trainer.sanity_checking and self.name not in names:
            raise self._never_logged(names)
        return number

    def late_value(self, trainer: pl.Trainer) -> float | None:
        """The value at the end of an epoch, if the latest validation had none: it may be logged in training.

        By steps, before that validation, as well as for the whole epoch.

        Raises:
            MisconfigurationException: If it was never logged, or is not one number.
        """
        if not self._is_missing:
            self.forget(trainer)
            return None
        number, names = self._new_value(trainer, lambda logged: not is_same_value(logged, self._seen))
        self.forget(trainer)
        if self.is_awaited and self.name not in names:
            raise self._never_logged(names)
        return number

    @property
    def is_awaited(self) -> bool:
        """Whether a validation has ended and it has never been logged."""
        return self._is_missing and not self.was_logged

    def _new_value(self, trainer: pl.Trainer, is_new: Callable[[object], bool]) -> tuple[float | None, list[str]]:
        """The value, if it is new, and the names of all metrics.

        The Trainer keeps the last value of every metric, and makes a new tensor of what is logged. One that is still
        the same was not logged again.
        """
        metrics = trainer.callback_metrics
        logged = metrics.get(self.name)
        number = float(logged) if isinstance(logged, Tensor) and logged.numel() == 1 and is_new(logged) else None
        self._last = logged
        if number is not None:
            self._seen = logged
        number, names = trainer.strategy.broadcast((number, sorted(metrics)))
        self.was_logged = self.was_logged or number is not None
        return number, names

    def _never_logged(self, names: list[str]) -> MisconfigurationException:
        return MisconfigurationException(
            f"Expected monitor={self.name!r} to be one of the metrics that the module has logged by now "
            f"but got {', '.join(map(repr, names)) or 'none'}. Log it with "
            f"self.log({self.name!r}, ...) in validation_step or on_validation_epoch_end, or give another name."
        )

    def evaluate(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> float | None:
        """The metric right now on the kept batches; a collective operation.

        Calls the module's own ``validation_step`` in eval mode and reads what it logs, without side effects. Over the
        ranks it is the average, weighted by samples, which for metrics such as F1 is close to the value of all samples
        together.

        Returns:
            The value; ``None`` if no batch was seen yet, or the step does not log it as an average over batches.
        """
        log = _Log(self.name)
        try:
            self._replay(trainer, pl_module, log)
        except Exception as error:  # a number that is only shown must not end a training run
            rank_zero_warn(
                f"{self.name!r} could not be measured at an event, and will not be measured any more: {error!r}"
            )
            self._kept = deque(maxlen=0)
            log = _Log(self.name)
        value, samples = log.average()
        total = torch.tensor([value * samples, samples], dtype=torch.float64, device=pl_module.device)
        weighted, samples = trainer.strategy.reduce(total, reduce_op="sum").tolist()  # type: ignore[union-attr]
        return weighted / samples if samples else None

    def stop(self) -> None:
        """Drop the kept batches."""
        self._kept.clear()
        self._last = self._seen = None
        self._is_missing = False

    def _replay(self, trainer: pl.Trainer, pl_module: pl.LightningModule, log: _Log) -> None:
        step = pl_module.validation_step
        with isolated(pl_module, parameters=False), trainer.precision_plugin.val_step_context(), torch.no_grad():
            pl_module.__dict__.update(log=log.log, log_dict=log.log_dict)
            pl_module.eval()
            for module in pl_module.modules():
                if isinstance(module, Metric):
                    module.reset()
                    module.distributed_available_fn = _not_distributed  # other ranks may have other batches, or fail
            for batch, batch_idx, dataloader_idx in self._kept:
                log.begin(batch, dataloader_idx)
                arguments = [map_tensors(torch.clone, batch)]
                if is_param_in_hook_signature(step, "batch_idx", min_args=2):
                    arguments.append(batch_idx)
                if is_param_in_hook_signature(step, "dataloader_idx", min_args=3):
                    arguments.append(dataloader_idx)
                step(*arguments)
            log.end()


def is_same_value(one: object, other: object) -> bool:
    """Whether two values are one; of what was logged by a step, the Trainer gives another view at every look."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.data_ptr() == other.data_ptr()  # both are alive
    return one is other


class _Log:
    """Stands in for ``LightningModule.log`` and keeps the values of one name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._batch: Any = None
        self._suffix = ""
        self._values: list[tuple[float, int]] = []
        self._metric: Metric | None = None

    def begin(self, batch: Any, dataloader_idx: int) -> None:
        self._batch, self._suffix = batch, f"/dataloader_idx_{dataloader_idx}"

    def log(self, name: str, value: Any, *, reduce_fx: Any = "mean", batch_size: int | None = None, **_: Any) -> None:
        if self._name not in (name, f"{name}_epoch", name + self._suffix, f"{name}_epoch{self._suffix}"):
            return
        if isinstance(value, Metric):
            self._metric, number = value, 0.0
        else:
            number = float(value)
        if reduce_fx in ("mean", torch.mean):
            self._values.append((number, batch_size or extract_batch_size(self._batch)))

    def log_dict(self, dictionary: Mapping[str, Any], **options: Any) -> None:
        for name, value in dictionary.items():
            self.log(name, value, **options)

    def end(self) -> None:
        """Compute the value of a metric that was logged as an object, over all batches."""
        if self._metric is not None:
            value = float(self._metric.compute())
            self._values = [(value, samples) for _, samples in self._values]

    def average(self) -> tuple[float, int]:
        """The average over samples, and their number."""
        samples = sum(count for _, count in self._values)
        return sum(value * count for value, count in self._values) / max(samples, 1), samples


def _not_distributed() -> bool:
    return False
