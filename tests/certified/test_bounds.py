"""Bounds on the change of outputs: never below what is found, exact where that is known, and not too far above."""

import copy
from itertools import pairwise

import pytest
import torch
from breadth import crossed, thinned
from certified.searching import difference, extremes, in_ball
from certified.zoo import NETWORKS, Computed, network
from torch import Tensor, nn

from lightning_coreset import output_change
from lightning_coreset.agreement.bounding import Bounds
from lightning_coreset.agreement.networks import followed

RADII = (0.02, 0.4, 3.0)


def check(first: nn.Module, second: nn.Module, x: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """The widths of what is proven and found, (n, outputs)."""
    proven = output_change(first, second, x, radius=radius)
    low, high = extremes(difference(first, second), x, radius)
    assert bool((proven.low.flatten(1) <= low).all())
    assert bool((proven.high.flatten(1) >= high).all())
    return (proven.high - proven.low).flatten(1), high - low


@pytest.mark.parametrize(("name", "radius"), crossed(NETWORKS, RADII))
def test_never_below_what_is_found(name, radius):
    first, second, x = network(name)
    proven, found = check(first, second, x, radius)
    if radius == RADII[0]:
        assert bool((proven <= 2 * found + 1e-3).all())


@pytest.mark.parametrize("name", ["relu", "gelu", "max pool", "residual block"])
def test_networks_of_which_all_is_different(name):
    first, _, x = network(name)
    other, _, _ = network(name, seed=1)
    for radius in RADII:
        check(first, other, x, radius)


@pytest.mark.parametrize("part", range(6))
def test_random_perceptrons_of_random_widths(part):
    for seed in range(5 * part, 5 * part + 5):
        torch.manual_seed(seed)
        widths = torch.randint(1, 9, (2, 3)).tolist()
        first, second = (
            nn.Sequential(
                *(nn.Linear(2, a), nn.ReLU(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c), nn.ReLU(), nn.Linear(c, 2))
            )
            for a, b, c in widths
        )
        check(first, second, torch.randn(2, 2), float(torch.rand(()) * 3))


def test_fewer_channels_are_paired_with_those_that_stayed():
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 2))
    second = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(20, 2))
    kept = torch.tensor([4, 0, 2])
    with torch.no_grad():
        second[0].weight.copy_(first[0].weight[kept])
        second[0].bias.copy_(first[0].bias[kept])
        second[2].weight.copy_(first[2].weight[:, kept])
        first[2].weight[:, [1, 3, 5]] *= 0.05
        second[2].bias.copy_(first[2].bias)
        second[5].load_state_dict(first[5].state_dict())
    x = torch.randn(2, 1, 6, 6)
    proven, found = check(first, second, x, 0.5)
    with followed(first, second, x, 0.5) as networks:
        bounds, node = networks.bounds(networks.samples), networks.joined.change
        rows = torch.eye(2, dtype=torch.float64).view(1, 2, 1, 2).expand(2, -1, -1, -1)
        apart = bounds.largest({node: rows}) + bounds.largest({node: -rows})
    assert bool((proven < apart / 3).all())
    assert bool((proven < 4 * found).all())


@pytest.mark.parametrize("name", thinned(list(NETWORKS), 3))
def test_radius_zero_is_the_change_itself(name):
    first, second, x = network(name)
    proven, exact = output_change(first, second, x), difference(first, second)(x.double())
    assert bool((proven.low <= exact).all())
    assert bool((proven.high >= exact).all())
    torch.testing.assert_close(proven.high, proven.low, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", thinned(list(NETWORKS), 3))
def test_every_value_on_the_way_lies_in_its_interval(name):
    first, second, x = network(name)
    with followed(first, second, x, 0.5) as networks:
        bounds, everything = networks.bounds(networks.samples), range(len(networks.joined.tape.nodes))
        points = in_ball(x, 0.5, 400)
        values = networks.joined.tape.run(points.flatten(0, 1)[:, None], everything)
    for number, value in zip(everything, values, strict=True):
        some = value.unflatten(0, points.shape[:2])
        assert bool((some >= bounds.low[number]).all())
        assert bool((some <= bounds.high[number]).all())


def test_linear_networks_are_bounded_exactly():
    torch.manual_seed(0)
    first = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )
    second = copy.deepcopy(first)
    nn.init.normal_(second[0].weight)
    x, radius = torch.randn(2, 2, 6, 6), 0.7
    change = difference(first.eval(), second.eval())
    rows = torch.autograd.functional.jacobian(lambda y: change(y).sum(0), x.double()).permute(1, 0, 2, 3, 4)
    proven = output_change(first, second, x, radius=radius)
    reach = radius * rows.flatten(2).norm(dim=2)
    torch.testing.assert_close(proven.high, change(x.double()) + reach, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(proven.low, change(x.double()) - reach, rtol=1e-9, atol=1e-9)


def test_one_layer_of_relus_on_whose_ball_no_sign_changes_is_exact():
    torch.manual_seed(0)
    first, second = (nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1)) for _ in range(2))
    x = torch.randn(4, 3)
    change, radius = difference(first, second), 1e-4
    at = x.double().requires_grad_()
    (slope,) = torch.autograd.grad(change(at).sum(), at)
    proven = output_change(first, second, x, radius=radius)
    reach = radius * slope.norm(dim=1, keepdim=True)
    torch.testing.assert_close(proven.high - change(x.double()), reach, rtol=1e-8, atol=0)
    torch.testing.assert_close(change(x.double()) - proven.low, reach, rtol=1e-8, atol=0)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3, 1e6])
def test_weights_and_inputs_of_all_sizes(scale):
    for name in ("relu", "tanh"):
        first, second, x = network(name)
        for one in (first, second):
            with torch.no_grad():
                next(iter(one.parameters())).mul_(scale)
        check(first, second, x, 0.3)
        check(first, second, x * scale, 0.3 * scale)


def test_casts_are_taken_as_exact():
    first, second, x = network("relu")
    cast = [nn.Sequential(Computed(lambda y: y.float()), one, Computed(lambda y: y.half())) for one in (first, second)]
    proven, plain = output_change(*cast, x, radius=0.2), output_change(first, second, x, radius=0.2)
    torch.testing.assert_close(proven.high, plain.high, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(proven.low, plain.low, rtol=1e-12, atol=1e-12)


def test_one_ball_around_zero_is_a_call_like_any_other():
    first, second, _ = network("relu")
    proven = output_change(first, second, torch.zeros(1, 3), radius=5.0)
    x = 5 * nn.functional.normalize(torch.randn(2000, 3, dtype=torch.float64)) * torch.rand(2000, 1).double()
    change = difference(first, second)(x)
    assert bool((change <= proven.high).all())
    assert bool((change >= proven.low).all())


def test_larger_balls_have_larger_bounds():
    first, second, x = network("convolution with norm")
    widths = [output_change(first, second, x, radius=r).largest for r in (0.0, 0.1, 0.2, 0.5, 1.0)]
    assert all(bool((a <= b).all()) for a, b in pairwise(widths))


def trained(seed: int = 0) -> tuple[nn.Module, nn.Module, Tensor]:
    """A classifier of two rings that is fitted to its data, the same after pruning, and samples."""
    from lightning_coreset import prune

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    x = torch.randn(400, 2)
    y = (x.norm(dim=1) > 1.2).long()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    pruned = copy.deepcopy(model)
    prune(pruned, x, 0.3, self_check=False)
    return model, pruned, x[:40]


def test_on_a_trained_network_bounds_are_far_tighter_than_interval_arithmetic(monkeypatch):
    first, second, x = trained()
    proven, found = check(first, second, x, 0.05)
    monkeypatch.setattr(Bounds, "_refine", lambda self, number: None)
    nothing = torch.full((1, 4), torch.inf, dtype=torch.float64)
    monkeypatch.setattr(Bounds, "largest", lambda self, rows, couplings=(): nothing.expand(len(self.low[0]), -1))
    by_intervals = output_change(first, second, x, radius=0.05)
    width = (by_intervals.high - by_intervals.low).flatten(1)
    assert float((width / proven).median()) > 4
    assert float((proven / found).median()) < 1.5
