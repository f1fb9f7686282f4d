"""`PruningPlan`: saving, loading, and its text."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
import torch
from networks import NETWORKS, make, structure_of
from torch import Tensor

from lightning_coreset.plan import AttributeChange, GroupPlan, ParameterChange, PruningPlan
from lightning_coreset.planning import Request, make_plan


def by_hand(**other: Any) -> PruningPlan:
    kept = torch.tensor([0, 2, 3])
    facts: dict[str, Any] = {
        "groups": (
            GroupPlan(
                "encoder.0", 4, 3, (0, 2, 3), "sensitivity (pps)", 0.0123, params_removed=1100, macs_removed=5556
            ),
            GroupPlan("encoder.1", 8, 8, tuple(range(8)), "rank (several layers make its channels)"),
        ),
        "changes": (
            ParameterChange("encoder.0.weight", (4, 5), (3, 5), {0: kept}),
            ParameterChange("encoder.1.weight", (8, 4), (8, 3), {1: kept}, torch.randn(8, 3)),
            ParameterChange("encoder.2.weight", (8, 4), (8, 3), {1: kept}, factors={1: torch.rand(3).double()}),
        ),
        "skipped": {"head": "makes outputs of the network", "norm": "is normalised over"},
        "requested": 0.5,
        "reached": 0.4321,
        "unit": "macs",
        "params_original": 2000,
        "params_before": 1600,
        "params_after": 1500,
        "macs_before": 12345,
        "macs_after": 6789,
        "attributes": (AttributeChange("encoder", "num_heads", 4, 3),),
    }
    return PruningPlan(**facts | other)


def saved_and_loaded(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    elif dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, tuple | list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    else:
        assert one == other


def test_a_plan_survives_a_checkpoint():
    plan = by_hand()
    assert_same(PruningPlan.from_dict(saved_and_loaded(plan.to_dict())), plan)


@pytest.mark.parametrize("network", NETWORKS)
def test_made_plans_survive_a_checkpoint(network):
    plan = make_plan(make(network)[0], structure_of(network), Request(0.4, include_residual=True))
    again = PruningPlan.from_dict(saved_and_loaded(plan.to_dict()))
    assert_same(again, plan)
    assert str(again) == str(plan)


def test_a_dict_is_plain():
    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(type(key) in (str, int) and plain(one) for key, one in value.items())
        return (
            all(map(plain, value)) if isinstance(value, list) else type(value) in (str, int, float, Tensor, type(None))
        )

    assert plain(by_hand().to_dict())


def test_sparsity_counts_against_the_original():
    plan = by_hand()
    assert plan.sparsity == pytest.approx(0.25)
    assert plan.channels_removed == 1


def test_the_text_is_a_table():
    lines = str(by_hand()).splitlines()
    head, rule, first, second, *rest = lines
    assert head.split() == ["group", "channels", "kept", "params", "MACs", "error", "method"]
    assert set(rule) == {"-"}
    assert len(rule) == max(map(len, [head, first, second]))
    cells = ["encoder.0", "4", "->", "3", "75%", "-1,100", "-5,556", "1.23%", "sensitivity (pps)"]
    assert first.split(maxsplit=8) == cells
    assert second.split(maxsplit=5) == ["encoder.1", "8", "->", "8", "100%", "rank (several layers make its channels)"]
    for heading, cell in (("params", "-1,100"), ("MACs", "-5,556"), ("channels", "4 -> 3"), ("kept", "75%")):
        assert head.index(heading) + len(heading) == first.index(cell) + len(cell)
    assert first.index("4 -> 3") == second.index("8 -> 8")
    assert head.index("method") == first.index("sensitivity") == second.index("rank")
    assert rest == [
        "macs removed: 43.21% of the original (requested 50.00%)",
        "params 1,600 -> 1,500, sparsity 25.00%",
        "MACs per sample 12,345 -> 6,789",
        "number changed: num_heads 4 -> 3 in encoder",
        "not pruned: head makes outputs of the network",
        "not pruned: norm is normalised over",
    ]


def test_plans_saved_without_sizes_of_groups_can_be_loaded():
    plain = by_hand().to_dict()
    for group in plain["groups"]:
        del group["params_removed"], group["macs_removed"]
    plan = PruningPlan.from_dict(plain)
    assert [(group.params_removed, group.macs_removed) for group in plan.groups] == [(0, 0), (0, 0)]


@pytest.mark.parametrize("field", ["groups", "params_after", "skipped"])
def test_a_plan_is_frozen(field):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(by_hand(), field, None)
