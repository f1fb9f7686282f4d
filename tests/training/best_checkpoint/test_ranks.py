"""The order of checkpoints: by events first, then by score."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_coreset.training.best_checkpoint.choice import BestCheckpoints
from lightning_coreset.training.best_checkpoint.ranks import Stage, best_of, stand_ins, worst_of


def stage(*places: int) -> Stage:
    return Stage(frozenset((0, place) for place in places), len(places) / 10)


def order(scores: dict[str, float], stages: dict[str, Stage], mode: str, now: Stage, accepted: Stage) -> str:
    """The names from best to worst."""
    left = {path: torch.tensor(score) for path, score in scores.items()}
    left |= stand_ins(left, stages, mode, now, accepted)  # type: ignore[arg-type]
    found = ""
    while left:
        found += best_of(left, mode)  # type: ignore[arg-type]
        del left[found[-1]]
    return found


@pytest.mark.parametrize("mode", ["max", "min"])
def test_events_come_before_scores(mode):
    sign = 1 if mode == "max" else -1
    stages = {"a": stage(), "b": stage(), "c": stage(0), "d": stage(0), "e": stage(0, 1), "f": stage(0, 1)}
    scores = {path: sign * score for path, score in zip("abcdef", (9.0, 8.0, 1.0, 7.0, 0.1, 0.2), strict=True)}

    assert order(scores, stages, mode, stage(0, 1), stage(0, 1)) == "fedcab"
    # The last event may be taken back: those from before it are better until then.
    assert order(scores, stages, mode, stage(0, 1), stage(0)) == "dcabfe"
    # It was taken back.
    assert order(scores, stages, mode, stage(0), stage(0)) == "dcabfe"
    # Another event took its place.
    assert order(scores, stages | {"e": stage(0, 2)}, mode, stage(0, 2), stage(0, 2)) == "edcabf"


def test_unknown_checkpoints_are_less_pruned_than_all_others():
    scores = {"a": 0.9, "b": 0.5, "c": 0.4}
    assert order(scores, {"b": stage(), "c": stage(0)}, "max", stage(0), stage(0)) == "cba"
    assert order(scores, {"b": stage(), "c": stage(0)}, "max", stage(0), stage()) == "bac"


@pytest.mark.parametrize("mode", ["max", "min"])
def test_what_has_no_score_is_the_worst_of_all(mode):
    unknown = -math.inf if mode == "max" else math.inf
    stages = {"a": stage(), "b": stage(), "c": stage(0)}
    for accepted in (stage(), stage(0)):
        assert order({"a": unknown, "b": 0.0, "c": unknown}, stages, mode, stage(0), accepted)[0] == "b"


def test_of_equals_the_first_as_model_checkpoint_does():
    scores = {"a": torch.tensor(1.0), "b": torch.tensor(1.0)}
    assert best_of(scores, "max") == worst_of(scores, "max") == max(scores, key=scores.get) == "a"


def test_scores_keep_their_device_and_large_files_their_order():
    scores = {str(place): torch.tensor(float(place), dtype=torch.float64) for place in range(2000)}
    found = stand_ins(scores, {}, "max", stage(0), stage(0))
    assert sorted(found, key=found.__getitem__) == [str(place) for place in range(2000)]
    assert all(math.isfinite(score) for score in found.values())


@pytest.mark.parametrize(
    "plain",
    [
        3,
        {"stages": 3},
        {"stages": {"a": 3}},
        {"stages": {"a": [[[0, 1]]]}},
        {"stages": {"a": [[[0]], 0.5]}},
        {"stages": {"a": [[["x", 1]], 0.5]}},
        {"stages": {"a": [[[0, 1]], "half"]}},
        {"changed_in": "now"},
    ],
    ids=str,
)
def test_damaged_states_are_refused(plain):
    with pytest.raises(ValueError, match="Expected"):
        BestCheckpoints.read(plain)


def test_a_state_comes_back():
    one, other = BestCheckpoints("any"), BestCheckpoints("most_pruned")
    one.load({"a": stage(0, 2), "b": Stage(frozenset({(0, 1), (1, 0)}), 0.3)}, 4)
    other.load(*other.read(one.to_dict()))
    assert (
        other.to_dict()
        == one.to_dict()
        == {
            "stages": {"a": [[[0, 0], [0, 2]], 0.2], "b": [[[0, 1], [1, 0]], 0.3]},
            "changed_in": 4,
        }
    )
    assert other.read({}) == ({}, None)
