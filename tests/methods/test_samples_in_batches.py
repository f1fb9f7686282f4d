"""What is held while a plan is made: the samples of some groups, not of all, and nothing that no group uses."""

from __future__ import annotations

import copy
import gc
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from streams import Attention
from torch import Tensor, nn

from lightning_coreset import Reconstruction, plan_pruning, prune
from lightning_coreset.methods import batches, reconstruction, sampled_rows, waiting
from lightning_coreset.moments import LayerInput, MeasuringRuns, NormInput
from lightning_coreset.planning import measuring, planner
from lightning_coreset.planning.working_weights import WorkingWeights


class Blocks(nn.Module):
    """Equal residual blocks with BatchNorms."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.ModuleList(nn.Conv2d(8, 16, 3, padding=1, bias=False) for _ in range(count))
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(count))
        self.second = nn.ModuleList(nn.Conv2d(16, 8, 1) for _ in range(count))
        self.end = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, norm, second in zip(self.first, self.norms, self.second, strict=True):
            x = x + second(F.relu(norm(first(x))))
        return self.end(x.mean((2, 3)))


class Gated(nn.Module):
    """A stream behind RMSNorms, with gated layers of different widths, which need different numbers of runs."""

    def __init__(self) -> None:
        super().__init__()
        widths = (24, 160, 48)
        self.embed = nn.Embedding(50, 16)
        self.norms = nn.ModuleList(nn.RMSNorm(16) for _ in widths)
        self.up = nn.ModuleList(nn.Linear(16, width) for width in widths)
        self.gate = nn.ModuleList(nn.Linear(16, width) for width in widths)
        self.down = nn.ModuleList(nn.Linear(width, 16) for width in widths)
        self.norm, self.end = nn.RMSNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, up, gate, down in zip(self.norms, self.up, self.gate, self.down, strict=True):
            read = norm(x)
            x = x + down(F.silu(gate(read)) * up(read))
        return self.end(self.norm(x))


class Merging(nn.Module):
    """A stream that is read in pairs of positions, which therefore cannot rotate, and a second one, which can."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.up = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 24)
        self.down, self.merged, self.reduce = nn.Linear(24, 8), nn.LayerNorm(16), nn.Linear(16, 12)
        self.behind, self.end = nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        x = self.reduce(self.merged(x.unflatten(1, (-1, 2)).flatten(2)))
        return self.end(self.behind(x))


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def built(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    if kind == "blocks":
        return Blocks(4).eval(), images()
    if kind == "gated":
        return Gated().eval(), torch.randint(0, 50, (2, 4))
    return Merging().eval(), torch.randn(2, 4, 6)


def one_group_at_once(monkeypatch) -> None:
    monkeypatch.setattr(batches, "_LEAST_BUDGET", 1)
    monkeypatch.setattr(batches, "_SHARE", 0.0)


def in_many_runs(monkeypatch) -> None:
    """Small runs, of which layers of different widths need different numbers."""
    monkeypatch.setattr(measuring, "_IDS_A_RUN", 32)
    monkeypatch.setattr(measuring, "_FEWEST_A_RUN", 8)
    monkeypatch.setattr(sampled_rows, "_LEAST_ROWS", 32)


def counted(monkeypatch, module, name: str) -> list[Any]:
    """What a function is called with first, whenever it is called."""
    calls, original = [], getattr(module, name)

    def spied(*args, **kwargs):
        calls.append(args[0])
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, spied)
    return calls


def held() -> int:
    """Bytes of all samples that are alive."""
    rows = {}
    for one in gc.get_objects():
        if type(one) in (LayerInput, NormInput):
            storage = one.rows.untyped_storage()
            rows[storage.data_ptr()] = storage.nbytes()
    return sum(rows.values())


def held_while_planning(monkeypatch, model: nn.Module, x: Tensor) -> list[int]:
    """The same whenever a group has been measured, and is about to be reconstructed."""
    found, original = [], reconstruction.reconstructed

    def watched(*args, **kwargs):
        gc.collect()
        found.append(held())
        return original(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(reconstruction, "reconstructed", watched)
        plan_pruning(model, x, 0.3, self_check=False)
    return found


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("kind", ["blocks", "gated"])
def test_groups_are_measured_in_batches_with_the_same_results(monkeypatch, kind, sequential):
    model, x = built(kind)
    in_many_runs(monkeypatch)
    together, apart = copy.deepcopy(model), copy.deepcopy(model)
    method = Reconstruction(moments="synthetic" if kind == "blocks" else "auto", sequential=sequential)
    chosen = counted(monkeypatch, waiting.Waiting, "chosen")
    one = prune(together, x, 0.3, include_residual=True, self_check=False, method=method)
    assert len(chosen) == 1
    one_group_at_once(monkeypatch)
    other = prune(apart, x, 0.3, include_residual=True, self_check=False, method=method)
    assert len(chosen) > 2  # or nothing was in batches
    assert [(group.kept, group.method) for group in one.groups] == [
        (group.kept, group.method) for group in other.groups
    ]
    torch.testing.assert_close(apart.state_dict(), together.state_dict())


def test_heads_that_may_rotate_are_tried_together(monkeypatch):
    torch.manual_seed(0)
    model, x = nn.Sequential(*(Attention(16, 2) for _ in range(3))).eval(), torch.randn(2, 5, 16)
    together, apart = copy.deepcopy(model), copy.deepcopy(model)
    method = Reconstruction(moments="synthetic")
    prune(together, x, 0.3, heads="within", method=method)
    one_group_at_once(monkeypatch)
    chosen = counted(monkeypatch, waiting.Waiting, "chosen")
    prune(apart, x, 0.3, heads="within", method=method)
    turning = [sum(map(batches._turns, one.views)) for one in chosen]
    assert max(turning) == sum(turning) > 1
    torch.testing.assert_close(apart.state_dict(), together.state_dict())


def test_samples_are_those_of_the_largest_group_where_memory_is_scarce(monkeypatch):
    few, many = Blocks(3).eval(), Blocks(9).eval()
    whole = [max(held_while_planning(monkeypatch, model, images())) for model in (few, many)]
    assert whole[1] > 2 * whole[0]
    one_group_at_once(monkeypatch)
    largest = [max(held_while_planning(monkeypatch, model, images())) for model in (few, many)]
    assert largest[1] == largest[0] < whole[0]


def test_samples_are_let_go_group_by_group(monkeypatch):
    found = held_while_planning(monkeypatch, Blocks(5).eval(), images())
    assert all(later < earlier for earlier, later in pairwise(found))


def test_what_reads_a_stream_that_cannot_rotate_is_not_sampled(monkeypatch):
    model, x = built("merging")
    asked, original = [], MeasuringRuns.measure

    def spied(self, weights, norms=None, tensors=None, channel_norms=None, **others):
        asked.append((set(weights), set(channel_norms or {})))
        return original(self, weights, norms, tensors, channel_norms, **others)

    monkeypatch.setattr(MeasuringRuns, "measure", spied)
    plan = plan_pruning(model, x, 0.3, include_residual=True, self_check=False)
    weights, norms = (set().union(*each) for each in zip(*asked, strict=True))
    assert "end.weight" in weights and "behind.weight" in norms  # noqa: PT018 - of the stream that can
    assert "up.weight" not in weights  # `reduce.weight` makes the other stream
    assert not norms & {"norm.weight", "merged.weight"}
    monkeypatch.setattr(waiting, "worth_sampling", lambda views, *, streams: list(views))
    again = plan_pruning(model, x, 0.3, include_residual=True, self_check=False)
    assert [group.kept for group in again.groups] == [group.kept for group in plan.groups]


def test_derived_moments_are_kept_for_the_layers_that_use_them():
    class Looking(Reconstruction):
        def select(self, group, size):
            made = super().select(group, size)
            seen.append(set(group.state.input_moments))
            return made

    seen: list[set[str]] = []
    chain = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
    plan_pruning(chain, torch.randn(2, 8), 0.3, method=Looking(moments="closed_form"))
    assert seen[-1] == {"2.weight"}  # that of the next group; the last layer's make no group
    seen.clear()
    model, x = built("merging")
    plan_pruning(model, x, 0.3, include_residual=True, self_check=False, method=Looking())
    assert seen[-1] == set()


def test_new_weights_are_held_once_in_the_precision_of_the_network(monkeypatch):
    model, x = built("blocks")  # half of whose channels go, so that producers move: their weights are rewritten twice
    seen, original = [], planner._changes

    def looked(tensors, working, choices):
        seen.extend(working[name].dtype for name in working.changed if working[name].dim() > 1)
        assert not any(choice.selection.updates for choice in choices)
        return original(tensors, working, choices)

    monkeypatch.setattr(planner, "_changes", looked)
    plan = plan_pruning(model, x, 0.5, include_residual=True, self_check=False)
    assert seen and set(seen) == {torch.float32}  # noqa: PT018
    monkeypatch.setattr(WorkingWeights, "settle", lambda self, names: None)
    seen.clear()
    other = plan_pruning(model, x, 0.5, include_residual=True, self_check=False)
    assert torch.float64 in seen
    for one, same in zip(plan.changes, other.changes, strict=True):
        assert one.name == same.name
        if one.value is None or same.value is None:
            assert one.value is same.value
        else:
            assert torch.equal(one.value, same.value)
