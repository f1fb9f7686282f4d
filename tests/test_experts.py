"""Mixtures of experts: what the self-check completes is right, and what is pruned of them runs, trains and loads."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO
from zoo.inspection import reachable
from zoo.oracle import build, examine
from zoo.running import call, results

from lightning_coreset import count_macs, prune
from lightning_coreset.structure import Example, analyse
from lightning_coreset.verification import verified

OWN = "mixture_of_networks switch stack_by_loop stack_by_linear stack_interleaved stack_of_all stack_by_einsum"
CLASSIC = [f"classic/{name}" for name in f"{OWN} stack_grouped soft_mixture".split()]
MODELS = (
    "mixtral gpt-oss olmoe qwen2-moe qwen3-moe granite-moe granite-moe-shared phi-moe deepseek-v2-moe deepseek-v3-moe"
)
NAMES = [f"hf/{name}{end}" for name in MODELS.split() for end in ("", "-batched", "-loop")]
networks = pytest.mark.parametrize("name", [*CLASSIC, *NAMES])


def made(name: str) -> tuple[nn.Module, object]:
    if name.startswith("hf/"):
        pytest.importorskip("transformers")
    return build(ZOO[name]).eval(), ZOO[name].inputs(torch.Generator().manual_seed(0))


@pytest.mark.slow
@networks
def test_all_that_is_offered_is_right_and_it_is_nearly_everything(name):
    model, inputs = made(name)
    structure = verified(model, analyse(model, inputs), Example.of(inputs))
    share = reachable(model, structure.groups) / sum(parameter.numel() for parameter in model.parameters())
    assert share >= 0.95, structure.refused
    for verdict in examine(ZOO[name], model, structure.groups, limit=20):
        assert verdict.kind == "right", verdict


@pytest.mark.slow
@networks
def test_half_of_them_can_go_and_the_rest_trains(name):
    """In the precision of the model, with torch's own kernels, which want sizes that are multiples."""
    model, inputs = made(name)
    macs = count_macs(model, inputs)
    plan = prune(model, inputs, 0.5, include_residual=True)
    # To the nearest step, of which there are few where several channels go at a time.
    assert plan.params_after / plan.params_before == pytest.approx(0.5, abs=0.06)
    # The pruned router sends some rows to other experts, of which each may have been pruned otherwise.
    assert count_macs(model, inputs) == pytest.approx(plan.macs_after, rel=0.05)
    assert plan.macs_after < 0.65 * macs
    outputs = [one for one in results(call(model.train(), inputs)) if one.is_floating_point()]
    sum(one.square().sum() for one in outputs).backward()
    used = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert used
    assert all(grad.isfinite().all() for grad in used)


class Grouped(nn.Module):
    """Rows by the matrices of experts, both in one product, as torch runs it, or one expert after the other."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, width), nn.Linear(width, 2)
        self.w1 = nn.Parameter(torch.randn(3, hidden, width))
        self.w2 = nn.Parameter(torch.randn(3, hidden, width))
        self.grouped = True

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.product(self.first(x).relu(), self.w1.mT).relu()
        return self.last(self.product(hidden, self.w2))

    def product(self, rows: Tensor, matrices: Tensor) -> Tensor:
        ends = [len(rows) * 4 // 9, len(rows) * 4 // 9, len(rows)]  # the second expert has no rows
        if self.grouped:
            return torch._grouped_mm(rows, matrices, offs=torch.tensor(ends, dtype=torch.int32))
        starts = [0, *ends[:-1]]
        return torch.cat([rows[a:b] @ one for a, b, one in zip(starts, ends, matrices, strict=True)])


X = torch.randn(9, 5)


def test_a_grouped_product_is_as_many_products():
    grouped = Grouped(16, 24)
    alone = copy.deepcopy(grouped)
    alone.grouped = False
    found, expected = (analyse(model, X) for model in (grouped, alone))
    assert [(group.name, group.size, group.members) for group in found.groups] == [
        (group.name, group.size, group.members) for group in expected.groups
    ]
    assert found.uncounted == ()
    assert found.macs == expected.macs
    assert found.macs["w1"] == 16 * 24  # of a row
    torch.testing.assert_close(grouped(X), alone(X))


@pytest.mark.parametrize(
    ("width", "hidden", "multiples"),
    [(16, 24, {"first": 8, "w1": 8, "w2": 8}), (12, 20, {"first": 4, "w1": 4, "w2": 4}), (8, 16, {"w1": 8})],
)
def test_sizes_are_those_that_grouped_products_can_have(width, hidden, multiples):
    """Of half precision where the network has them now, else of its own."""
    model = Grouped(width, hidden)
    structure = analyse(model, X)
    assert {group.name: group.multiple for group in structure.groups} == multiples
    if "first" not in multiples:
        assert structure.refused["first"] == "has 8 channels, of which only multiples of 8 could go at a time"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prune(model, X, dict.fromkeys(multiples, 0.4))
    assert model(X).shape == (9, 2)
    assert model.w1.shape[1] == model.w2.shape[1] < hidden


def test_sizes_may_be_any_where_no_product_is_grouped():
    model = Grouped(12, 20)
    model.grouped = False
    assert {group.multiple for group in analyse(model, X).groups} == {1}
    prune(model, X, {"w1": 0.25})
    assert model.w1.shape == (3, 15, 12)


class Rotated(nn.Module):
    """Pairs behind a part of one layer's outputs are complex numbers: the rows that they are taken of stay even."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 12), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        rest, pairs = first[:, : self.second.in_features], first[:, -4:]
        turned = torch.view_as_complex(pairs.unflatten(-1, (2, 2))).abs().sum(-1, keepdim=True)
        return self.second(rest) * turned


def test_rows_of_complex_numbers_stay_even():
    model = Rotated()
    (group,) = verified(model, analyse(model, X), Example.of(X)).groups
    assert (group.size, group.multiple) == (8, 2)
    prune(model, X, {"first": 0.4})
    assert model.second.in_features == 4
    assert model(X).shape == (9, 3)
