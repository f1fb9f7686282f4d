"""ModelCheckpoint's best model is the best among the most pruned; its files are kept and deleted by its own rules."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from breadth import some_of
from fitting import count_params, make_loader
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from training.best_checkpoint.scripted import (
    SCORES,
    Files,
    Scripted,
    content,
    kept,
    name,
    names,
    params,
    run,
    saving,
    told,
)

from lightning_coreset import CoresetPruningCallback, load_pruned

SLOWLY = partial(pytest.param, marks=pytest.mark.slow)
pytestmark = pytest.mark.filterwarnings("ignore:.*exists and is not empty")


def test_the_best_is_the_best_of_the_most_pruned(tmp_path):
    best = saving(tmp_path)
    trainer, module = run(best)

    assert names(tmp_path) == [name(best.best_model_path)] == ["5-0.85"]
    assert float(best.best_model_score) == pytest.approx(0.85)
    assert params(best.best_model_path) == count_params(module)
    assert count_params(load_pruned(Scripted, best.best_model_path)) == count_params(module) < 0.5 * 1155 + 30
    (tested,) = trainer.test(module, make_loader(8), ckpt_path="best", verbose=False)
    assert tested["units"] == module.net[0].out_features < 32


@pytest.mark.parametrize(
    ("scores", "mode", "expected"),
    [
        SLOWLY((0.9, 0.95, 0.7, 0.8, 0.85, 0.75), "max", "4-0.85"),
        ((0.1, 0.05, 0.3, 0.2, 0.25, 0.15), "min", "5-0.15"),
        SLOWLY((-3.0, -2.0, -9.0, -8.0, -7.0, -9.0), "max", "4--7.00"),
        SLOWLY((0.9, float("inf"), 0.7, 0.8, 0.75, 0.85), "max", "5-0.85"),
    ],
    ids=str,
)
def test_modes_and_scores(tmp_path, scores, mode, expected):
    best = saving(tmp_path, mode=mode)
    run(best, module=Scripted(scores))

    assert names(tmp_path) == [name(best.best_model_path)] == [expected]


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        SLOWLY(1, ["", "0", "1", "2", "3", "4", "5"]),
        # The less pruned ones go one by one, the worst of them first.
        (3, ["", "0", "01", "012", "123", "234", "345"]),
        SLOWLY(4, ["", "0", "01", "012", "0123", "1234", "2345"]),
        (-1, ["", "0", "01", "012", "0123", "01234", "012345"]),
        SLOWLY(0, [""] * 7),
    ],
)
def test_as_many_files_are_kept_as_ever(tmp_path, k, expected):
    best, files = saving(tmp_path, save_top_k=k), Files(tmp_path)
    run(files, best)

    assert ["".join(each[0] for each in seen) for seen in files.seen] == expected
    assert name(best.best_model_path) == ("5-0.85" if k else "")
    epochs = [int(epoch) for epoch in expected[-1]]
    assert kept(best) == {f"{epoch}-{SCORES[epoch]:.2f}": SCORES[epoch] for epoch in epochs}
    if k not in (0, -1):
        assert name(best.kth_best_model_path) == min(kept(best), key=lambda path: (path[0] >= "4", kept(best)[path]))
        assert float(best.kth_value) == pytest.approx(kept(best)[name(best.kth_best_model_path)])


@pytest.mark.slow
def test_files_beyond_the_present_stage_are_not_ranked_by_their_scores(tmp_path):
    """The unpruned ones had by far the best scores, and are the first to go."""
    best, files = saving(tmp_path, save_top_k=2), Files(tmp_path)
    run(files, best, module=Scripted((0.99, 0.98, 0.1, 0.2, 0.15, 0.12)))

    assert ["".join(each[0] for each in seen) for seen in files.seen] == ["", "0", "01", "02", "23", "34", "45"]
    assert name(best.best_model_path) == "4-0.15"


def test_several_callbacks_each_search_for_their_own(tmp_path):
    accuracy, loss = saving(tmp_path / "accuracy"), saving(tmp_path / "loss", monitor="loss", mode="min", save_top_k=2)
    every = ModelCheckpoint(tmp_path / "every", save_top_k=-1, filename="{epoch}", auto_insert_metric_name=False)
    last = ModelCheckpoint(tmp_path / "last", filename="{epoch}", save_last=True, every_n_epochs=2)
    run(accuracy, loss, every, last)

    assert names(tmp_path / "accuracy") == ["5-0.85"]
    assert sorted(each[0] for each in names(tmp_path / "loss")) == ["4", "5"]
    assert names(tmp_path / "every") == list("012345")
    assert names(tmp_path / "last") == ["epoch=5", "last"]


@pytest.mark.slow
def test_the_order_of_callbacks_does_not_matter(tmp_path):
    best = saving(tmp_path)
    callback = CoresetPruningCallback(schedule={2: 0.3, 4: 0.5}, verbose=False)
    trainer = pl.Trainer(
        max_epochs=6, accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[best, callback]
    )
    trainer.fit(Scripted(), make_loader(8), make_loader(8))

    assert names(tmp_path) == ["5-0.85"]


@pytest.mark.parametrize(
    "options", some_of([{}, {"enable_version_counter": False}, {"save_weights_only": True}], {}), ids=str
)
def test_files_of_one_name(tmp_path, options):
    """With one name for all, each best one overwrites the one before."""
    best = saving(tmp_path, filename="best", **options)
    _, module = run(best)

    assert names(tmp_path) == ["best"]
    assert content(best.best_model_path)["epoch"] == 5
    assert params(best.best_model_path) == count_params(module)
    assert kept(best) == {"best": 0.85}


@pytest.mark.slow
def test_files_with_versions(tmp_path):
    best = saving(tmp_path, filename="best", save_top_k=2)
    _, module = run(best)

    assert len(names(tmp_path)) == 2
    assert sorted(content(path)["epoch"] for path in tmp_path.iterdir()) == [4, 5]
    assert content(best.best_model_path)["epoch"] == 5
    assert all(params(path) == count_params(module) for path in tmp_path.iterdir())


@pytest.mark.slow
def test_save_last_is_the_last(tmp_path):
    best = saving(tmp_path, save_last=True)
    run(best, module=Scripted((0.9, 0.95, 0.7, 0.8, 0.85, 0.75)))

    assert names(tmp_path) == ["4-0.85", "last"]
    assert content(tmp_path / "last.ckpt")["epoch"] in (4, 5)  # Lightning 2.6 saves it beside a best one only
    assert content(tmp_path / "last.ckpt")["state_dict"].keys() == content(best.best_model_path)["state_dict"].keys()


def test_true_scores_are_in_checkpoints_and_told_to_loggers(tmp_path):
    told = []

    class Logger(pl.loggers.logger.DummyLogger):
        def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
            told.append((kept(checkpoint_callback), round(float(checkpoint_callback.best_model_score), 4)))

    best = saving(tmp_path, save_top_k=2)
    run(best, logger=Logger())

    assert told[-1] == (kept(best), 0.85) == ({"4-0.75": 0.75, "5-0.85": 0.85}, 0.85)
    assert told[2] == ({"1-0.95": 0.95, "2-0.70": 0.7}, 0.7)
    state = content(best.best_model_path)["callbacks"][best.state_key]
    assert [round(float(score), 4) for score in state["best_k_models"].values()] == [0.75, 0.85]
    assert round(float(state["best_model_score"]), 4) == 0.85
    assert state["best_model_path"] == best.best_model_path


def test_a_file_is_deleted_only_once_the_next_is_saved(tmp_path):
    """The disk is full right after the first event: the unpruned one is still there, and still the best."""

    class Full(ModelCheckpoint):
        def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
            if trainer.current_epoch == 2:
                raise OSError("no space left")
            super()._save_checkpoint(trainer, filepath)

    best = Full(tmp_path, monitor="val_acc", mode="max", filename="{epoch}", auto_insert_metric_name=False)
    with pytest.raises(OSError, match="no space left"):
        run(best)

    assert names(tmp_path) == ["1"]
    assert "_save_topk_checkpoint" not in vars(best)


@pytest.mark.filterwarnings("ignore:Training (ended|has)", "ignore:The best checkpoint of", "ignore:The dirpath has")
def test_files_that_lightning_would_keep_are_kept(tmp_path):
    """That from which a run was resumed, and that of another folder."""
    first = saving(tmp_path / "first")
    run(first, max_epochs=3)
    resumed = saving(tmp_path / "first")
    run(resumed, resume=first.best_model_path)
    assert names(tmp_path / "first") == ["2-0.70", "5-0.85"]

    other = saving(tmp_path / "other")
    run(other, resume=first.best_model_path)
    assert names(tmp_path / "first") == ["2-0.70", "5-0.85"]
    assert names(tmp_path / "other") == [name(other.best_model_path)] == ["5-0.85"]


def test_a_subclass_decides_and_deletes_in_its_own_way(tmp_path):
    removed = []

    class Own(ModelCheckpoint):
        def check_monitor_top_k(self, trainer: pl.Trainer, current: torch.Tensor | None = None) -> bool:
            return trainer.current_epoch != 5 and super().check_monitor_top_k(trainer, current)

        def _remove_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
            removed.append(name(filepath))

    best = Own(tmp_path, monitor="val_acc", mode="max", filename="{epoch}", auto_insert_metric_name=False)
    run(best)

    assert name(best.best_model_path) == "4"
    assert removed == ["0", "1", "2", "3"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fit.ckpt_path=")
def test_other_checkpoints_are_left_alone(tmp_path):
    class Own(pl.callbacks.Checkpoint):
        monitor = "val_acc"

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            assert "_save_topk_checkpoint" not in vars(self)

        def _save_topk_checkpoint(self) -> None: ...

    run(Own(), OnExceptionCheckpoint(tmp_path))


def test_nothing_is_left_at_a_model_checkpoint(tmp_path):
    """Nor at a copy of it that is made in a fit, such as a pickle that is sent to another process."""
    copies: list[ModelCheckpoint] = []

    class Fails(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 3:
                assert "_save_topk_checkpoint" in vars(best)
                copies.extend([copy.deepcopy(best), pickle.loads(pickle.dumps(best))])
                raise RuntimeError("stop here")

    best = saving(tmp_path)
    with pytest.raises(RuntimeError, match="stop here"):
        run(Fails(), best)
    assert "_save_topk_checkpoint" not in vars(best)
    for each in copies:
        assert kept(each) == {"2-0.70": 0.7}
        method: Any = each._save_topk_checkpoint
        assert (method.__self__, method.__func__) == (each, ModelCheckpoint._save_topk_checkpoint)


@pytest.mark.slow
def test_early_stopping_beside_it(tmp_path):
    best = saving(tmp_path)
    stopping = pl.callbacks.EarlyStopping("val_acc", mode="max", patience=2)
    run(stopping, best, module=Scripted((0.9, 0.95, 0.7, 0.6, 0.8, 0.7, 0.6, 0.5)), max_epochs=8)

    assert names(tmp_path) == ["4-0.80"]


@pytest.mark.slow
@pytest.mark.parametrize("average", ["StochasticWeightAveraging", "EMAWeightAveraging"])
def test_averages_beside_it(tmp_path, average):
    if not hasattr(pl.callbacks, average):
        pytest.skip("this version of Lightning has no such callback")
    best = saving(tmp_path)
    make = getattr(pl.callbacks, average)
    averaging = make(swa_lrs=0.01, swa_epoch_start=5) if average.startswith("Stochastic") else make()
    run(averaging, best, module=Scripted((0.9, 0.95, 0.7, 0.8, 0.75, 0.85, 0.85)))

    assert name(best.best_model_path) == "5-0.85"
    assert params(best.best_model_path) <= 600


def test_several_pruning_callbacks(tmp_path):
    """Either's event makes the model more pruned."""
    best, files = saving(tmp_path), Files(tmp_path)
    other = CoresetPruningCallback(schedule={3: 0.55}, only=["net.2"], verbose=False)
    run(
        *(files, best, other),
        module=Scripted((0.9, 0.95, 0.7, 0.6, 0.75, 0.7)),
        pruning={"schedule": {2: 0.3}, "only": ["net.0"]},
    )

    assert ["".join(each[0] for each in seen) for seen in files.seen] == ["", "0", "1", "2", "3", "4", "4"]
    assert len(other.history) == 1


def test_files_of_a_run_without_a_record_are_less_pruned(tmp_path):
    """As of version 0.1: what was saved before the run was resumed does not win by its score."""
    best = saving(tmp_path / "best")
    with told():
        run(best, max_epochs=4)
    checkpoint = torch.load(best.best_model_path, weights_only=True)
    (pruning,) = (state for key, state in checkpoint["callbacks"].items() if key.startswith("CoresetPruning"))
    assert list(pruning.pop("checkpoints")["stages"]) == [best.best_model_path]
    torch.save(checkpoint, tmp_path / "old.ckpt")

    resumed = saving(tmp_path / "best")
    run(resumed, module=Scripted((0.9, 0.95, 0.7, 0.8, 0.3, 0.2)), resume=str(tmp_path / "old.ckpt"))
    assert name(resumed.best_model_path) == "4-0.30"


@pytest.mark.slow
def test_callbacks_of_the_module(tmp_path):
    best = saving(tmp_path)

    class Own(Scripted):
        def configure_callbacks(self) -> list[pl.Callback]:
            return [best]

    run(module=Own(), enable_checkpointing=False)
    assert names(tmp_path) == ["5-0.85"]


@pytest.mark.slow
def test_a_second_fit(tmp_path):
    """The same callbacks in a new Trainer: the best of the last run is one of the unpruned ones then, by its score."""
    best = saving(tmp_path)
    trainer, module = run(best)
    trainer.fit_loop.max_epochs = 7
    module.scores = (*SCORES, 0.9)
    trainer.fit(module, make_loader(8), make_loader(8))
    assert names(tmp_path) == ["6-0.90"]
