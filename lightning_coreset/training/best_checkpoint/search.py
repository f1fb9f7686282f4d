"""One ModelCheckpoint that searches for the best model among the most pruned ones."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_coreset.training.best_checkpoint.ranks import Stage, best_of, stand_ins, worst_of
from lightning_coreset.training.packages import kinds


class Search:
    """Lets a ModelCheckpoint compare first how pruned models are, and then their scores.

    While it decides, other scores stand in for those of models that were pruned less; see :func:`stand_ins`. It keeps,
    replaces and deletes files by its own rules then: as many as ``save_top_k`` says, and none before the one that takes
    its place is saved. Before and after, also in the checkpoint that is saved, all scores are the true ones.

    Args:
        callback: The ModelCheckpoint.
        stages: How far the run was at each checkpoint, by path; new ones are added.
    """

    def __init__(self, callback: ModelCheckpoint, stages: MutableMapping[str, Stage]) -> None:
        self.callback = callback
        self._stages = stages
        self._true: dict[str, Tensor] = {}
        self._before: dict[str, Any] | None = None
        self._now = Stage()

    def begin(self, now: Stage, accepted: Stage | None) -> None:
        """The callback is about to decide on the present model.

        Args:
            now: How far the run is.
            accepted: The same without an event that may be taken back; ``None`` to compare scores alone.
        """
        scores = self.callback.best_k_models
        if accepted is not None:
            others = stand_ins(scores, self._stages, self._mode, now, accepted)
            self._true = {path: scores[path] for path in others}
            scores.update(others)
            if self.callback.kth_best_model_path in scores:
                self.callback.kth_best_model_path = worst_of(scores, self._mode)
        self._before, self._now = dict(scores), now

    def settle(self) -> None:
        """The callback has decided: note a new checkpoint, and put the true scores back.

        Called again once the checkpoint is written, where it changes nothing.
        """
        if self._before is None:
            return
        callback, scores = self.callback, self.callback.best_k_models
        for path, score in scores.items():
            if score is not self._before.get(path):
                self._stages[path] = self._now
            elif path in self._true:
                scores[path] = self._true[path]
        if self._true:
            callback.best_model_score = scores.get(callback.best_model_path, callback.best_model_score)
            callback.kth_value = scores.get(callback.kth_best_model_path, callback.kth_value)
        self._true, self._before = {}, None

    def choose_best(self, now: Stage) -> None:
        """Let the best model be the best of the most pruned, although none was saved since that changed."""
        self.begin(now, now)
        scores = self.callback.best_k_models
        has_it = self.callback.best_model_path in scores  # not after a resume into another folder
        best = best_of(scores, self._mode) if has_it else self.callback.best_model_path
        self.settle()
        if has_it:
            self.callback.best_model_path, self.callback.best_model_score = best, scores[best]

    @property
    def paths(self) -> list[str]:
        """The checkpoints that it keeps."""
        return list(dict.fromkeys([*self.callback.best_k_models, *filter(None, [self.callback.best_model_path])]))

    @property
    def _mode(self) -> Any:
        return self.callback.mode


def model_checkpoints(trainer: pl.Trainer) -> list[ModelCheckpoint]:
    """The Trainer's ModelCheckpoints, without other callbacks that it lists with them."""
    found: list[Any] = list(trainer.checkpoint_callbacks)
    return [callback for callback in found if isinstance(callback, kinds("callbacks.ModelCheckpoint"))]


def warn_of_unknown_form(callback: ModelCheckpoint) -> None:
    """Say that a ModelCheckpoint cannot be made to compare how pruned models are."""
    rank_zero_warn(
        f"best_checkpoint='most_pruned' has no effect on {type(callback).__name__}(monitor={callback.monitor!r}): this "
        "version of Lightning has no method `_save_topk_checkpoint` of it, so that its score alone decides. Install a "
        "version that lightning_coreset was tested with, or give checkpoints names that say how pruned they are, "
        "such as filename='{epoch}-{sparsity:.2f}'."
    )
