"""A run that was killed and resumed keeps the files, scores and best model of the one that nobody killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from breadth import some_of
from fitting import assert_same
from lightning.pytorch.callbacks import ModelCheckpoint
from training.best_checkpoint.scripted import Scripted, content, kept, name, names, params, run, saving

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*exists and is not empty",
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",
    "ignore:The pruning event of epoch . is taken back",
    "ignore:.*could not find the monitored key",
)
SCORES = (0.9, 0.95, 0.7, 0.7, 0.89, 0.88, 0.9, 0.85)
GUARD = {"max_drop": 0.1, "monitor": "val_acc", "eval_batches": 0}
RUNS: dict[str, dict[str, Any]] = {
    "epochs": {"saving": {"save_top_k": 2}},
    "steps": {
        "saving": {"every_n_train_steps": 1, "save_top_k": 3, "filename": "{step}-{val_acc:.2f}"},
        "pruning": {"interval": "step", "schedule": {9: 0.3, 18: 0.5}},
        "val_check_interval": 1,
    },
    "seldom": {"saving": {"save_on_train_epoch_end": True}, "check_val_every_n_epoch": 2},
    "guarded": {"saving": {"save_top_k": 3}, "pruning": GUARD | {"schedule": {2: 0.3, 5: 0.5}}},
    "by score alone": {"saving": {"save_top_k": 2}, "pruning": {"best_checkpoint": "any"}},
}


class Killed(Exception):  # noqa: N818
    pass


class Kill(pl.Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.at:
            raise Killed


def train(
    folder: Path, *others: pl.Callback, saving_: dict[str, Any], resume: str | None = None, **options: Any
) -> Any:
    best = saving(folder / "best", **saving_)
    steps = ModelCheckpoint(folder / "steps", every_n_train_steps=1, filename="step")
    epochs = ModelCheckpoint(folder / "steps", every_n_epochs=1, filename="epoch")
    torch.manual_seed(0)
    trainer, module = run(best, steps, epochs, *others, module=Scripted(SCORES), max_epochs=8, resume=resume, **options)
    return best, trainer, module


def outcome(best: ModelCheckpoint, trainer: pl.Trainer, folder: Path) -> dict[str, Any]:
    trainer.save_checkpoint(folder / "end.ckpt")
    states = content(folder / "end.ckpt")["callbacks"]
    (pruning,) = (state for key, state in states.items() if key.startswith("CoresetPruning"))
    stages = {name(path): stage for path, stage in pruning["checkpoints"]["stages"].items()}
    return {
        "files": {path: params(folder / "best" / f"{path}.ckpt") for path in names(folder / "best")},
        "scores": kept(best),
        "best": (name(best.best_model_path), float(best.best_model_score)),
        "worst": (name(best.kth_best_model_path), float(best.kth_value)),
        "stages": stages,
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    runs: dict[str, Any] = {}

    def of(kind: str) -> Any:
        if kind not in runs:
            folder, options = tmp_path_factory.mktemp("whole"), dict(RUNS[kind])
            best, trainer, module = train(folder, saving_=options.pop("saving"), **options)
            runs[kind] = outcome(best, trainer, folder), module.state_dict()
        return runs[kind]

    return of


TIMES = (4, 8, 9, 10, 11, 12, 16, 18, 19, 20, 21, 24, 28, 31)
FAST = [("steps", 10), ("guarded", 12)]


@pytest.mark.filterwarnings("ignore:The best checkpoint of")
@pytest.mark.parametrize(
    "case",
    some_of([(kind, at) for kind in RUNS for at in TIMES if kind != "seldom" or at % 4], *FAST),
    ids=str,
)
def test_killed_at_any_step(whole, tmp_path, case):
    kind, at = case
    options = dict(RUNS[kind])
    named = options.pop("saving")
    with pytest.raises(Killed):
        train(tmp_path, Kill(at), saving_=named, **options)
    # Of the end of an epoch, since Lightning leaves out the validation after a checkpoint of its last step.
    last = tmp_path / "steps" / ("step.ckpt" if at % 4 else "epoch.ckpt")
    assert content(last)["global_step"] == at
    best, trainer, module = train(tmp_path, saving_=named, resume=str(last), **options)

    expected, weights = whole(kind)
    assert outcome(best, trainer, tmp_path) == expected
    if at % 4 == 0:
        assert_same(module.state_dict(), weights)
