"""The interface of methods: what the planner asks, what it accepts, and what else may be given as a method."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lightning_coreset import Importance, plan_pruning, prune
from lightning_coreset.methods import (
    Magnitude,
    Method,
    Random,
    RankingMethod,
    Selection,
    Sensitivity,
    as_method,
    register_method,
)

HALF = {"0": 0.5}
X = torch.randn(2, 4)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))


def kept(method, ratio=HALF, **options) -> dict[str, tuple[int, ...]]:
    return {group.name: group.kept for group in plan_pruning(mlp(), X, ratio, method=method, **options).groups}


class Last(Method):
    """The last channels."""

    def select(self, group, size):
        return Selection(torch.arange(group.size - size, group.size))


def test_a_method_decides_what_stays_and_gives_the_plan_its_name():
    model = mlp()
    plan = prune(model, X, {"0": 0.5, "2": 0.5}, method=Last())
    assert [(group.kept, group.method) for group in plan.groups] == [((4, 5, 6, 7), "last"), ((3, 4, 5), "last")]
    assert model[2].weight.shape == (3, 4)


def test_weights_multiply_what_reads_a_channel():
    class Doubled(Last):
        def select(self, group, size):
            kept = super().select(group, size).kept
            return Selection(kept, weights=torch.full((len(kept),), 2.0))

    model = mlp()
    before = copy.deepcopy(model)
    prune(model, X, HALF, method=Doubled())
    torch.testing.assert_close(model[2].weight, 2 * before[2].weight[:, 4:])
    torch.testing.assert_close(model[0].weight, before[0].weight[4:])


def test_updates_replace_whole_tensors():
    class Constant(Last):
        reads_full_width = True

        def select(self, group, size):
            (consumer,) = group.group.by_role("consumer")
            ones = torch.ones_like(group.tensors[consumer.name])
            return Selection(super().select(group, size).kept, updates={consumer.name: ones})

    model = mlp()
    prune(model, X, {"0": 0.5, "2": 0.5}, method=Constant())
    assert torch.equal(model[2].weight, torch.ones(3, 4))
    assert torch.equal(model[4].weight, torch.ones(2, 3))


@dataclass(frozen=True)
class Answers(Method):
    """Whatever it is told to."""

    answer: object
    full: bool = True

    @property
    def reads_full_width(self):
        return self.full

    def select(self, group, size):
        return self.answer


EIGHT = torch.arange(8)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answers(EIGHT[:4]), r"return a Selection for group '0' but got tensor\(\[0"),
        (Answers(Selection(EIGHT[:0])), r"return 1 to 8 kept channels as int64 .* but got \(0,\)"),
        (Answers(Selection(EIGHT[:4].int())), r"kept channels as int64 .* of torch.int32"),
        (Answers(Selection(EIGHT[None])), r"kept channels as int64 .* but got \(1, 8\)"),
        (Answers(Selection(torch.arange(9))), r"1 to 8 kept channels .* but got \(9,\)"),
        (Answers(Selection(torch.tensor([1, 1]))), r"ascending channels below 8 .* \[1, 1\]"),
        (Answers(Selection(torch.tensor([3, 1]))), r"ascending channels below 8 .* \[3, 1\]"),
        (Answers(Selection(torch.tensor([-1, 3]))), r"ascending channels below 8 .* \[-1, 3\]"),
        (Answers(Selection(torch.tensor([3, 8]))), r"ascending channels below 8 .* \[3, 8\]"),
        (Answers(Selection(EIGHT[:4], weights=torch.ones(3))), r"a weight for each of 4 kept .* \(3,\)"),
        (Answers(Selection([0, 1])), r"a tensor of kept channels .* but got \[0, 1\]"),
        (Answers(Selection(EIGHT[:2], weights=[1.0, 1.0])), r"a weight for each of 2 .* \[1.0, 1.0\]"),
        (Answers(Selection(EIGHT[:2], weights=torch.tensor([1.0, torch.nan]))), "finite weights .* NaN or infinity"),
        (Answers(Selection(EIGHT[:4], updates={"2.bias": torch.full((6,), torch.inf)})), "a finite new '2.bias'"),
        (Answers(Selection(EIGHT[:4], updates={"9.weight": X})), r"a new '9.weight' of its present shape None"),
        (Answers(Selection(EIGHT[:4], updates={"2.weight": X})), r"a new '2.weight' of its present shape \(6, 8\)"),
        (Answers(Selection(EIGHT[:4], updates={"2.weight": X}), full=False), "no updates, since its reads_full_width"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused_and_nothing_is_changed(answer, message):
    model = mlp()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=message):
        prune(model, X, HALF, method=answer)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), before.parameters(), strict=True))


def test_warnings_of_a_method_reach_the_user():
    class Loud(Last):
        def warnings(self, selections):
            return [f"{name} keeps {len(selection.kept)}" for name, selection in selections.items()]

    with pytest.warns(UserWarning, match="0 keeps 4") as caught:
        prune(mlp(), X, HALF, method=Loud())
    assert caught[0].filename == __file__


# ---- subclasses of our own methods


def test_a_subclass_is_not_taken_for_its_base():
    class First(Magnitude):
        def scores(self, group):
            return -torch.arange(group.size).double()

    plan = plan_pruning(mlp(), X, HALF, method=First())
    assert (plan.groups[0].kept, plan.groups[0].method) == ((0, 1, 2, 3), "first (L2)")


def test_a_method_that_is_called_by_nobody_is_refused():
    class Called(Magnitude):
        def __call__(self, group, tensors):
            raise AssertionError

    with pytest.raises(ValueError, match="Called defines __call__, which is never called"):
        as_method(Called())


# ---- importance


def positions(group, tensors):
    return torch.arange(group.size)


class Taylor:
    """An object that is called, with a state."""

    def __call__(self, group, tensors):
        return tensors[f"{group.name}.weight"].sum(dim=1)


@pytest.mark.parametrize("method", [positions, Importance(positions)])
def test_a_function_scores_channels(method):
    plan = plan_pruning(mlp(), X, HALF, method=method)
    assert (plan.groups[0].kept, plan.groups[0].method) == ((4, 5, 6, 7), "importance (positions)")


def test_an_object_scores_channels_from_the_tensors():
    model = mlp()
    plan = plan_pruning(model, X, HALF, method=Taylor())
    best = model[0].weight.sum(dim=1).topk(4).indices.sort().values
    assert plan.groups[0].kept == tuple(best.tolist())
    assert plan.groups[0].method == "importance (Taylor)"


def test_scores_of_all_groups_are_compared_by_the_global_allocation():
    def scores(group, tensors):
        return torch.arange(group.size) + {"0": 0, "2": 100}[group.name]

    with pytest.warns(UserWarning, match="leaves next to nothing of these layers"):  # the hazard of global scores
        chosen = kept(Importance(scores), 0.5, unit="channels", allocation="global")

    assert chosen == {"0": (7,), "2": (0, 1, 2, 3, 4, 5)}


def test_a_later_group_is_scored_as_the_earlier_ones_left_it():
    seen = {}

    def width(group, tensors):
        seen[group.name] = tuple(tensors["2.weight"].shape)
        return torch.ones(group.size)

    plan_pruning(mlp(), X, {"0": 0.5, "2": 0.5}, method=width)
    assert seen == {"0": (6, 8), "2": (6, 4)}


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda group, tensors: torch.ones(3), r"of group '0' to be a tensor of shape \(8,\), .* but got \(3,\)"),
        (lambda group, tensors: [1.0] * 8, r"of shape \(8,\), a score for each channel, but got list"),
        (lambda group, tensors: torch.full((8,), torch.nan), "of group '0' to be finite"),
    ],
)
def test_scores_that_do_not_fit_are_refused(score, message):
    with pytest.raises(ValueError, match=message):
        plan_pruning(mlp(), X, HALF, method=Importance(score))


# ---- names


def test_a_registered_name_stands_for_its_method_until_it_is_removed():
    registration = register_method("last", Last)
    assert kept("last") == {"0": (4, 5, 6, 7)}
    registration.remove()
    with pytest.raises(ValueError, match="Expected method to be one of"):
        as_method("last")


@pytest.mark.parametrize(
    ("name", "build", "message"),
    [
        ("magnitude", Last, "name of a new method but got 'magnitude'"),
        ("", Last, "name of a new method but got ''"),
        ("mine", Last(), "class or function that makes the method 'mine'"),
    ],
)
def test_wrong_registrations(name, build, message):
    with pytest.raises(ValueError, match=message):
        register_method(name, build)


def test_a_registered_function_has_to_make_a_method():
    with (
        register_method("mine", lambda: 3),
        pytest.raises(ValueError, match="'mine' to be built as a Method but got 3"),
    ):
        as_method("mine")


@pytest.mark.parametrize("value", ["sensitivty", None, 3, Magnitude, {"p": 2}])
def test_what_is_no_method_is_refused(value):
    with pytest.raises(ValueError, match="Expected method to be one of"):
        as_method(value)


@pytest.mark.parametrize("method", [Last(), Sensitivity()])
def test_the_global_allocation_needs_a_method_that_ranks(method):
    with pytest.raises(ValueError, match=f"ranks channels.*but got {type(method).__name__}"):
        plan_pruning(mlp(), X, 0.5, method=method, allocation="global")


def test_a_method_without_scores_says_so():
    with pytest.raises(NotImplementedError, match="Last does not rank channels"):
        Last().scores(None)


def test_ours_are_methods():
    assert isinstance(Random(), RankingMethod)
    assert as_method("random") == Random()
