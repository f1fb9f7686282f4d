"""Without a Trainer: layers that the example inputs do not run keep the channels that they could read or write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_coreset import plan_pruning, prune, sensitivity_scan

HELD = (
    r"'experts\.\d', .* did not run on the example inputs, and could read or write the channels of "
    r"'first', 'experts\.1', by width and place: these stay\. Give example inputs that run them, or say "
    r"never_run=\[\.\.\.\]\."
)


class Experts(nn.Module):
    """Each row goes to the layer of its task."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 16), nn.Linear(12, 3)
        self.experts = nn.ModuleList(nn.Linear(16, 12) for _ in range(4))

    def forward(self, x: Tensor, tasks: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        out = hidden.new_zeros(len(x), self.last.in_features)
        for number, expert in enumerate(self.experts):
            rows = (tasks == number).nonzero().flatten()
            if len(rows):
                out = out.index_copy(0, rows, expert(hidden[rows]))
        return self.last(torch.relu(out))


ALL = (torch.randn(8, 6), torch.arange(8) % 4)
ONE = (torch.randn(8, 6), torch.full((8,), 1))

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "prune": lambda model, x, **options: prune(model, x, 0.1, **options),
    "plan_pruning": lambda model, x, **options: plan_pruning(model, x, 0.1, **options),
    "sensitivity_scan": lambda model, x, **options: sensitivity_scan(model, x, lambda _: 0.0, **options),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_layers_that_get_no_row_keep_their_inputs(name):
    model = Experts()
    with (
        pytest.warns(UserWarning, match=HELD),
        pytest.raises(ValueError, match=r"first, experts\.1: each could be read or written by experts\.0"),
    ):
        FUNCTIONS[name](model, ONE)
    assert model(*ALL).shape == (8, 3)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_never_run_holds_nothing(name):
    model = Experts()
    FUNCTIONS[name](model, ONE, never_run=["experts.0", "experts.2", "experts.3"], only=["first"])
    if name == "prune":
        assert model.first.out_features == model.experts[1].in_features < 16
        assert model.experts[2].in_features == 16


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rules_are_checked_before_the_model_is_run(name):
    with pytest.raises(ValueError, match=r"Write never_run=\['experts\.1'\]"):
        FUNCTIONS[name](Experts(), None, never_run="experts.1")
    with pytest.raises(ValueError, match="never_run"):
        FUNCTIONS[name](Experts(), ONE[0], never_run=["expert.*"])


class Alternatives(nn.Module):
    """One of two layers runs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 16)), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c((self.a(x) if x.sum() > 0 else self.b(x)).relu())


def test_layers_that_never_ran_keep_what_they_would_make():
    model, x = Alternatives(), torch.ones(4, 6)
    with (
        pytest.warns(
            UserWarning, match="'b.1' did not run on the example inputs, and could read or write the channels"
        ),
        pytest.raises(ValueError, match=r"a: could be read or written by b\.1"),
    ):
        prune(model, x, 0.1)
    assert model(x).shape == model(-x).shape == (4, 3)
    prune(model, x, 0.1, never_run=["b"])
    assert model.a.out_features == model.c.in_features < 16


class Levels(nn.Module):
    """What keeps numbers and has no weights, as losses do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("levels", torch.arange(16.0))


@pytest.mark.parametrize("never_run", [["b"], ["spare"]])
def test_layers_that_never_ran_may_have_two_names(never_run):
    model, x = Alternatives(), torch.ones(4, 6)
    model.spare, model.loss = model.b, Levels()
    model.valid_loss = model.loss
    held = r"^'b\.1', 'spare\.1' did not run on the example inputs"
    with pytest.warns(UserWarning, match=held), pytest.raises(ValueError, match=r"a: could be read or written by b\.1"):
        prune(model, x, 0.1)
    prune(model, x, 0.1, never_run=never_run)  # one name tells of the module, and of what is in it
    assert model.a.out_features == model.c.in_features < 16


class Blocks(nn.Module):
    """Experts that are modules of their own, and a layer of their width that no code runs in their place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(Block() for _ in range(2))
        self.last, self.spare = nn.Linear(12, 3), nn.ModuleDict({"block": Block()})

    def forward(self, x: Tensor, number: int) -> Tensor:
        return self.last(self.experts[number](x).relu())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 20), nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


def test_layers_of_one_place_in_modules_side_by_side_stand_for_each_other():
    model, x = Blocks(), torch.randn(4, 6)
    with pytest.warns(UserWarning, match=r"'experts\.1\.down' did not run .* the channels of 'experts\.0\.down'"):
        plan = prune(model, (x, 0), 0.1)
    assert plan.skipped["experts.0.down"] == "could be read or written by experts.1.down, which has not run so far"
    assert [group.name for group in plan.groups] == ["experts.0.up"]
    assert model(x, 0).shape == model(x, 1).shape == (4, 3)


def test_rows_for_all_of_them_let_all_go():
    model = Experts()
    prune(model, ALL, 0.3)
    assert {expert.in_features for expert in model.experts} == {model.first.out_features}
    assert {expert.out_features for expert in model.experts} == {model.last.in_features}
    assert model.first.out_features < 16
    assert model.last.in_features < 12
    assert model(*ALL).shape == (8, 3)


class Leaving(nn.Module):
    """Experts that read the input, which stays, and of which only the last layer is as wide as what they write."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(12, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 12)) for _ in range(3))

    def forward(self, x: Tensor, tasks: Tensor) -> Tensor:
        out = x.new_zeros(len(x), self.last.in_features)
        for number, expert in enumerate(self.experts):
            rows = tasks == number
            if rows.any():
                out[rows] = expert(x[rows])
        return self.last(out)


def test_what_a_layer_without_rows_could_write_stays():
    model = Leaving()
    with pytest.warns(UserWarning, match=r"read or write the channels of 'experts\.1\.2', by width"):
        plan = prune(model, ONE, 0.1)
    assert plan.skipped["experts.1.2"] == "could be read or written by experts.0.2, which has not run so far"
    assert model.experts[1][0].out_features < 9 == model.experts[0][0].out_features
    assert model(*ALL).shape == (8, 3)


def test_experts_that_all_get_rows_write_fewer_channels():
    model = Leaving()
    prune(model, (ALL[0], ALL[1] % 3), {"experts.0.2": 0.5})
    assert {expert[2].out_features for expert in model.experts} == {model.last.in_features} == {6}
