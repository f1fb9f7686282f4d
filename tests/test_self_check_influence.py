"""Groups without influence on any output are refused, whatever the gradient says that is to show the influence."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_coreset.state import freed_memory
from lightning_coreset.structure import Example, analyse
from lightning_coreset.verification import failing_groups, tried_groups
from lightning_coreset.verification.trial import Trial

RUNS: list[bool] = []
LARGEST: dict[str, Any] = {
    "amax": lambda z: z.amax(1),
    "infinity norm": lambda z: torch.linalg.vector_norm(z, float("inf"), dim=1),
    "logarithm of what single precision cannot hold": lambda z: (z.softmax(1) * 1e-300).log().sum(1),
    "root of zero": lambda z: z[:, :1].sum(1) + (0.0 * z).square().sum(1).sqrt(),
    "sum": lambda z: z.sum(1),
}


class Idle(nn.Module):
    """The channels of ``idle`` have no influence, those of ``first`` have."""

    def __init__(self, ending: str) -> None:
        super().__init__()
        self.idle, self.reader, self.other = nn.Linear(6, 40), nn.Linear(40, 300), nn.Linear(6, 300)
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 1)
        self.ending = LARGEST[ending]

    def forward(self, x: Tensor) -> Tensor:
        z = self.other(x) + 0.0 * self.reader(self.idle(x).relu())
        return self.ending(z)[:, None] + self.last(self.first(x).relu())


@pytest.mark.parametrize("ending", LARGEST)
def test_a_gradient_that_is_no_number_shows_no_influence(ending):
    """What is kept in single precision is not equal to what is not, and infinity times zero is no number."""
    torch.manual_seed(0)
    model, x = Idle(ending), torch.randn(64, 6)
    groups = [group for group in analyse(model, x).groups if group.name in ("idle", "first")]
    assert len(groups) == 2
    found = failing_groups(model, groups, Example.of(x))
    assert found.keys() == {"idle"}
    assert "no influence on the outputs" in found["idle"]


class Peak(nn.Module):
    """More groups than are tried one by one, before a maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6 if place == 0 else 8, 8) for place in range(5))
        self.last = nn.Linear(8, 300)

    def forward(self, x: Tensor) -> Tensor:
        RUNS.append(self.training)
        for layer in self.layers:
            x = layer(x).tanh()
        return self.last(x).amax(1)


def test_a_gradient_that_is_no_number_in_single_precision_is_taken_again_in_double():
    """Else each group would be tried by itself."""
    torch.manual_seed(0)
    model, x = Peak(), torch.randn(64, 6)
    groups = analyse(model, x).groups
    assert len(groups) == 5
    RUNS.clear()
    assert failing_groups(model, groups, Example.of(x)) == {}
    assert len(RUNS) == 2 * 2 * 2 + 1


class WritesIntoFactors(nn.Module):
    """Writes into what a derivative needs, which torch refuses to differentiate; with the new values it is not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.reader, self.last = nn.Linear(6, 40), nn.Linear(40, 90), nn.Linear(90, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.reader(self.idle(x).relu())
        zeros = torch.zeros_like(h)
        product = h * zeros
        zeros.fill_(1.0)
        return self.last(product)


@pytest.mark.parametrize("samples", [4, 64])  # what is kept is not converted, and is
def test_what_is_written_into_since_shows_no_influence(samples):
    torch.manual_seed(0)
    model, x = WritesIntoFactors(), torch.randn(samples, 6)
    groups = [group for group in analyse(model, x).groups if group.name == "idle"]
    assert failing_groups(model, groups, Example.of(x)).keys() == {"idle"}


class Derivative(nn.Module):
    """Returns a derivative, which ``torch.func`` only takes where nothing is kept in another form."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 80), nn.Linear(80, 90), nn.Linear(90, 1)

    def energy(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).tanh()).tanh()).sum()

    def forward(self, x: Tensor) -> Tensor:
        RUNS.append(self.training)
        return torch.func.grad(self.energy)(x)


def test_a_network_that_takes_derivatives_itself_runs_once_more():
    torch.manual_seed(0)
    model, x = Derivative(), torch.randn(64, 6)
    groups = analyse(model, x).groups
    assert [group.name for group in groups] == ["first", "second"]
    RUNS.clear()
    assert failing_groups(model, groups, Example.of(x)) == {}
    assert len(RUNS) == 2 * 2 * 2 + 1


class Strict(nn.Module):
    """Refuses it if one of two parts has no effect, though not if neither has."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 1), nn.Linear(6, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, other = ((self.a(x).relu() @ self.b.weight.t()), (self.c(x).relu() @ self.d.weight.t()))
        if not torch.is_grad_enabled() and bool((one == 0).all()) != bool((other == 0).all()):
            raise ValueError("one part is zero")
        return one + other


def test_a_network_that_cannot_run_without_one_of_few_groups_is_tried_by_its_gradient():
    torch.manual_seed(0)
    model, x = Strict().double(), torch.randn(4, 6, dtype=torch.float64)
    groups = [replace(group, members=group.members) for group in analyse(model, x).groups]
    trial = Trial(model, Example.of(x))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_coreset.verification.influence.removed_classes", everything)
        assert trial.without_effect(groups) == {}


def everything(groups, unlike=None):
    return {group.name: set(range(group.size)) for group in groups}


NEARLY_EQUAL: dict[str, Any] = {
    "maximum": torch.maximum,
    "clamp": lambda base, below: (1.0 + (base - below)).clamp(max=1.0) + base,
}


class JustBelow(nn.Module):
    """What ``idle`` makes is less than what it is compared with, by less than bfloat16 tells apart."""

    def __init__(self, joined: str) -> None:
        super().__init__()
        self.idle, self.reader, self.other = nn.Linear(6, 40), nn.Linear(40, 300), nn.Linear(6, 300)
        self.more = nn.Sequential(*(nn.Linear(6 if place == 0 else 8, 8) for place in range(5)))
        self.last = nn.Linear(8, 300)
        self.joined = NEARLY_EQUAL[joined]

    def forward(self, x: Tensor) -> Tensor:
        base = self.other(x).abs() + 1
        below = base - 1e-3 * (1 + self.reader(self.idle(x).relu()).sigmoid())
        return self.joined(base, below) + self.last(self.more(x))


@pytest.mark.parametrize("joined", NEARLY_EQUAL)
def test_what_rounding_makes_equal_shows_no_influence(joined):
    torch.manual_seed(0)
    model, x = JustBelow(joined), torch.randn(64, 6)
    found = failing_groups(model, analyse(model, x).groups, Example.of(x))
    assert found.keys() == {"idle"}
    assert "no influence on the outputs" in found["idle"]


class TakesArrays(nn.Module):
    """Runs without gradients alone, as torch makes no array of what has one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 12), nn.Linear(12, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.second(self.first(x).relu()).relu())
        return x[torch.from_numpy(x.sum(1).numpy().argsort())]


def test_a_network_that_has_no_gradients_does_not_fail_for_it():
    torch.manual_seed(0)
    model, x = TakesArrays(), torch.randn(4, 6)
    groups = analyse(model, x).groups
    assert len(groups) == 2
    assert failing_groups(model, groups, Example.of(x)) == {}
    assert tried_groups(model, groups, Example.of(x)) == (groups, {})
    assert tried_groups(model, groups[:1], Example.of(x)) == (groups[:1], {})


class Statistics(nn.Module):
    """Reads its running statistics in training mode before it updates them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        RUNS.append(self.training)
        mean, variance = self.norm.get_buffer("running_mean"), self.norm.get_buffer("running_var")
        before = mean.clone()
        known = mean, variance, self.norm.weight, self.norm.bias
        y = functional.batch_norm(self.first(x), *known, training=self.training)
        return self.last((y + before[None, :, None, None]).relu())


def test_what_an_operator_writes_without_saying_so_is_new_in_every_run():
    """Batch norm writes into running statistics: a second version that was kept would be that of another run."""
    torch.manual_seed(0)
    model, x = Statistics().double(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    trial = Trial(model, Example.of(x))
    groups = analyse(model, x).groups
    with trial._network.running(trial._network.runs_in_training):
        assert trial._removal.explained(groups, "") == ""  # both in one run of two versions, one after the other
    RUNS.clear()
    assert failing_groups(model, groups, Example.of(x)) == {}
    assert len(RUNS) == 12


class Depthwise(nn.Module):
    """A depthwise convolution between two others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.each, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.each(self.first(x)).relu())


@pytest.mark.parametrize("how", ["shifted", "forgotten"])
@pytest.mark.parametrize("name", ["first.weight", "first.bias", "each.weight", "each.bias", "last.weight"])
def test_wrong_groups_around_a_depthwise_convolution_fail(name, how):
    torch.manual_seed(0)
    model, x = Depthwise(), torch.randn(2, 3, 6, 6)
    (group,) = analyse(model, x).groups
    assert failing_groups(model, [group], Example.of(x)) == {}
    others = [member for member in group.members if member.name != name]
    wrong = [replace(one, index=one.index[1:] + one.index[:1]) for one in group.members if one.name == name]
    planted = replace(group, members=(*others, *(wrong if how == "shifted" else ())))
    assert failing_groups(model, [planted], Example.of(x)).keys() == {"first"}


# ---- memory


class OfAnotherLibrary:
    def __init__(self, name: object) -> None:
        if name is None:
            raise TypeError("bad argument type for built-in operation")  # as on Windows


@pytest.mark.parametrize("library", [OfAnotherLibrary, lambda name: object()])
def test_where_the_c_library_cannot_be_told_to_nothing_happens(monkeypatch, library):
    monkeypatch.setattr(ctypes, "CDLL", library)
    freed_memory._trim.cache_clear()
    try:
        assert freed_memory._trim() is None
        freed_memory.return_freed_memory()
    finally:
        freed_memory._trim.cache_clear()
