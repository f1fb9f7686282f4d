"""Sizes by the refined theorem and by certificates: which decides, what it says, and that written weights keep it."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from torch import Tensor, nn

from lightning_coreset import Sensitivity, plan_pruning
from lightning_coreset.coreset import draw_law, error_claim, find_activation, refined_sample_size, sensitivities
from lightning_coreset.layers import CoordinateChange, GroupView, PlanState, single_channel_pairs
from lightning_coreset.methods import Selection, asked_draws, certified_draws, sensitivity
from lightning_coreset.methods.reweighting import reweighted_consumers
from lightning_coreset.plan import GroupPlan
from lightning_coreset.planning import consumer_change
from lightning_coreset.structure import analyse
from lightning_coreset.surgery import named_tensors

pytestmark = pytest.mark.usefixtures("double_precision")


@pytest.fixture
def no_certificate(monkeypatch):
    monkeypatch.setattr(certified_draws, "_WORK", 0)


def net(channels: int = 40, inputs: int = 3, outputs: int = 3, activation: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, channels), activation or nn.ReLU(), nn.Linear(channels, outputs)).eval()


def planned(model: nn.Module, sampler: str | None = None, seed: int = 0, **options: object) -> GroupPlan:
    method = Sensitivity(sampler, **options)  # type: ignore
    x = torch.zeros(2, model[0].in_features, dtype=next(model.parameters()).dtype)
    plan = plan_pruning(model, x, method=method, only=["0"], seed=seed, certify=True, input_radius=method.input_radius)
    return plan.groups[0]


def error_at_half(model: nn.Module, sampler: str = "pps") -> float:
    """What is certified for half of the channels."""
    x = torch.zeros(2, model[0].in_features)
    plan = plan_pruning(model, x, {"0": 0.5}, method=Sensitivity(sampler), certify=True, input_radius=1.0)
    assert plan.groups[0].certified_error is not None
    return plan.groups[0].certified_error


@pytest.mark.usefixtures("no_certificate")
def test_the_refined_theorem_decides_where_nothing_can_be_certified():
    model = net(3000)
    producers = torch.cat([model[0].weight, model[0].bias[:, None]], dim=1).detach()
    consumers, relu = model[2].weight.detach(), find_activation("relu")
    assert relu is not None
    s = sensitivities(producers, consumers[..., None], relu)
    law = draw_law(producers, consumers, relu, s)
    epsilon = float(s.sum()) * 6 / 3000**0.5  # the theorem asks for about as many draws as there are channels
    group = planned(model, epsilon=epsilon)
    draws = refined_sample_size(law, epsilon * (1 - 1e-5), 0.05)
    assert draws < 1500
    assert draws * 0.7 < group.channels_after <= draws
    assert group.method == f"sensitivity (epsilon={epsilon:g}, refined theorem)"


def test_a_certificate_decides_where_it_allows_less():
    model = net()
    epsilon = 1.01 * error_at_half(model)
    group = planned(model, epsilon=epsilon)
    assert group.method == f"sensitivity (epsilon={epsilon:g}, certificate)"
    assert group.channels_after <= 22
    assert group.certified_error is not None
    assert group.certified_error <= epsilon


@pytest.mark.parametrize(
    ("sampler", "activation"), [(None, nn.GELU()), (None, nn.Sigmoid()), ("draws", nn.ReLU()), ("distinct", nn.ReLU())]
)
def test_plans_certify_what_was_promised(sampler, activation):
    """Of several sizes of errors and seeds: what a plan certifies of the written weights is no larger."""
    model = net(30, activation=activation)
    half = error_at_half(model)
    sizes = []
    for seed, part in enumerate((0.4, 1.0, 2.5)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            group = planned(model, sampler, seed, epsilon=part * half)
        assert group.certified_error is not None
        assert group.certified_error <= part * half
        sizes.append(group.channels_after)
    assert sizes[0] > sizes[1] > sizes[2]


def test_weights_are_certified_as_the_model_will_hold_them():
    """In bfloat16 rounding alone makes an error, which a promise has to include."""
    model = net(64)
    half = error_at_half(model)
    model = model.to(torch.bfloat16)
    for seed in range(2):
        group = planned(model, epsilon=0.6 * half, seed=seed)
        assert group.channels_after < 64
        assert group.certified_error is not None
        assert group.certified_error <= 0.6 * half


@pytest.mark.parametrize("entries", [0, 2**24], ids=["theorem", "refined"])
def test_the_theorems_leave_room_for_rounding(entries, monkeypatch):
    """In bfloat16 new weights are off by a part of 1/256 twice, and with them what they carry."""
    monkeypatch.setattr(asked_draws, "_ENTRIES", entries)
    model, asked = net(3000), []
    for dtype in (torch.float64, torch.bfloat16):
        model = model.to(dtype)
        structure = analyse(model, torch.zeros(2, 3, dtype=dtype))
        view = GroupView(structure.groups[0], named_tensors(model), PlanState())
        pairs = single_channel_pairs(view)
        total = float(asked_draws.AskedDraws.of(pairs, 1e9, 0.05, 1.0).scores.sum())
        asked.append(asked_draws.AskedDraws.of(pairs, 0.05 * total, 0.05, 1.0).draws)
        if dtype == torch.bfloat16:
            assert math.isinf(asked_draws.AskedDraws.of(pairs, 0.99 * total / 128, 0.05, 1.0).draws)
    assert asked[1] > 1.2 * asked[0]


def test_nothing_is_certified_below_what_no_coreset_keeps():
    model = net()
    with pytest.warns(
        UserWarning, match=r"No coreset of 0 was certified to keep the error 1e-06, so all channels stay"
    ):
        group = planned(model, epsilon=1e-6)
    assert (group.method, group.channels_after) == ("kept whole (no smaller coreset was certified)", 40)


@pytest.mark.usefixtures("no_certificate")
@pytest.mark.parametrize(
    ("sampler", "method", "message"),
    [
        (None, "kept whole (the bound is vacuous)", "The bound is vacuous for 0: the theorem asks"),
        ("draws", "kept whole (the bound is vacuous)", "The bound is vacuous for 0: the theorem asks"),
        ("pps", "kept whole (too large to certify)", "No coreset of 0 can be certified in reasonable time"),
        ("distinct", "kept whole (too large to certify)", "No coreset of 0 can be certified in reasonable time"),
    ],
)
def test_groups_that_take_too_long_say_so(sampler, method, message):
    with pytest.warns(UserWarning, match=message):
        group = planned(net(), sampler, epsilon=0.5)
    assert (group.method, group.channels_after) == (method, 40)


def test_work_is_limited(monkeypatch):
    """Rows are counted over all attempts; what is left over decides, and nothing uncertified is accepted."""
    model = net(60, outputs=20)
    epsilon = 1.01 * error_at_half(model)
    taken = []
    proven = error_claim.ErrorClaim.proven

    def counted(self, generator):
        found, rows = proven(self, generator)
        taken.append(rows)
        return found, rows

    monkeypatch.setattr(error_claim.ErrorClaim, "proven", counted)
    monkeypatch.setattr(certified_draws, "_WORK", 25 * 60 * 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        group = planned(model, epsilon=epsilon)
    assert sum(taken) <= 25
    assert group.certified_error is not None
    assert group.certified_error <= epsilon


@pytest.mark.parametrize("sampler", ["pps", "draws", "distinct"])
def test_given_samplers_are_used(sampler, monkeypatch):
    used = set()

    def noting(name, draw):
        return lambda *given: used.add(name) or draw(*given)

    table = {name: noting(name, draw) for name, draw in sensitivity._SAMPLERS.items()}
    monkeypatch.setattr(sensitivity, "_SAMPLERS", table)
    planned(net(), sampler, epsilon=4.0)
    assert used == {sampler}


def test_plans_are_the_same_for_a_seed():
    model = net()
    epsilon = error_at_half(model)
    first, again, other = (planned(model, seed=seed, epsilon=epsilon) for seed in (3, 3, 4))
    assert first.kept == again.kept != other.kept


class Several(nn.Module):
    """Two layers read the channels, one of them behind a BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Linear(3, 24), nn.BatchNorm1d(24)
        self.b, self.c = nn.Linear(24, 4), nn.Linear(24, 2)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)
        nn.init.normal_(self.norm.running_mean)
        self.norm.running_var.uniform_(0.3, 2.0)
        with torch.no_grad():
            self.c.weight.mul_(8.0)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return torch.cat([self.b(self.norm(h)), self.c(h)], dim=1)


def test_every_consumer_keeps_the_promise():
    torch.manual_seed(0)
    model, seen = Several().eval(), 0
    for epsilon in (4.0, 8.0):
        plan = plan_pruning(
            model, torch.zeros(2, 3), method=Sensitivity(epsilon=epsilon), certify=True, input_radius=1.0
        )
        (group,) = (one for one in plan.groups if one.name == "a")
        assert group.certified_error is not None
        assert group.certified_error <= epsilon
        seen += group.channels_after < 24
    assert seen == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_changes_are_those_that_plans_certify(dtype):
    torch.manual_seed(1)
    model = Several().eval().to(dtype)
    structure = analyse(model, torch.zeros(2, 3, dtype=dtype))
    (group,) = (one for one in structure.groups if one.name == "a")
    view = GroupView(group, named_tensors(model), PlanState())
    selection = Selection(torch.arange(0, 24, 3), weights=torch.rand(8) + 1)
    for pair in single_channel_pairs(view):
        new = reweighted_consumers(group, selection, view.tensors)
        change = CoordinateChange.of(pair, new, selection.kept)
        certified = consumer_change.ConsumerChange.of(pair, selection)
        assert torch.equal(change.weights, certified.change)
        torch.testing.assert_close(change.constant, certified.constant, rtol=1e-12, atol=1e-12)
        assert (change.magnitude >= change.constant.abs()).all()


def test_a_copy_is_not_changed():
    model = net()
    before = copy.deepcopy(model.state_dict())
    planned(model, epsilon=1.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
