"""How far a run was at each of its checkpoints, as plain data for checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_coreset.plain_data import as_type
from lightning_coreset.training.best_checkpoint.ranks import Stage


def stages_to_plain(stages: Mapping[str, Stage]) -> dict[str, Any]:
    """Lists of numbers, by path."""
    return {path: [[list(event) for event in sorted(stage.events)], stage.reached] for path, stage in stages.items()}


def stages_from_plain(plain: Any) -> dict[str, Stage]:
    """The inverse of :func:`stages_to_plain`.

    Raises:
        ValueError: If it is something else.
    """
    return {path: _stage(stage) for path, stage in as_type(plain, dict[str, list[Any]], "stages").items()}


def _stage(plain: list[Any]) -> Stage:
    if len(plain) != 2:
        raise ValueError(f"Expected two values for every checkpoint but got {len(plain)}.")
    events = as_type(plain[0], list[list[int]], "events")
    for event in events:
        if len(event) != 2:
            raise ValueError(f"Expected two numbers for every event of a checkpoint but got {event}.")
    return Stage(frozenset((event[0], event[1]) for event in events), as_type(plain[1], float, "a ratio"))
