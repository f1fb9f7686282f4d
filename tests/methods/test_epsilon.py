"""Sizes chosen by the theorem: the sample size by hand, the error kept, and what happens where it is vacuous.

What is refined of the theorem and what is certified is in test_promises.
"""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from networks import make, randomised, structure_of
from torch import Tensor, nn
from torch.nn import functional

from lightning_coreset import Sensitivity, prune
from lightning_coreset.coreset import find_activation, sample_size, sampling_complexity, sensitivities
from lightning_coreset.methods import asked_draws, certified_draws
from lightning_coreset.planning import Request, make_plan
from lightning_coreset.structure import analyse
from lightning_coreset.surgery import new_value


@pytest.fixture
def theorem_alone(monkeypatch):
    monkeypatch.setattr(certified_draws, "_WORK", 0)
    monkeypatch.setattr(asked_draws, "_ENTRIES", 0)


alone = pytest.mark.usefixtures("theorem_alone")
ACTIVATIONS = {"relu": nn.ReLU(), "tanh": nn.Tanh(), "sigmoid": nn.Sigmoid(), "gelu": nn.GELU()}


def wide(*between: nn.Module, inputs: int = 5, channels: int = 600, outputs: int = 2) -> nn.Sequential:
    layers = [nn.Linear(inputs, channels), *between, nn.Linear(channels, outputs)]
    return randomised(nn.Sequential(*layers).double().eval(), torch.Generator().manual_seed(0))  # type: ignore


def rows_of(layer: nn.Linear | nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return torch.cat([layer.weight.flatten(1), layer.bias[:, None]], dim=1).detach()


def draws_by_hand(model: nn.Sequential, name: str, epsilon: float, radius: float, delta: float) -> int:
    activation = find_activation(name)
    assert activation is not None
    rows, columns = rows_of(model[0]), model[2].weight.detach()[..., None].flatten(2)
    scores = sensitivities(rows, columns, activation, input_radius=radius)
    complexity = sampling_complexity(rows, columns, activation, scores, input_radius=radius)
    coordinates = columns.shape[0] * columns.shape[2]
    return sample_size(float(scores.sum()), epsilon, coordinates, delta, complexity=complexity)


def epsilon_for(model: nn.Sequential, name: str, draws: int, radius: float = 1.0, delta: float = 0.05) -> float:
    """The epsilon for which the theorem asks for about so many draws."""
    return math.sqrt(draws_by_hand(model, name, 1e-3, radius, delta) / draws) * 1e-3


@alone
@pytest.mark.parametrize("radius", [1.0, 3.0])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_draws_are_those_of_the_theorem(name, radius):
    model = wide(ACTIVATIONS[name])
    epsilon = epsilon_for(model, name, 300, radius, 0.2)
    # A part of 1e-5 is left to norms in single precision.
    draws = draws_by_hand(model, name, epsilon * (1 - 1e-5), radius, 0.2)
    assert 299 <= draws <= 301
    method = Sensitivity(input_radius=radius, epsilon=epsilon, delta=0.2)
    plan = prune(copy.deepcopy(model), torch.randn(2, 5).double(), method=method)
    by_hand = prune(
        copy.deepcopy(model),
        torch.randn(2, 5).double(),
        1 - (draws - 0.5) / 600,
        unit="channels",
        method=Sensitivity("draws", radius),
    )
    assert abs(by_hand.groups[0].channels_after - plan.groups[0].channels_after) <= 2
    assert plan.groups[0].channels_after <= draws
    assert plan.groups[0].method == f"sensitivity (epsilon={epsilon:g}, theorem)"


@alone
def test_a_convolution_has_a_coordinate_for_every_kernel_position():
    layers = nn.Sequential(nn.Conv2d(2, 400, 3), nn.ReLU(), nn.Conv2d(400, 3, 3)).double()
    epsilon = epsilon_for(layers, "relu", 200)
    x = torch.randn(1, 2, 8, 8).double()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sizes = []
        for factor in (1.0, 0.705):  # half as much error, twice as many draws: more than there are channels
            plan = prune(copy.deepcopy(layers), x, method=Sensitivity(epsilon=factor * epsilon))
            sizes.append(plan.groups[0].channels_after)
    assert sizes[0] < 200
    assert sizes[1] == 400
    assert len(caught) == 1


@alone
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_error_is_kept(name):
    """Over many draws, by the worst of many inputs; a hundred times fewer draws would break it."""
    model, delta, broken = wide(ACTIVATIONS[name]), 0.05, 0
    epsilon = epsilon_for(model, name, 400)
    points = functional.normalize(torch.randn(500, 5, dtype=torch.float64), dim=1)
    points = torch.cat([points, points * torch.rand(500, 1)])
    structure, worst = analyse(model, points[:2]), 0.0
    with torch.no_grad():
        hidden, right = model[:2](points), model(points)
    for seed in range(100):
        plan = make_plan(model, structure, Request(0.5, method=Sensitivity(epsilon=epsilon, delta=delta), seed=seed))
        value = next(new_value(change, model[2].weight) for change in plan.changes if change.name == "2.weight")
        with torch.no_grad():
            y = hidden[:, list(plan.groups[0].kept)] @ value.T + model[2].bias
        error = float((y - right).abs().max())
        worst = max(worst, error)
        broken += error > epsilon
    assert broken / 100 <= delta
    assert worst > epsilon / 20  # the bound is not merely huge


@alone
def test_a_norm_behind_the_activation_counts():
    model = wide(nn.ReLU(), nn.BatchNorm1d(600))
    points = functional.normalize(torch.randn(500, 5, dtype=torch.float64), dim=1)
    scale = model[2].weight / (model[2].running_var + model[2].eps).sqrt()
    offset = model[2].bias - scale * model[2].running_mean
    reach = 2**0.5 * rows_of(model[0]).norm(dim=1)
    weights = model[3].weight.abs().amax(dim=0)
    scores = weights * (scale.abs() * reach + offset.abs())
    slopes = weights * scale.abs() * reach
    complexity = float((scores.sum() * (slopes**2 / scores).sum()).sqrt().detach())
    total = float(scores.sum().detach())
    epsilon = math.sqrt(sample_size(total, 1e-3, 2, 0.05, complexity=complexity) / 300) * 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = prune(copy.deepcopy(model), points, method=Sensitivity(epsilon=epsilon))
    assert plan.groups[0].channels_after < 300
    pruned = copy.deepcopy(model)
    prune(pruned, points, method=Sensitivity(epsilon=epsilon))
    with torch.no_grad():
        assert float((pruned(points) - model(points)).abs().max()) <= epsilon
    with pytest.warns(UserWarning, match="vacuous"):
        prune(copy.deepcopy(model), points, method=Sensitivity(epsilon=epsilon * 0.7))


@alone
def test_a_vacuous_bound_keeps_the_group_and_says_so():
    model, x = make("mlp")
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(UserWarning, match=r"The bound is vacuous for 0, 2: ") as caught:
        plan = prune(model, x, method=Sensitivity(epsilon=1e-3))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert [group.method for group in plan.groups] == ["kept whole (the bound is vacuous)"] * 2
    assert (plan.channels_removed, plan.reached) == (0, 0.0)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


@alone
def test_only_the_clipped_group_is_named():
    model = wide(nn.ReLU())
    model = nn.Sequential(*model[:2], nn.Linear(600, 6).double(), nn.ReLU(), nn.Linear(6, 2).double())
    epsilon = 1.05 * epsilon_for(model, "relu", 500)
    with torch.no_grad():
        model[4].weight.mul_(1e6)
    with pytest.warns(UserWarning, match=r"The bound is vacuous for 2: "):
        plan = prune(model, torch.randn(2, 5).double(), method=Sensitivity(epsilon=epsilon))
    assert plan.groups[0].channels_after < 500
    assert plan.groups[1].channels_after == 6


@alone
def test_the_ratio_is_only_reported():
    plans, whole = [], wide(nn.ReLU())
    epsilon = epsilon_for(whole, "relu", 300)
    for ratio in (0.0, 0.9):
        model = copy.deepcopy(whole)
        plans.append(prune(model, torch.randn(2, 5).double(), ratio, method=Sensitivity(epsilon=epsilon)))
        assert plans[-1].requested == ratio
        assert model[0].out_features == plans[-1].groups[0].channels_after < 300
    assert plans[0].reached == plans[1].reached > 0.5


def test_groups_without_a_form_stay_whole():
    model, x = make("gated")
    plan = prune(model, x, method=Sensitivity(epsilon=1e9))
    assert [group.method for group in plan.groups] == ["kept whole (several layers make its channels)"]
    assert plan.channels_removed == 0


def test_groups_without_a_size_stay_whole():
    """As in a schedule from the bottom up, whose later groups are not due yet."""
    model, _ = make("mlp")
    plan = make_plan(model, structure_of("mlp"), Request(0.5, method=Sensitivity(epsilon=1e6)), sizes={"0": 3})
    assert [group.channels_after for group in plan.groups] == [1, 12]


def test_the_sampler_follows():
    assert Sensitivity().sampler == "distinct"
    assert Sensitivity(epsilon=1.0).sampler is None  # the theorem has "draws", and certificates "pps"
    assert Sensitivity("distinct", epsilon=1.0).sampler == "distinct"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "Expected epsilon to be a positive number but got 0.0"),
        ({"epsilon": -1.0}, "Expected epsilon"),
        ({"epsilon": float("nan")}, "Expected epsilon"),
        ({"epsilon": float("inf")}, "Expected epsilon"),
        ({"epsilon": 1.0, "delta": 0.0}, "Expected delta to be a number between 0 and 1 but got 0.0"),
        ({"delta": 1.0}, "Expected delta"),
        ({"delta": float("nan")}, "Expected delta"),
        ({"epsilon": 1.0, "sampler": "poisson"}, "Expected sampler to be 'distinct', 'draws' or 'pps'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        Sensitivity(**options)
