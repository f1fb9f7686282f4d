"""Large networks: what a trial takes of memory, and how many trials find the group that fails."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn

from lightning_coreset.structure import Example, analyse
from lightning_coreset.verification import failing_groups, tried_groups
from lightning_coreset.verification.removal import Removal
from lightning_coreset.verification.twin import TwinRun

SEEN: list[torch.dtype] = []


class Wide(nn.Module):
    """Two layers; in which precision they run is noted."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        SEEN.append(self.first.weight.dtype)
        return self.second(self.first(x).relu())


@pytest.mark.parametrize(
    ("free", "dtype"), [(float("inf"), torch.float64), (114 * 8 * 1.9, torch.float32), (114 * 4 * 1.9, None)]
)
def test_a_trial_takes_no_more_memory_than_there_is(monkeypatch, free, dtype):
    model = Wide()
    assert sum(parameter.numel() for parameter in model.parameters()) == 114
    monkeypatch.setattr("lightning_coreset.verification.memory.available_memory", lambda _: free)
    groups = analyse(model, torch.randn(2, 4)).groups
    SEEN.clear()
    failures = failing_groups(model, groups, Example.of(torch.randn(2, 4)))
    if dtype is not None:
        assert not failures
        assert set(SEEN) == {dtype}
    else:  # in the memory of the network itself
        assert set(SEEN) <= {torch.float32}


def test_a_run_in_two_versions_keeps_none_of_its_activations():
    """Those of a deep network would take many times its own memory."""
    weight = torch.randn(8, 8)
    run = TwinRun([(weight, lambda: weight + 1.0)], [])
    held = []
    with run:
        x = torch.randn(2, 8)
        for _ in range(5):
            x = torch.mm(x, weight)
            held.append(weakref.ref(run.twin(x)))
    assert run.twin(x) is not None
    assert [one() is None for one in held] == [True] * 4 + [False]
    run.close()
    assert held[-1]() is None


class Block(nn.Module):
    """A layer whose width is its own, and may be a number that it remembers."""

    def __init__(self, hidden: int, *, remembers: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, hidden), nn.Linear(hidden, 6)
        self.width = hidden if remembers else -1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x).relu().view(len(x), self.width))


@pytest.mark.slow
def test_few_trials_find_the_one_group_among_many_that_needs_a_number(monkeypatch):
    """All groups differ, as in a network of many stages: trying them one by one would take a trial for each."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(8 + number % 16, remembers=number == 11) for number in range(24)))
    groups = [group for group in analyse(model, torch.randn(2, 6)).groups if group.name != "0.second"]
    count = 0
    attempt = Removal._attempt

    def counted(self, *args):
        nonlocal count
        count += 1
        return attempt(self, *args)

    monkeypatch.setattr(Removal, "_attempt", counted)
    completed, failures = tried_groups(model, groups, Example.of(torch.randn(2, 6)))
    assert not failures
    assert [count.name for group in completed for count in group.counts] == ["width"]
    assert count < 20
