"""Train a model of another project with the callback, then save and load it as that project does."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_coreset import CoresetPruningCallback, resizable

ASKED = 0.5
NEAR = 0.03
"""A ratio in whole channels and heads of a small network is no closer than this."""

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
"""What every Trainer is told, also those that projects make."""


@dataclass(frozen=True)
class Trial:
    """How one model of a project is trained, used, saved and loaded.

    Attributes:
        project: The name of the package.
        model: The model's.
        fit: Trains it with a callback, and returns what has been trained.
        network: The network in that.
        predict: What it makes of samples that are always the same.
        save: Saves it as the project does.
        load: Loads it as the project does.
        callback: The callback that ran, where the project copies the one that it is given.
        loads: How it is loaded: ``"by itself"``, or ``"resizable()"``.
        refuses: Whether the ratio is refused, in words, so that the default is what is tried.
        notes: What else is to be said.
        options: Arguments of the callback.
    """

    project: str
    model: str
    fit: Callable[[CoresetPruningCallback], Any]
    network: Callable[[Any], nn.Module]
    predict: Callable[[Any], Any]
    save: Callable[[Any, Path], Any]
    load: Callable[[Path], Any]
    callback: Callable[[Any], CoresetPruningCallback] | None = None
    loads: str = "resizable()"
    refuses: str = ""
    notes: str = ""
    options: tuple[tuple[str, Any], ...] = ()


def check(trial: Trial, path: Path, record: Callable[[str, object], None]) -> None:
    """Prune, and load what was saved; the row of the table in ``docs/projects.md`` is recorded for the summary."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    trained, callback = _fit(trial)
    reached = callback.plans[-1].sparsity
    assert trial.refuses or abs(reached - ASKED) < NEAR, (reached, callback.plans[-1].skipped)
    assert reached > 0

    before = _numbers(trial.predict(trained))
    assert np.isfinite(before).all()
    trial.save(trained, path)
    if trial.loads == "by itself":
        loaded = trial.load(path)
    else:
        with pytest.raises(Exception, match=r"(?i)size mismatch|missing key|shape"):
            trial.load(path)
        with resizable():
            loaded = trial.load(path)
    np.testing.assert_array_equal(_numbers(trial.predict(loaded)), before)

    pruned = f"{reached:.3f}" + (f" by default; {ASKED} is refused: {trial.refuses}" if trial.refuses else "")
    row = (f"{trial.project} {version(trial.project)}", trial.model, pruned, trial.loads, trial.notes)
    record("client", "| " + " | ".join(row) + " |")


def _fit(trial: Trial) -> tuple[Any, CoresetPruningCallback]:
    """What was trained, and the callback that ran; by default ratio where the one asked for is refused in words."""

    def fit(ratio: float | None) -> tuple[Any, CoresetPruningCallback]:
        torch.manual_seed(0)
        options = dict(trial.options)
        callback = CoresetPruningCallback(None if "schedule" in options else ratio, verbose=False, **options)
        trained = trial.fit(callback)
        return trained, callback if trial.callback is None else trial.callback(trained)

    if not trial.refuses:
        return fit(ASKED)
    with pytest.raises(ValueError, match=trial.refuses) as refusal:
        fit(ASKED)
    assert str(refusal.value).startswith("Expected pruning_ratio to be at most ")
    with pytest.warns(UserWarning, match="No pruning_ratio was given"):
        return fit(None)


def _numbers(values: Any) -> np.ndarray:
    return np.asarray(values.detach() if isinstance(values, torch.Tensor) else values, dtype=float)


def refused(fit: Callable[[CoresetPruningCallback], Any], words: str) -> None:
    """A model of which nothing can go: a ratio is refused in words, and the default trains without pruning."""
    with pytest.raises(ValueError, match=words):
        fit(CoresetPruningCallback(ASKED, verbose=False))
    with pytest.warns(UserWarning, match="Nothing is pruned"):
        fit(callback := CoresetPruningCallback(verbose=False))
    assert not callback.plans
