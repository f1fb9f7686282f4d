"""What a plan works on: tensors are made when they are looked at, and come to what cutting at once would."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_coreset import Reconstruction, Sensitivity, plan_pruning
from lightning_coreset.methods import Selection
from lightning_coreset.methods.reweighting import reweighted_consumers
from lightning_coreset.planning.working_weights import WorkingWeights
from lightning_coreset.structure import find_groups
from lightning_coreset.surgery import apply_changes, index_dims, named_tensors, slice_members


class Siblings(nn.Module):
    """Two groups that lie along the same dimension of what reads them, behind a layer that both read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.out = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(8, 5), nn.Linear(11, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.out(torch.cat([self.one(x).relu(), self.two(x).relu()], dim=1))


def some(size: int) -> Selection:
    kept = torch.randperm(size)[: size // 2].sort().values
    return Selection(kept, "some", weights=torch.rand(len(kept), dtype=torch.float64) + 1)


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("look", [True, False])
def test_tensors_are_those_of_cutting_at_once(cut, look):
    torch.manual_seed(0)
    model = Siblings().double()
    tensors, groups = named_tensors(model), find_groups(model, torch.randn(2, 4, dtype=torch.float64))
    working, choices = WorkingWeights(tensors, groups, cut=cut), []
    eager = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for group in groups:
        selection = some(group.size)
        choices.append((group, selection.kept.tolist()))
        eager |= reweighted_consumers(group, selection, eager)
        working.apply(group, selection)
        if look:
            assert dict(working).keys() == eager.keys()
    slices = slice_members(tensors, choices)
    kept = {change.name: change.kept for change in slices}
    for name, tensor in working.items():
        done = {dim for dim in kept.get(name, {}) if tensor.shape[dim] < tensors[name].shape[dim]}
        assert cut or not done
        left = {dim: positions for dim, positions in kept.get(name, {}).items() if dim not in done}
        torch.testing.assert_close(
            index_dims(tensor, left), index_dims(eager[name], kept.get(name, {})), rtol=1e-12, atol=0
        )
    completed = [working.completed(change) for change in slices]
    assert all(change.value is None for change in completed)
    apply_changes(model, completed)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), index_dims(eager[name], kept.get(name, {})), rtol=1e-12, atol=0)


def test_what_no_later_group_looks_at_is_never_made(monkeypatch):
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3))
    made: list[torch.Size] = []
    monkeypatch.setattr(
        "lightning_coreset.planning.working_weights.index_dims", lambda tensor, kept: made.append(tensor.shape)
    )
    plan = plan_pruning(model, torch.randn(2, 4), 0.5, method=Sensitivity())
    assert plan.channels_removed
    assert made == []


def test_new_contents_replace_an_update_that_nobody_looked_at():
    model = Siblings().double()
    tensors, groups = named_tensors(model), find_groups(model, torch.randn(2, 4, dtype=torch.float64))
    one, two = groups[1], groups[2]
    working = WorkingWeights(tensors, groups, cut=False)
    new = torch.randn(3, 11, dtype=torch.float64)
    working.apply(one, some(one.size))
    working.apply(two, Selection(torch.arange(two.size - 1), updates={"out.weight": new}))
    torch.testing.assert_close(working["out.weight"], new, rtol=0, atol=0)

    working.apply(one, Selection(torch.arange(one.size), weights=torch.full((one.size,), 2.0)))
    expected = torch.cat([2 * new[:, : one.size], new[:, one.size :]], dim=1)
    torch.testing.assert_close(working["out.weight"], expected, rtol=0, atol=0)


def test_it_is_a_mapping_with_every_name_at_any_time():
    model = Siblings()
    tensors, groups = named_tensors(model), find_groups(model, torch.randn(2, 4))
    working = WorkingWeights(tensors, groups, cut=True)
    working.apply(groups[0], some(8))  # one.weight and two.weight wait
    assert "one.weight" in working
    assert len(working) == len(tensors)
    assert list(working) == list(working.keys()) == list(tensors)
    assert working.get("one.weight").shape == (6, 4)
    assert dict(working.items())["two.weight"].shape == (5, 4)
    assert [tensor.shape for tensor in working.values()] == [working[name].shape for name in tensors]
    assert working.get("three.weight") is None
    with pytest.raises(KeyError):
        working["three.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_are_rounded_once_behind_the_last_group_and_vectors_at_the_end(dtype):
    model = Siblings().to(dtype)
    tensors, groups = named_tensors(model), find_groups(model, torch.randn(2, 4, dtype=dtype))
    working = WorkingWeights(tensors, groups, cut=False)
    thirds = {name: torch.full_like(tensors[name], 1 / 3, dtype=torch.float64) for name in ("out.weight", "out.bias")}
    working.apply(groups[1], Selection(torch.arange(groups[1].size), "some", updates=thirds))
    working.settle(["stem.weight"])
    assert working["out.weight"].dtype == torch.float64  # another group reads it exactly
    working.settle(thirds)
    assert working["out.weight"].dtype == dtype
    assert working["out.bias"].dtype == torch.float64  # which groups write that it is no part of


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_weights_are_those_of_rounding_only_in_the_end(monkeypatch, dtype):
    """A layer that two groups rewrite is in double precision in between."""
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(16, 16), nn.ReLU())), nn.Linear(16, 4))
    model, x = model.to(dtype).eval(), torch.randn(2, 16, dtype=dtype)
    method = Reconstruction(moments="synthetic", refine=True)
    settled = plan_pruning(model, x, 0.5, self_check=False, method=method)
    monkeypatch.setattr(WorkingWeights, "settle", lambda self, names: None)
    late = plan_pruning(model, x, 0.5, self_check=False, method=method)
    for one, same in zip(settled.changes, late.changes, strict=True):
        assert one.value is not None, one.name
        assert same.value is not None
        assert torch.equal(one.value, same.value), one.name
