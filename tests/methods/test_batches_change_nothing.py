"""Groups that are measured in batches are chosen as if all had been measured at once, messages included."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_coreset import Reconstruction, plan_pruning, prune
from lightning_coreset import pruning as pruning_module
from lightning_coreset.methods import batches, sampled_rows, waiting
from lightning_coreset.planning import measuring


class Merging(nn.Module):
    """A wide stream that is read in fours, which need many rows and cannot rotate, and a narrow one, which can."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.up = nn.Embedding(50, 32), nn.LayerNorm(32), nn.Linear(32, 24)
        self.beside, self.down = nn.Linear(32, 24), nn.Linear(24, 32)
        self.merged, self.reduce = nn.LayerNorm(128), nn.Linear(128, 12)
        self.second, self.gate, self.wide = nn.LayerNorm(12), nn.Linear(12, 20), nn.Linear(12, 20)
        self.back, self.behind, self.end = nn.Linear(20, 12), nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        read = self.norm(x)
        x = x + self.down(F.silu(self.beside(read)) * self.up(read))
        x = self.reduce(self.merged(x.unflatten(1, (-1, 4)).flatten(2)))
        read = self.second(x)
        x = x + self.back(F.silu(self.gate(read)) * self.wide(read))
        return self.end(self.behind(x))


class Chain(nn.Module):
    """Blocks with BatchNorms; the code of one names its width, and another one adds what else the network is given."""

    def __init__(self, literal: int | None = None) -> None:
        super().__init__()
        self.stem, self.literal = nn.Conv2d(3, 8, 3, padding=1), literal
        self.first = nn.ModuleList(nn.Conv2d(8, 16, 3, padding=1, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(3))
        self.second = nn.ModuleList(nn.Conv2d(16, 8, 1) for _ in range(3))
        self.end = nn.Linear(8, 4)

    def forward(self, x: Tensor, late: Tensor) -> Tensor:
        x = self.stem(x)
        for number, (first, norm, second) in enumerate(zip(self.first, self.norms, self.second, strict=True)):
            inner = F.relu(norm(first(x + late if number == 2 else x)))
            if number == self.literal:
                inner = inner.view(-1, 16, 8, 8)
            x = x + second(inner)
        return self.end(x.mean((2, 3)))


class Merged(nn.Module):
    """A weight with a product of two factors added to it, one of which two groups read along different dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 20), nn.Linear(20, 14), nn.Linear(14, 3)
        self.up, self.down = nn.Parameter(torch.randn(14, 4)), nn.Parameter(torch.randn(4, 20))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.linear(self.first(x).relu(), self.middle.weight + self.up @ self.down).relu())


def inputs(late: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)), torch.full((4, 1, 1, 1), late)


def chain(**options) -> Chain:
    torch.manual_seed(0)
    return Chain(**options).eval()


def one_group_at_once(monkeypatch) -> None:
    monkeypatch.setattr(batches, "_LEAST_BUDGET", 1)
    monkeypatch.setattr(batches, "_SHARE", 0.0)


def at_once(monkeypatch) -> None:
    """Everything is sampled, whether some group uses it or not, as before there were batches."""
    monkeypatch.setattr(waiting, "worth_sampling", lambda views, *, streams: list(views))
    monkeypatch.setattr(waiting, "in_batches", lambda views, runs: [list(views)])


def chosen_by(monkeypatch) -> list[waiting.Waiting]:
    """The groups that are measured together, a batch at a time."""
    found, original = [], waiting.Waiting.chosen

    def looked(self, measured):
        found.append(self)
        return original(self, measured)

    monkeypatch.setattr(waiting.Waiting, "chosen", looked)
    return found


def assert_alike(one, other) -> None:
    for group, same in zip(one.groups, other.groups, strict=True):
        assert (group.name, group.kept, group.method) == (same.name, same.kept, same.method)
        if group.expected_error is None or same.expected_error is None:
            assert group.expected_error is same.expected_error
        else:
            assert group.expected_error == pytest.approx(same.expected_error, rel=1e-4)


@pytest.mark.parametrize("apart", [False, True])
def test_norms_are_sampled_in_as_many_runs_as_all_layers_need(monkeypatch, apart):
    monkeypatch.setattr(measuring, "_IDS_A_RUN", 64)  # small runs, of which some layers need several
    monkeypatch.setattr(sampled_rows, "_LEAST_ROWS", 32)
    torch.manual_seed(0)
    model, x = Merging().eval(), torch.randint(0, 50, (2, 8))
    before = copy.deepcopy(model)
    with monkeypatch.context() as patched:
        at_once(patched)
        one = prune(before, x, 0.4, include_residual=True, self_check=False)
    if apart:
        one_group_at_once(monkeypatch)
    other = prune(model, x, 0.4, include_residual=True, self_check=False)
    assert any(group.name == "reduce" and group.method == "reconstruction (probes)" for group in other.groups)
    assert_alike(one, other)
    torch.testing.assert_close(model.state_dict(), before.state_dict())


def test_weights_that_several_groups_read_are_looked_at_alike(monkeypatch):
    torch.manual_seed(0)
    model, x, method = Merged().eval(), torch.randn(4, 6), Reconstruction(moments="synthetic")
    one = plan_pruning(model, x, 0.5, self_check=False, method=method)
    one_group_at_once(monkeypatch)
    found = chosen_by(monkeypatch)
    other = plan_pruning(model, x, 0.5, self_check=False, method=method)
    assert len(found) > 1
    assert_alike(one, other)


@pytest.mark.parametrize("apart", [False, True])
def test_what_is_not_finite_where_a_later_batch_reads_is_known_at_the_first(monkeypatch, apart):
    if apart:
        one_group_at_once(monkeypatch)
    method = Reconstruction(moments="batches", sequential=False)
    with pytest.warns(UserWarning, match="derived in closed form.*batches make NaN or infinity where second.2.weight"):
        plan = plan_pruning(chain(), inputs(), 0.3, self_check=False, method=method, data=[inputs(torch.nan)])
    assert not any("batches" in group.method for group in plan.groups)
    measured = plan_pruning(chain(), inputs(), 0.3, self_check=False, method=method, data=[inputs()])
    assert any("batches" in group.method for group in measured.groups)


def test_producers_move_in_the_batches_that_have_a_place_for_more_channels(monkeypatch):
    def moved(model):
        plan = plan_pruning(model, inputs(), 0.5, self_check=False, method=Reconstruction(moments="synthetic"))
        assert all("probes" in group.method for group in plan.groups)
        return {change.name for change in plan.changes if change.name.startswith("first") and change.value is not None}

    assert moved(chain()) == {f"first.{number}.weight" for number in range(3)}
    assert moved(chain(literal=1)) == set()
    one_group_at_once(monkeypatch)
    assert moved(chain(literal=1)) == {"first.0.weight", "first.2.weight"}


def test_ranks_measure_at_once_and_plan_the_same(monkeypatch):
    one_group_at_once(monkeypatch)
    method = Reconstruction(moments="batches")
    data = [inputs(seed=seed) for seed in range(4)]
    apart, together = chain(), chain()
    found = chosen_by(monkeypatch)
    alone = prune(apart, inputs(), 0.4, include_residual=True, self_check=False, method=method, data=data)
    assert len(found) > 2
    found.clear()
    made = pruning_module.measuring_runs

    def of_a_rank(*args, **kwargs):
        runs = made(*args, **kwargs)
        assert runs is not None
        return replace(runs, gather=lambda own: [own])

    monkeypatch.setattr(pruning_module, "measuring_runs", of_a_rank)
    among = prune(together, inputs(), 0.4, include_residual=True, self_check=False, method=method, data=data)
    assert len(found) == 1
    assert_alike(alone, among)
    torch.testing.assert_close(together.state_dict(), apart.state_dict())
