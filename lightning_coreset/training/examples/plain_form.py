"""Examples as plain data for checkpoints, so that a resumed run can read the structure before its first batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lightning_coreset.plain_data import as_type
from lightning_coreset.structure import Example
from lightning_coreset.training.examples.candidate import Candidate, Origin, Shows, always
from lightning_coreset.training.examples.forward import ForwardRun
from lightning_coreset.training.examples.moment import Moment
from lightning_coreset.training.examples.steps import StepRun, recorded_calls

_CALLS = "calls"
_FORWARD = "forward"


def to_plain(candidates: Iterable[Candidate], most: int) -> list[dict[str, Any]] | None:
    """Candidates as plain data.

    Those that a run has anyway are left out: the user's example inputs, and the first step at an event.

    Args:
        candidates: Candidates.
        most: How many bytes their tensors may have together.

    Returns:
        The data; ``None`` if it is too much, or a batch is of a kind that a checkpoint cannot hold safely.
    """
    plain = [_candidate_to_plain(one) for one in candidates if one.origin not in (Origin.GIVEN, Origin.PRESENT)]
    sizes = [bytes_of(one) for one in plain]
    if any(size is None for size in sizes) or sum(size or 0 for size in sizes) > most:
        return None
    return plain


def read_candidates(plain: Any) -> list[Candidate]:
    """The inverse of :func:`to_plain`.

    Raises:
        ValueError: If it is something else.
    """
    return [_candidate(as_type(one, dict[str, Any], "an example")) for one in as_type(plain, list[Any], "examples")]


def _candidate_to_plain(candidate: Candidate) -> dict[str, Any]:
    example, run = candidate.example, candidate.example.run
    needed = example.needed
    plain: dict[str, Any] = {
        "title": candidate.title,
        "origin": int(candidate.origin),
        "inputs": example.inputs,
        "whole": candidate.whole,
        "batch_size": example.batch_size,
        "modes": list(example.modes),
        "shows": sorted(needed.tensors) if isinstance(needed, Shows) else None,
        "is_idle": candidate.is_idle,
        "was_tried": candidate.was_tried,
    }
    if isinstance(run, StepRun):
        moment = None if run.moment is None else run.moment.to_plain()
        return plain | {
            "run": run.hook,
            "batch_idx": run.batch_idx,
            "dataloader_idx": run.dataloader_idx,
            "calls_forward": run.calls_forward,
            "moment": moment,
        }
    if isinstance(run, ForwardRun):
        return plain | {"run": _FORWARD, "way": run.way}
    return plain | {"run": _CALLS}


def _candidate(plain: dict[str, Any]) -> Candidate:
    text = as_type(plain.get("run"), str, "run")
    if text == _FORWARD:
        run: Any = ForwardRun(as_type(plain.get("way"), int | None, "way"))
    elif text == _CALLS:
        run = recorded_calls
    else:
        moment = plain.get("moment")
        run = StepRun(
            text,
            as_type(plain.get("batch_idx"), int, "batch_idx"),
            as_type(plain.get("dataloader_idx"), int | None, "dataloader_idx"),
            None if moment is None else Moment.from_plain(moment),
        )
        run.calls_forward = as_type(plain.get("calls_forward"), bool, "calls_forward")
    shows = as_type(plain.get("shows"), list[str] | None, "shows")
    modes = as_type(plain.get("modes"), tuple[str, ...], "modes")
    origin = as_type(plain.get("origin"), int, "origin")
    if not {*modes} <= {"evaluation", "training"} or origin not in [*Origin] or not text.isidentifier():
        raise ValueError(f"Expected an example of a step but got {text!r} in modes {modes} of origin {origin}.")
    example = Example(
        plain.get("inputs"),
        run,
        as_type(plain.get("batch_size"), int, "batch_size"),
        modes=modes,  # type: ignore[arg-type]
        needed=always if shows is None else Shows(frozenset(shows)),
    )
    flags = {name: as_type(plain.get(name), bool, name) for name in ("is_idle", "was_tried")}
    return Candidate(as_type(plain.get("title"), str, "title"), example, Origin(origin), plain.get("whole"), **flags)


def bytes_of(tree: Any) -> int | None:
    """The bytes of all tensors in a nest; ``None`` if it holds anything but tensors and plain data."""
    if isinstance(tree, dict) and type(tree) is dict:
        parts = [*map(bytes_of, tree.keys()), *map(bytes_of, tree.values())]
    elif type(tree) in (list, tuple):
        parts = [bytes_of(one) for one in tree]
    elif type(tree) is Tensor:
        return tree.numel() * tree.element_size() if tree.layout is torch.strided else None
    else:
        return 0 if tree is None or type(tree) in (bool, int, float, complex, str) else None
    return None if any(part is None for part in parts) else sum(part or 0 for part in parts)
