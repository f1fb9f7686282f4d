"""Where the best checkpoint is less pruned than was asked for, that is said: at the end, and when it is loaded."""

from __future__ import annotations

import warnings
from functools import partial

import lightning.pytorch as pl
import pytest
from breadth import some_of
from fitting import count_params, make_loader, make_trainer
from training.best_checkpoint.scripted import Scripted, name, names, run, saving, told

from lightning_coreset import CoresetPruningCallback, _compat


def test_any_is_lightnings_own_choice_and_says_so(tmp_path):
    best = saving(tmp_path)
    with told() as warned:
        trainer, module = run(best, pruning={"best_checkpoint": "any"})

    assert names(tmp_path) == [name(best.best_model_path)] == ["1-0.95"]
    less = "has 0.00% pruned where 50.00% was requested"
    assert warned == [
        f"The best checkpoint of ModelCheckpoint(monitor='val_acc'), {best.best_model_path}, {less}. "
        "best_checkpoint='any' compares scores alone. With 'most_pruned', the default, the best is one of the most "
        "pruned checkpoints."
    ]
    loaded = (
        f"A model that {less} was loaded: {best.best_model_path}, the best checkpoint of "
        "ModelCheckpoint(monitor='val_acc')."
    )
    for call in (partial(trainer.test, verbose=False), partial(trainer.validate, verbose=False), trainer.predict):
        with told() as warned:
            call(module, make_loader(8), ckpt_path="best")
        assert loaded in warned
        with told() as warned:
            call(module, make_loader(8))
        assert loaded not in warned
    assert count_params(module) == 1155


def test_nothing_is_said_of_the_best_of_the_most_pruned(tmp_path):
    trainer, module = run(saving(tmp_path))
    trainer.test(module, make_loader(8), ckpt_path="best", verbose=False)
    trainer.test(module, make_loader(8), verbose=False)


@pytest.mark.filterwarnings("ignore:Training ended before", "ignore:Training has 4 epochs")
@pytest.mark.parametrize("options", some_of([{"max_epochs": 4}, {}], {}), ids=["too short", "stopped"])
def test_training_that_ends_before_the_last_event(tmp_path, options):
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            trainer.should_stop = trainer.current_epoch == 3

    best = saving(tmp_path)
    with pytest.warns(UserWarning, match=r"has 3\d\.\d\d% pruned where 50\.00% was requested\. Training ended before"):
        run(Stop(), best, **options)
    assert name(best.best_model_path) == "3-0.80"


@pytest.mark.parametrize("monitor", some_of(["val_acc", None], None))
def test_no_checkpoint_after_the_last_event(tmp_path, monitor):
    best = saving(tmp_path, monitor=monitor, every_n_epochs=3)
    told = (
        r"has 3\d\.\d\d% pruned where 50\.00% was requested\. None was saved with a score of the model after its last"
    )
    with pytest.warns(UserWarning, match=told):
        run(best, max_epochs=5)
    assert names(tmp_path)[0].startswith("2-")


@pytest.mark.slow
def test_a_trainer_that_another_one_trained_for(tmp_path):
    """In another process it is not known what was asked for, and nothing is said."""
    best = saving(tmp_path)
    run(best)
    fresh = make_trainer(CoresetPruningCallback(0.5))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")
        fresh.test(Scripted(), make_loader(8), ckpt_path=best.best_model_path, verbose=False)


@pytest.mark.slow
def test_without_the_method_of_lightning_the_score_alone_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(_compat, "_TOP_K_METHOD", "_of_another_name")
    best = saving(tmp_path)
    with told() as warned:
        run(best)

    no_effect = "best_checkpoint='most_pruned' has no effect on ModelCheckpoint(monitor='val_acc'): this version of"
    assert any(each.startswith(no_effect) for each in warned)
    assert names(tmp_path) == ["1-0.95"]


@pytest.mark.slow
def test_two_pruning_callbacks_say_it_once(tmp_path):
    other = CoresetPruningCallback(schedule={3: 0.55}, only=["net.2"], best_checkpoint="any", verbose=False)
    pruning = {"schedule": {2: 0.3}, "only": ["net.0"], "best_checkpoint": "any"}
    with told() as warned:
        run(saving(tmp_path), other, pruning=pruning)
    assert sum(each.startswith("The best checkpoint of") for each in warned) == 1
