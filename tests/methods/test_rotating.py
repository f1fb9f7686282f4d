"""Dimensions within attention heads rotate: what stays are the best directions, not the best dimensions."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_coreset import Reconstruction, plan_pruning, prune
from lightning_coreset.methods import rotation_check
from lightning_coreset.structure import analyse

HEADS, WIDTH, RANK = 4, 8, 3


def of_low_rank(projection: nn.Linear, rank: int, heads: int) -> None:
    """Make every head's rows of a projection, with its constants, of low rank."""
    with torch.no_grad():
        width = projection.out_features // heads
        for rows in projection.weight.split(width):
            rows.copy_(torch.randn(width, rank) @ torch.randn(rank, rows.shape[1]) / 4)
        if projection.bias is not None:
            projection.bias.zero_()


class Attention(nn.Module):
    """A block whose queries and values have a low rank in every head, in a basis of its own."""

    def __init__(self, *, key_heads: int = HEADS, bias: bool = True, rotary: bool = False, after=None, feature=None):
        super().__init__()
        self.key_heads, self.rotary, self.after, self.feature = key_heads, rotary, after, feature
        self.register_buffer("frequencies", 0.3 ** torch.arange(WIDTH // 2))
        self.norm = nn.LayerNorm(24)
        self.q = nn.Linear(24, HEADS * WIDTH, bias=bias)
        self.k = nn.Linear(24, key_heads * WIDTH, bias=bias)
        self.v = nn.Linear(24, key_heads * WIDTH, bias=bias)
        self.o = nn.Linear(HEADS * WIDTH, 24, bias=bias)
        of_low_rank(self.q, RANK, HEADS)
        of_low_rank(self.v, RANK, key_heads)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        counts = HEADS, self.key_heads, self.key_heads
        made = zip((self.q, self.k, self.v), counts, strict=True)
        q, k, v = (part(y).unflatten(-1, (heads, -1)).transpose(1, 2) for part, heads in made)
        several = HEADS // self.key_heads
        k, v = k.repeat_interleave(several, 1), v.repeat_interleave(several, 1)
        if self.rotary:
            angles = torch.arange(x.shape[1])[:, None] * self.frequencies.repeat(2)
            q, k = (one * angles.cos() + turned(one) * angles.sin() for one in (q, k))
        if self.feature is not None:
            q, k = self.feature(q), self.feature(k)
        mixed = (q @ k.transpose(-1, -2) / WIDTH**0.5).softmax(-1) @ v
        if self.after is not None:
            mixed = self.after(mixed)
        return x + self.o(mixed.transpose(1, 2).flatten(2))


def turned(x: Tensor) -> Tensor:
    left, right = x.chunk(2, -1)
    return torch.cat([-right, left], -1)


class MergedAttention(nn.Module):
    """Queries, keys and values by one layer, viewed by one width of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.o = nn.LayerNorm(24), nn.Linear(24, 3 * HEADS * WIDTH), nn.Linear(HEADS * WIDTH, 24)
        q, _, v = self.qkv.weight.chunk(3)
        with torch.no_grad():
            for part in (q, v):
                made = nn.Linear(24, HEADS * WIDTH)
                of_low_rank(made, RANK, HEADS)
                part.copy_(made.weight)
            self.qkv.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Builtin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attend = nn.LayerNorm(24), nn.MultiheadAttention(24, 3, batch_first=True)
        with torch.no_grad():
            q, _, v = self.attend.in_proj_weight.chunk(3)
            for part in (q, v):
                made = nn.Linear(24, 24)
                of_low_rank(made, RANK, 3)
                part.copy_(made.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.attend(y, y, y, need_weights=False)[0]


BLOCKS = {
    "plain": Attention,
    "without biases": lambda: Attention(bias=False),
    "shared keys": lambda: Attention(key_heads=2),
    "merged": MergedAttention,
    "built in": Builtin,
}
X = torch.randn(64, 10, 12, generator=torch.Generator().manual_seed(0))


def network(block, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 24), block(), nn.LayerNorm(24), nn.Linear(24, 5)).eval()


def change(model: nn.Module, method: Reconstruction, rule: str = "1.*") -> float:
    pruned = copy.deepcopy(model)
    data = {"data": [X]} if method.moments == "batches" else {}
    plan = prune(pruned, X[:2], {rule: 1 - (RANK + 1) / WIDTH}, method=method, heads="within", **data)
    assert plan.groups
    assert all(group.channels_after < group.channels_before for group in plan.groups)
    with torch.no_grad():
        whole = model(X)
        return float((pruned(X) - whole).norm() / (whole - model[:1](X).mean()).norm())


@pytest.mark.parametrize("moments", ["synthetic", "batches"])
@pytest.mark.parametrize("name", BLOCKS)
def test_directions_that_matter_stay(name, moments):
    model = network(BLOCKS[name])
    moved = change(model, Reconstruction(moments=moments))
    stayed = change(model, Reconstruction(moments=moments, refine=False))
    assert moved < (0.6 if name == "shared keys" else 0.4) * stayed
    assert moved < 0.02 or name == "shared keys"  # whose heads have twice as many directions of queries


def test_queries_and_keys_stay_where_positions_rotate_them():
    model = network(lambda: Attention(rotary=True))
    plan = plan_pruning(model, X[:2], {"1.*": 0.5}, method=Reconstruction(), heads="within")
    values = {update.name: update.value for update in plan.changes if update.value is not None}
    assert "1.v.weight" in values
    assert not {"1.q.weight", "1.k.weight"} & set(values)


@pytest.mark.parametrize(
    ("options", "where"), [({"after": torch.tanh}, "1.v"), ({"feature": F.gelu}, "1.q")], ids=["values", "queries"]
)
def test_nothing_rotates_through_an_activation(options, where):
    model = network(lambda: Attention(**options))
    assert where in {group.name for group in analyse(model, X[:2], heads="within").groups}
    plan = plan_pruning(model, X[:2], {where: 0.5}, method=Reconstruction(), heads="within")
    assert f"{where}.weight" not in {update.name for update in plan.changes if update.value is not None}


def values_that_move(model: nn.Module, example: Tensor) -> set[str]:
    plan = plan_pruning(model, example, {"1.*": 0.5}, method=Reconstruction(), heads="within")
    return {update.name for update in plan.changes if update.value is not None}


def test_rotations_are_tried_on_few_samples(monkeypatch):
    seen, original = [], rotation_check.MeasuringRuns.measure

    def spied(self, *args, **options):
        seen.append([one.batch_size for way in self.examples for one in way])
        return original(self, *args, **options)

    monkeypatch.setattr(rotation_check.MeasuringRuns, "measure", spied)
    assert "1.v.weight" in values_that_move(network(Attention), X[:2])
    assert seen.count([rotation_check._SAMPLES]) == 2
    assert sum(sum(sizes) > rotation_check._SAMPLES for sizes in seen) == 1


def test_rotations_are_tried_on_all_samples_where_few_go_another_way():
    class Sometimes(Attention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if len(x) > rotation_check._SAMPLES else x

    model = network(Sometimes)
    assert "1.v.weight" in values_that_move(model, X)
