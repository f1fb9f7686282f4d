"""Labels that meet on the same elements."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_coreset.structure import analyse
from lightning_coreset.structure.label_merging import merge
from lightning_coreset.structure.labels import ChannelLabels
from lightning_coreset.structure.union_find import ChannelUnionFind


def grid_and_vector() -> tuple[ChannelUnionFind, Tensor, Tensor]:
    """Labels of 6 channels as (heads, positions) and of 3 numbers, one for each position."""
    union_find = ChannelUnionFind()
    return union_find, union_find.allocate("w", 0, 6).view(1, 2, 3), union_find.allocate("v", 0, 3).view(1, 1, 3)


@pytest.mark.parametrize("turned", [False, True])
def test_a_grid_that_meets_a_vector_keeps_whole_rows(turned):
    union_find, grid, vector = grid_and_vector()
    pair = ChannelLabels(grid, from_layer=True), ChannelLabels(vector)
    merged = merge(*(pair[::-1] if turned else pair), union_find, "meets")
    assert merged.labels.shape == (1, 2, 1)  # heads may go
    roots = union_find.roots(grid)
    assert roots.view(2, 3).tolist() == [[1, 1, 1], [4, 4, 4]]
    assert union_find.blocked()[union_find.roots(vector)].all()
    assert not union_find.blocked()[roots].any()


@pytest.mark.parametrize("from_layer", [False, True])
def test_a_grid_and_a_vector_of_one_origin_are_united(from_layer):
    union_find, grid, vector = grid_and_vector()
    merge(ChannelLabels(grid, from_layer=from_layer), ChannelLabels(vector, from_layer=from_layer), union_find, "meets")
    assert union_find.roots(grid).view(2, 3).tolist() == [[1, 2, 3], [1, 2, 3]]
    assert not union_find.blocked()[union_find.roots(vector)].any()


def test_a_vector_over_other_dimensions_is_not_blocked():
    union_find, grid, vector = grid_and_vector()
    merge(ChannelLabels(grid[:, :1], from_layer=True), ChannelLabels(vector), union_find, "meets")
    assert not union_find.blocked()[union_find.roots(vector)].any()


def test_rotary_frequencies_stay_and_heads_go():
    class Rotated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 2)
            self.register_buffer("frequencies", torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            heads = self.a(x).unflatten(-1, (3, 4))
            return self.b((heads * self.frequencies).flatten(-2))

    (group,) = analyse(Rotated(), torch.randn(2, 4)).groups
    assert group.size == 3
    assert [member.name for member in group.members] == ["a.weight", "a.bias", "b.weight"]
