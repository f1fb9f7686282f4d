"""Sizes that modules keep as tuples or lists: changed, undone, saved and loaded as numbers are."""

from __future__ import annotations

import copy
import io
import re

import pytest
import torch
from torch import Tensor, nn

from lightning_coreset import PruningPlan, make_resizable, plan_pruning
from lightning_coreset.module_specs import is_size, new_sizes, plain_size
from lightning_coreset.module_specs.values import size_like
from lightning_coreset.plan import AttributeChange, ParameterChange
from lightning_coreset.structure import ModuleSpec, register_module
from lightning_coreset.surgery import ModelShapes, Snapshot, apply_changes, resize

NORMS = {
    "LayerNorm": lambda shape: nn.LayerNorm(shape),
    "LayerNorm without bias": lambda shape: nn.LayerNorm(shape, bias=False),
    "RMSNorm": lambda shape: nn.RMSNorm(shape),
}


def network(norm: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8) if norm is None else norm, nn.Linear(8, 2))


def cut(model: nn.Module, kept: list[int]) -> nn.Module:
    """Keep some positions of every dimension that is eight long, as the removal of channels does."""
    changes = []
    for name, tensor in model.named_parameters():
        positions = {dim: torch.tensor(kept) for dim, size in enumerate(tensor.shape) if size == 8}
        if positions:
            shape = tuple(len(kept) if size == 8 else size for size in tensor.shape)
            changes.append(ParameterChange(name, tuple(tensor.shape), shape, positions))
    apply_changes(model, changes)
    return model


def through_a_file(state: object) -> dict[str, Tensor]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, True),
        ((3,), True),
        ([3, 4], True),
        (torch.Size([2, 3]), True),
        ((), False),
        (True, False),
        ((3, True), False),
        ((3, 0.5), False),
        (["3"], False),
        ({3}, False),
        (list(range(65)), False),
        (torch.tensor([3]), False),
    ],
)
def test_what_is_a_size(value, expected):
    assert is_size(value) is expected


@pytest.mark.parametrize("kind", [tuple, list, torch.Size])
def test_the_type_stays(kind):
    new = size_like(kind([8, 3]), (5, 3))
    assert type(new) is kind
    assert plain_size(new) == (5, 3)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", [tuple, list, torch.Size])
def test_normalized_shape_follows_the_weight(norm, kind):
    model = network(NORMS[norm](8))
    model[1].normalized_shape = kind([8])
    cut(model, [0, 2, 3])
    assert model[1].normalized_shape == kind([3])
    assert type(model[1].normalized_shape) is kind
    assert model(torch.randn(2, 4)).shape == (2, 2)


def test_a_norm_over_several_dimensions():
    norm = nn.LayerNorm((8, 3))
    assert new_sizes("norm", norm, (5, 3)) == {"normalized_shape": (5, 3)}


def test_a_norm_that_has_only_a_bias():
    norm = nn.LayerNorm(8)
    norm.weight = None
    model = cut(network(norm), [1, 2])
    assert model[1].normalized_shape == (2,)


@pytest.mark.parametrize("copied", [False, True])
def test_a_snapshot_puts_the_same_list_back(copied):
    model = network()
    shape = model[1].normalized_shape = [8]
    snapshot = Snapshot(model, copy=copied)
    cut(model, [0, 5])
    assert shape == [8], "whoever else holds the list saw it change"
    snapshot.restore()
    assert model[1].normalized_shape is shape
    shape[0] = 7
    snapshot.restore()
    assert shape == [8]


# ---- plans


class Split(nn.Module):
    def __init__(self, sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.layer = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("kind", [tuple, list, torch.Size])
def test_attributes_of_a_plan_may_be_tuples(kind):
    model = nn.Sequential(Split(kind([5, 3])))
    change = AttributeChange("0", "sizes", (5, 3), (4, 3))
    apply_changes(model, [], [change])
    assert model[0].sizes == kind([4, 3])
    with pytest.raises(ValueError, match=re.escape("Expected 'sizes' of module '0' to be (5, 3) but got")):
        apply_changes(model, [], [change])


def test_a_plan_with_tuples_survives_a_file():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    plan = plan_pruning(model, torch.randn(1, 4), 0.5)
    changes = (AttributeChange("0", "sizes", (5, 3), (4, 3)), AttributeChange("0", "heads", 4, 2))
    plan = PruningPlan(**{**vars(plan), "attributes": changes})
    assert PruningPlan.from_dict(through_a_file(plan.to_dict())).attributes == changes


# ---- checkpoints


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("plain", [False, True])
def test_a_checkpoint_and_back(norm, plain):
    pruned, fresh = make_resizable(network(NORMS[norm](8))), make_resizable(network(NORMS[norm](8)))
    fresh[1].normalized_shape = [8]
    original = through_a_file(fresh.state_dict())
    cut(pruned, [0, 2, 3])
    state = through_a_file(pruned.state_dict())
    fresh.load_state_dict(dict(state) if plain else state)
    assert fresh[1].normalized_shape == [3]
    x = torch.randn(3, 4)
    assert torch.equal(fresh(x), pruned(x))
    fresh.load_state_dict(original)
    assert fresh[1].normalized_shape == [8]


def test_the_metadata_is_plain():
    model = cut(make_resizable(network()), [0, 2, 3])
    record = model.state_dict()._metadata[""]["lightning_coreset"]
    assert record["original"]["sizes"] == {"0.out_features": 8, "1.normalized_shape": [8], "2.in_features": 8}
    assert record["pruned"]["sizes"] == {"0.out_features": 3, "1.normalized_shape": [3], "2.in_features": 3}


def test_a_record_without_tuples_is_read():
    """As version 0.1 wrote it, which knew integers only."""
    pruned, fresh = cut(make_resizable(network()), [0, 2, 3]), make_resizable(network())
    state = pruned.state_dict()
    for part in state._metadata[""]["lightning_coreset"].values():
        del part["sizes"]["1.normalized_shape"]
    fresh.load_state_dict(state)
    assert fresh[1].normalized_shape == (3,)


@pytest.mark.parametrize("wrong", ["8", 8.5, None, [8, "3"], [[8]], {"8": 8}, True])
def test_a_malformed_record_is_a_clear_error(wrong):
    pruned, fresh = cut(make_resizable(network()), [0, 2, 3]), make_resizable(network())
    state = pruned.state_dict()
    state._metadata[""]["lightning_coreset"]["pruned"]["sizes"]["1.normalized_shape"] = wrong
    with pytest.raises(ValueError, match=r"cannot read it .*sizes\['1\.normalized_shape'\].* to be of type int"):
        fresh.load_state_dict(state)
    assert fresh[1].normalized_shape == (8,)


@pytest.mark.parametrize(
    ("part", "size", "message"),
    [
        ("pruned", [4], r"'1\.weight' has shape \(3,\), which does not fit normalized_shape=\(4,\)"),
        ("pruned", [], r"'1\.normalized_shape' is recorded as \(\), which is no part of the original \(8,\)"),
        ("pruned", [3, 1], r"'1\.normalized_shape' is recorded as \(3, 1\), which is no part of the original \(8,\)"),
        ("original", [9], r"'1\.normalized_shape' is \(9,\) before pruning where the model's is \(8,\)"),
        ("original", 8, r"'1\.normalized_shape' is 8 before pruning where the model's is \(8,\)"),
    ],
)
def test_a_record_that_contradicts_the_weight_is_rejected(part, size, message):
    pruned, fresh = cut(make_resizable(network()), [0, 2, 3]), make_resizable(network())
    state = pruned.state_dict()
    state._metadata[""]["lightning_coreset"][part]["sizes"]["1.normalized_shape"] = size
    with pytest.raises(ValueError, match=message):
        fresh.load_state_dict(state)
    assert fresh[1].normalized_shape == (8,)
    assert fresh[1].weight.shape == (8,)


def test_a_record_of_a_norm_that_was_not_pruned_is_compared_as_well():
    pruned, fresh = (make_resizable(nn.Sequential(network(), nn.LayerNorm(2))) for _ in range(2))
    cut(pruned, [0, 2, 3])
    state = pruned.state_dict()
    for part, size in (("original", [2]), ("pruned", [1])):
        state._metadata[""]["lightning_coreset"][part]["sizes"]["1.normalized_shape"] = size
    with pytest.raises(ValueError, match=r"'1\.weight' has shape \(2,\), which does not fit normalized_shape=\(1,\)"):
        fresh.load_state_dict(state)


def test_weight_and_bias_of_a_norm_must_agree():
    fresh = make_resizable(network())
    state = dict(cut(network(), [0, 2, 3]).state_dict())
    state["1.bias"] = torch.zeros(2)
    with pytest.raises(ValueError, match=r"'1\.bias' has shape \(2,\) where its module has \(3,\) channels"):
        fresh.load_state_dict(state)


def test_resize_keeps_the_type():
    model, twin = cut(network(), [0, 2, 3]), network()
    twin[1].normalized_shape = [8]
    resize(twin, ModelShapes.of(model))
    assert twin[1].normalized_shape == [3]


# ---- specs of users


class Shaped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shape = [8, 4]
        self.weight = nn.Parameter(torch.randn(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight.T).reshape(len(x), self.shape[0])


@pytest.mark.parametrize("sizes", [{"shape": ...}, lambda attributes, shape: {"shape": shape}])
def test_a_spec_may_name_a_list(sizes):
    model = nn.Sequential(Shaped(), nn.ReLU(), nn.Linear(8, 2))
    with register_module(Shaped, ModuleSpec(sizes=sizes, width=None)):
        plan = plan_pruning(model, torch.randn(3, 4), 0.5)
        apply_changes(model, plan.changes, plan.attributes)
    assert model[0].shape == [4, 4]


@pytest.mark.parametrize("shape", [[8, 5], (8,), 8, None, [8, "4"]])
def test_a_list_that_the_spec_does_not_describe_is_named(shape):
    model = nn.Sequential(Shaped(), nn.ReLU(), nn.Linear(8, 2))
    broken = copy.deepcopy(model)
    broken[0].shape = shape
    with (
        register_module(Shaped, ModuleSpec(sizes={"shape": ...})),
        pytest.raises(ValueError, match=r"module '0' \(Shaped\)"),
    ):
        plan_pruning(broken, torch.randn(3, 4), 0.5)


@pytest.mark.parametrize("name", ["groups", "head_counts"])
def test_what_counts_is_one_integer(name):
    model = nn.Sequential(Shaped(), nn.ReLU(), nn.Linear(8, 2))
    spec = ModuleSpec(sizes=lambda attributes, shape: {}, **{name: "shape" if name == "groups" else ("shape",)})
    with register_module(Shaped, spec), pytest.raises(ValueError, match="to have the integer attribute 'shape'"):
        plan_pruning(model, torch.randn(3, 4), 0.5)
