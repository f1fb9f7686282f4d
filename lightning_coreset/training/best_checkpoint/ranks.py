"""The order of checkpoints by how pruned they are, as scores that ModelCheckpoint compares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

_BEYOND = 1e30
"""Worse, or better, than the score of any model that is of use, and still a number: NaN becomes infinite."""


@dataclass(frozen=True)
class Stage:
    """How far a run had come when a checkpoint was saved.

    Attributes:
        events: The pruning events that the model has behind it, without those that were taken back: for each the number
            of its callback and its place in that callback's history.
        reached: The pruning ratio that the last of them reached.
    """

    events: frozenset[tuple[int, int]] = frozenset()
    reached: float = 0.0


def stand_ins(
    scores: Mapping[str, Tensor],
    stages: Mapping[str, Stage],
    mode: Literal["min", "max"],
    now: Stage,
    accepted: Stage,
) -> dict[str, Tensor]:
    """Scores in place of those that do not compare with the score of the present model.

    First come the events, then the score. A checkpoint of fewer events is worse than any of the present model, and one
    of an event that was taken back is worse than these. While the guard may still take the last event back, those from
    before it are better than any of the present model. An infinite score, which is what ModelCheckpoint makes of NaN,
    stays: nothing is worse.

    Args:
        scores: The scores of the checkpoints that are kept, by path.
        stages: How far the run was at each of them. One that is missing is of another run, and less pruned.
        mode: Whether lower or higher scores are better.
        now: How far the run is.
        accepted: The same without an event that may still be taken back.

    Returns:
        What to put in place of scores, by path.

    Example:
        >>> unpruned, pruned = Stage(), Stage(frozenset({(0, 0)}), 0.5)
        >>> scores = {"0.ckpt": torch.tensor(0.9), "1.ckpt": torch.tensor(0.8)}
        >>> stand_ins(scores, {"0.ckpt": unpruned, "1.ckpt": pruned}, "max", pruned, pruned)
        {'0.ckpt': tensor(-1.0000e+30)}
    """
    sign = 1.0 if mode == "max" else -1.0

    def rank(path: str) -> tuple[bool, int, float]:
        stage = stages.get(path)
        stands = stage is None or stage.events <= accepted.events
        return stands, -1 if stage is None else len(stage.events), sign * float(scores[path])

    others = [
        path
        for path, score in scores.items()
        if sign * float(score) > -math.inf and (path not in stages or stages[path].events != now.events)
    ]
    is_recovering = now.events != accepted.events
    above = sorted((path for path in others if is_recovering and rank(path)[0]), key=rank)
    below = sorted((path for path in others if path not in above), key=rank, reverse=True)
    places = {path: 1 + place for place, path in enumerate(above)}
    places |= {path: -1 - place for place, path in enumerate(below)}
    return {path: _score(scores[path], sign * _BEYOND * place) for path, place in places.items()}


def best_of(scores: Mapping[str, Tensor], mode: Literal["min", "max"]) -> str:
    """The path with the best score; the first of several, as ModelCheckpoint chooses."""
    return (max if mode == "max" else min)(scores, key=scores.__getitem__)


def worst_of(scores: Mapping[str, Tensor], mode: Literal["min", "max"]) -> str:
    """The path with the worst score."""
    return (min if mode == "max" else max)(scores, key=scores.__getitem__)


def _score(like: Tensor, value: float) -> Tensor:
    return torch.full_like(torch.as_tensor(like), value, dtype=torch.float32)
