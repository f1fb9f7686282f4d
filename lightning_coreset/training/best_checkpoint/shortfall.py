"""What is said where the best checkpoint is of a model that was pruned less than was requested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

from lightning_coreset.training.best_checkpoint.ranks import Stage

Cause = Literal["unsaved", "taken back", "ended early"]


@dataclass(frozen=True)
class Shortfall:
    """A best checkpoint that is not of the model that was asked for.

    Attributes:
        callback: Its ModelCheckpoint, in words.
        path: The file.
        reached: How pruned it is, in words.
        requested: The pruning ratio that was requested, likewise.
        cause: Whether no better one was saved since the last event, its event was taken back, or training ended before
            the last event.
    """

    callback: str
    path: str
    reached: str
    requested: str
    cause: Cause

    @classmethod
    def of(
        cls, callback: ModelCheckpoint, stages: Mapping[str, Stage], now: Stage, requested: float, *, is_missed: bool
    ) -> Shortfall | None:
        """What is to be said of a ModelCheckpoint at the end of a fit; ``None`` if its best model is as requested.

        Args:
            callback: The ModelCheckpoint.
            stages: How far the run was at each checkpoint, by path.
            now: How far the run is.
            requested: The pruning ratio.
            is_missed: Whether training ended before an event.
        """
        path, is_latest = callback.best_model_path, callback.monitor is None
        stage = stages.get(path)
        if not path or (stage is None and (is_latest or not now.events)):
            return None
        if stage is None or stage.events < now.events:
            cause: Cause = "unsaved"
        elif is_latest:  # without a monitor, it is no choice; what the guard and the schedule did is said elsewhere
            return None
        elif stage.events != now.events:
            cause = "taken back"
        elif is_missed:
            cause = "ended early"
        else:
            return None
        name = f"{type(callback).__name__}(monitor={callback.monitor!r})"
        reached = "an unknown part" if stage is None else f"{stage.reached:.2%}"
        return cls(name, path, reached, f"{requested:.2%}", cause)


def warn_of_shortfall(shortfall: Shortfall, *, prefers_pruned: bool) -> None:
    """Say at the end of a fit that the best checkpoint is not of the model that was asked for, and the way out."""
    rank_zero_warn(
        f"The best checkpoint of {shortfall.callback}, {shortfall.path}, has {shortfall.reached} pruned where "
        f"{shortfall.requested} was requested. {_why(shortfall.cause, prefers_pruned=prefers_pruned)}"
    )


def _why(cause: Cause, *, prefers_pruned: bool) -> str:
    if cause == "ended early":
        return "Training ended before the last pruning event: train longer, or let pruning end earlier."
    if cause == "taken back":
        return (
            "Its pruning event was taken back. The model itself is that of the run: save it with "
            "trainer.save_checkpoint(path), or test it with trainer.test(model)."
        )
    if not prefers_pruned:
        return (
            "best_checkpoint='any' compares scores alone. With 'most_pruned', the default, the best is one of the most "
            "pruned checkpoints."
        )
    return (
        "None was saved with a score of the model after its last pruning event. The model itself is as pruned as the "
        "run: save it with trainer.save_checkpoint(path), or test it with trainer.test(model). Next time let pruning "
        "end earlier (end=...), or validate and save in the epochs after it."
    )


def warn_of_loaded(shortfalls: Sequence[Shortfall], path: Any) -> None:
    """Say the same in short where such a checkpoint was loaded."""
    for shortfall in shortfalls:
        if shortfall.path == path:
            rank_zero_warn(
                f"A model that has {shortfall.reached} pruned where {shortfall.requested} was requested was loaded: "
                f"{shortfall.path}, the best checkpoint of {shortfall.callback}."
            )
            return
