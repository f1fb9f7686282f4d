"""While the guard may take an event back, and after it has: which checkpoints are the run's, and which is the best."""

from __future__ import annotations

from typing import Any

import pytest
from breadth import some_of
from fitting import count_params
from training.best_checkpoint.scripted import Files, Scripted, kept, name, names, params, run, saving, told

GUARDED = {"schedule": {2: 0.5}, "max_drop": 0.1, "recover_epochs": 2, "monitor": "val_acc", "eval_batches": 0}
pytestmark = pytest.mark.filterwarnings("ignore:.*could not find the monitored key")
TAKEN_BACK = pytest.mark.filterwarnings("ignore:The pruning event of epoch . is taken back")


def guarded(scores: tuple[float, ...], *checkpoints: Any, max_epochs: int = 6, **pruning: Any) -> Any:
    return run(*checkpoints, module=Scripted(scores), pruning=GUARDED | pruning, max_epochs=max_epochs)


def test_an_accepted_event(tmp_path):
    """The epoch in which it is accepted counts, the one before does not yet."""
    best = saving(tmp_path)
    guarded((0.9, 0.95, 0.7, 0.87, 0.86, 0.86), best)
    assert names(tmp_path) == ["3-0.87"]


@TAKEN_BACK
def test_an_event_that_is_not_accepted_yet_replaces_no_file(tmp_path):
    best = saving(tmp_path, save_top_k=2)
    guarded((0.9, 0.95, 0.7, 0.8, 0.75, 0.8), best, recover_epochs=1, schedule={5: 0.5})
    assert names(tmp_path) == ["0-0.90", "1-0.95"]


def test_an_accepted_event_ranks_what_was_saved_before_it_was(tmp_path):
    """There was room for one that was not accepted yet; of the three, it is not the one to go."""
    best = saving(tmp_path, save_top_k=3)
    guarded((0.9, 0.95, 0.8, 0.86), best, max_epochs=4)
    assert names(tmp_path) == ["1-0.95", "2-0.80", "3-0.86"]
    assert name(best.best_model_path) == "3-0.86"


def test_an_event_that_is_accepted_where_nothing_is_saved(tmp_path):
    best = saving(tmp_path, save_top_k=3, every_n_epochs=2)
    guarded((0.9, 0.95, 0.95, 0.8, 0.9), best, max_epochs=5, schedule={3: 0.5})
    assert names(tmp_path) == ["1-0.95", "3-0.80"]
    assert name(best.best_model_path) == "3-0.80"
    assert float(best.best_model_score) == pytest.approx(0.8)


@TAKEN_BACK
@pytest.mark.filterwarnings("ignore:The best checkpoint of")
@pytest.mark.parametrize("monitor", some_of(["step", "epoch"], "step"))
def test_the_latest_files_are_the_latest(tmp_path, monitor):
    """Steps and epochs are no scores: also while an event is not accepted, and after it was taken back."""
    best, files = saving(tmp_path, monitor=monitor, save_top_k=2, filename="{epoch}"), Files(tmp_path)
    guarded((0.9, 0.95, 0.7, 0.7, 0.89, 0.88), files, best)
    assert ["".join(seen) for seen in files.seen] == ["", "0", "01", "12", "23", "34", "45"]


@TAKEN_BACK
def test_an_event_that_was_taken_back(tmp_path):
    best = saving(tmp_path)
    _, module = guarded((0.9, 0.95, 0.7, 0.7, 0.89, 0.88), best)

    assert names(tmp_path) == [name(best.best_model_path)] == ["1-0.95"]
    assert params(best.best_model_path) == count_params(module)


@TAKEN_BACK
def test_files_of_an_event_that_was_taken_back_go_first(tmp_path):
    """There was room for both of them; two of the restored model take their places, although their scores are lower."""
    best, files = saving(tmp_path, save_top_k=4), Files(tmp_path)
    guarded((0.9, 0.95, 0.84, 0.84, 0.7, 0.65), files, best)

    assert kept(best) == {"0-0.90": 0.9, "1-0.95": 0.95, "4-0.70": 0.7, "5-0.65": 0.65}
    assert name(best.best_model_path) == "1-0.95"
    assert files.scores == pytest.approx([0.9, *[0.95] * 5])


@pytest.mark.slow
@TAKEN_BACK
@pytest.mark.filterwarnings("ignore:Training ended before", "ignore:The best checkpoint")
def test_a_smaller_event_in_place_of_the_one_that_was_taken_back(tmp_path):
    best = saving(tmp_path)
    _, module = guarded((0.9, 0.95, 0.7, 0.7, 0.86, 0.87), best, on_failure="halve", recover_epochs=1)

    assert params(best.best_model_path) == count_params(module) < 1155
    assert name(best.best_model_path)[0] in "45"


@TAKEN_BACK
def test_a_score_of_an_event_that_was_taken_back_is_not_that_of_the_restored_model(tmp_path):
    """Validation in every second epoch; what is saved in between has no score of its own."""
    best = saving(tmp_path, save_on_train_epoch_end=True, save_top_k=-1, every_n_epochs=1)
    module = Scripted((0.9, 0.95, 0.5, 0.6, 0.5, 0.94))
    run(best, module=module, pruning=GUARDED, check_val_every_n_epoch=2)

    assert names(tmp_path) == ["1-0.95", "2-nan", "3-0.60", "4-nan", "5-0.94"]
    assert name(best.best_model_path) == "1-0.95"


@pytest.mark.slow
@TAKEN_BACK
def test_an_event_that_is_taken_back_at_the_end(tmp_path):
    best = saving(tmp_path, every_n_epochs=3)
    with pytest.warns(UserWarning, match=r"0 pruned|Its pruning event was taken back"):
        _, module = guarded((0.9, 0.95, 0.7, 0.7, 0.7, 0.7), best, recover_epochs=9)

    assert count_params(module) == 1155
    assert names(tmp_path) == ["2-0.70"]


def test_an_event_that_training_had_no_time_to_judge(tmp_path):
    """It is kept, and has no checkpoint with a score."""
    best = saving(tmp_path, save_on_train_epoch_end=True)
    pruning = GUARDED | {"schedule": {4: 0.5}}
    with told() as warned:
        run(best, pruning=pruning, check_val_every_n_epoch=2, max_epochs=5)

    assert any("before a validation could measure" in each for each in warned)
    less = f"{best.best_model_path}, has 0.00% pruned where 50.00% was requested. None was saved with a score"
    assert any(less in each for each in warned)
    assert name(best.best_model_path) == "1-0.95"
