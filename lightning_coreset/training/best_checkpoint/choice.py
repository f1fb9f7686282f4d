"""The Trainer's ModelCheckpoints in a run with pruning events: what each takes for the best, and how pruned that is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias, get_args

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_coreset._compat import around_topk_saving
from lightning_coreset.plain_data import as_type
from lightning_coreset.training.best_checkpoint.freshness import Freshness
from lightning_coreset.training.best_checkpoint.ranks import Stage
from lightning_coreset.training.best_checkpoint.record import stages_from_plain, stages_to_plain
from lightning_coreset.training.best_checkpoint.search import Search, model_checkpoints, warn_of_unknown_form
from lightning_coreset.training.best_checkpoint.shortfall import Shortfall, warn_of_loaded, warn_of_shortfall
from lightning_coreset.training.guard import Guard
from lightning_coreset.training.progress import Progress

BestCheckpoint: TypeAlias = Literal["most_pruned", "any"]


class _Run(Protocol):
    progress: Progress
    guard: Guard
    checkpoints: BestCheckpoints


class BestCheckpoints:
    """Makes the best checkpoint of every ModelCheckpoint the best among the most pruned, and says where it is not.

    Args:
        choice: ``"most_pruned"`` for that; with ``"any"`` the score alone decides, as without pruning.

    Raises:
        ValueError: For another choice.
    """

    def __init__(self, choice: BestCheckpoint) -> None:
        if choice not in get_args(BestCheckpoint):
            raise ValueError(f"Expected best_checkpoint to be 'most_pruned' or 'any' but got {choice!r}.")
        self.choice = choice
        self._freshness = Freshness()
        self._stages: dict[str, Stage] = {}
        self._latest: dict[str, Stage] = {}  # of files that are kept without a score
        self._searches: list[Search] = []
        self._runs: Sequence[_Run] = ()
        self._undo: list[Callable[[], None]] = []
        self._shortfalls: list[Shortfall] = []

    def start(self) -> None:
        """Start another training run: its events are others."""
        self._stages = {}
        self._freshness = Freshness()

    def begin(self, trainer: pl.Trainer, *runs: _Run) -> None:
        """Watch the ModelCheckpoints of a Trainer in a fit; a checkpoint has been loaded.

        Args:
            trainer: The Trainer.
            *runs: The run that this belongs to, and those of other pruning callbacks. One of them watches for all.
        """
        self.end()
        self._shortfalls = []
        if any(run.checkpoints.is_watching for run in runs):
            return
        self._runs = runs
        self._searches = [Search(callback, self._stages) for callback in model_checkpoints(trainer)]
        for search in self._searches:
            undo = around_topk_saving(search.callback, partial(self.save, search))
            if undo is not None:
                self._undo.append(undo)
            elif self._ranks(search):
                warn_of_unknown_form(search.callback)
        if not self._now.events:
            self._stages.update((path, self._now) for path in self._paths if path not in self._stages)

    def end(self) -> None:
        """Leave the ModelCheckpoints as they were, at the end of a fit or after an exception."""
        for undo in self._undo:
            undo()
        for search in self._searches:
            search.settle()
        if self.is_watching:
            self._forget_deleted()
        self._latest = {}
        self._undo, self._searches, self._runs = [], [], ()
        self._freshness.end()

    @property
    def is_watching(self) -> bool:
        """Whether it watches the ModelCheckpoints of a fit."""
        return bool(self._runs)

    # ---- in training

    def model_changes(self, trainer: pl.Trainer) -> None:
        """At an event, or when one is taken back: what was logged until now is of another model."""
        self._freshness.model_changes(trainer)

    def validated(self, trainer: pl.Trainer) -> None:
        """At the end of a validation."""
        self._freshness.validated(trainer)

    def save(
        self, search: Search, save: Callable[..., None], trainer: pl.Trainer, metrics: Mapping[str, Tensor]
    ) -> None:
        """Let a ModelCheckpoint save the present model if it is one of the best.

        Args:
            search: Of the ModelCheckpoint.
            save: Its method that does so.
            trainer: The Trainer.
            metrics: What the method reads the score from. Where that is of another model, it is NaN.
        """
        name = search.callback.monitor
        if name is None:
            save(trainer, metrics)
            self._latest[search.callback.best_model_path] = self._now
            return
        ranks = self._ranks(search)
        if ranks and name in metrics and self._freshness.is_old(trainer, name):
            metrics = {**metrics, name: torch.full_like(metrics[name], torch.nan, dtype=torch.float32)}
        search.begin(self._now, self._accepted if ranks else None)
        try:
            save(trainer, metrics)
        finally:
            search.settle()

    @property
    def _prefers_pruned(self) -> bool:
        return any(run.checkpoints.choice == "most_pruned" for run in self._runs)

    def _ranks(self, search: Search) -> bool:
        """Whether a ModelCheckpoint compares first how pruned models are. Epochs and steps are no scores of models."""
        return self._prefers_pruned and search.callback.monitor not in (None, "epoch", "step")

    @property
    def _now(self) -> Stage:
        return self._stage(accepted=False)

    @property
    def _accepted(self) -> Stage:
        return self._stage(accepted=True)

    def _stage(self, *, accepted: bool) -> Stage:
        events = set()
        for number, run in enumerate(self._runs):
            places = run.progress.places
            events |= {(number, place) for place in (places[:-1] if accepted and run.guard.recovering else places)}
        return Stage(frozenset(events), self._runs[0].progress.reached)

    # ---- afterwards

    def fit_end(self, requested: float, *, is_missed: bool) -> None:
        """Warn of every ModelCheckpoint whose best model is pruned less than was requested.

        Args:
            requested: The pruning ratio.
            is_missed: Whether training ended before an event.
        """
        stages = self._latest | self._stages
        for search in self._searches:
            if self._ranks(search):
                search.choose_best(self._now)
            shortfall = Shortfall.of(search.callback, stages, self._now, requested, is_missed=is_missed)
            if shortfall is not None:
                self._shortfalls.append(shortfall)
                warn_of_shortfall(shortfall, prefers_pruned=self._prefers_pruned)

    def loaded(self, trainer: pl.Trainer) -> None:
        """Say once more how pruned the best model is where it is loaded to be tested or to predict."""
        warn_of_loaded(self._shortfalls, trainer.ckpt_path)

    # ---- checkpoints

    @property
    def _paths(self) -> list[str]:
        return [path for search in self._searches if search.callback.monitor is not None for path in search.paths]

    def _forget_deleted(self) -> None:
        for path in self._stages.keys() - set(self._paths):
            del self._stages[path]

    def to_dict(self) -> dict[str, Any]:
        """How pruned the checkpoints are that are kept for their score, as plain data; empty if there are none."""
        for search in self._searches:
            search.settle()
        if self.is_watching:
            self._forget_deleted()
        stages, changed_in = stages_to_plain(self._stages), self._freshness.changed_in
        return ({"stages": stages} if stages else {}) | ({} if changed_in is None else {"changed_in": changed_in})

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to a fit: a callback may be a hyperparameter of its module, saved while it trains."""
        return {**vars(self), "_searches": [], "_runs": (), "_undo": [], "_latest": {}, "_freshness": Freshness()}

    def load(self, stages: Mapping[str, Stage], changed_in: int | None) -> None:
        """Continue with what :meth:`read` returned."""
        self._stages, self._freshness.changed_in = dict(stages), changed_in

    @staticmethod
    def read(plain: Any) -> tuple[dict[str, Stage], int | None]:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: If it is something else.
        """
        plain = as_type(plain, dict[str, Any], "checkpoints")
        changed_in = as_type(plain.get("changed_in"), int | None, "changed_in")
        return stages_from_plain(plain.get("stages", {})), changed_in
