"""The bound with products: never below the exact supremum, nearer to it than the sharp one; and what it is made of."""

from dataclasses import replace

import pytest
import torch
from breadth import crossed, thinned
from suprema import exact_supremum, tiny
from torch import Tensor

from lightning_coreset.coreset import certify, certify_moved, find_activation, largest_found_error
from lightning_coreset.coreset.ball import Ball
from lightning_coreset.coreset.interior_point import start, stepped
from lightning_coreset.coreset.product_bound import _proven, bound_with_products
from lightning_coreset.coreset.relaxation import Relaxation

RELU = find_activation("relu")
assert RELU is not None


def problem(seed: int = 0, channels: int = 4, inputs: int = 3) -> Relaxation:
    """A program with products of two of its parts, in units that keep pre-activations below 4."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(channels, inputs + 1, generator=generator, dtype=torch.float64)
    on, off = torch.randn(2, channels, generator=generator, dtype=torch.float64)
    reach = rows[:, :-1].norm(dim=1)
    plain = Relaxation.of(rows, on, off, rows[:, -1] - reach, rows[:, -1] + reach)
    weights = torch.rand(2, 1 + 2 * channels, generator=generator, dtype=torch.float64)
    return plain.with_products(torch.tensor([1, 2 + channels]), weights)


def spread(change: Tensor, producers: Tensor, radius: float, slope: float = 0.0) -> Tensor:
    """The bounds of all rows with products, each as tight as they get."""
    ball = Ball.of(radius, (producers, find_activation("leaky_relu", (slope,))))
    signs = [torch.stack([bound_with_products(ball, sign * row, (slope, 1.0)) for row in change]) for sign in (1, -1)]
    return torch.maximum(*signs)


@pytest.mark.parametrize(("slope", "part"), crossed([0.0, 0.2, -0.5, 1.5], range(8)))
def test_never_below_the_exact_supremum(slope, part):
    for seed in range(4 * part, 4 * part + 4):
        change, producers, radius = tiny(seed)
        exact = exact_supremum(change, producers, slope, radius)
        found = spread(change, producers, radius, slope)
        assert bool((found >= exact).all())
        assert bool((found <= 1.25 * exact).all())


def test_certificates_with_products_hold_for_both_signs():
    for seed in range(6):
        change, producers, radius = tiny(seed)
        change = torch.cat([change, -change])
        exact = exact_supremum(change, producers, 0.0, radius)
        certificate = certify(change, producers, RELU, input_radius=radius, products=len(change))
        assert certificate.products is not None
        assert bool((certificate.products >= exact).all())
        assert bool((certificate.bound >= exact * (1 - 1e-12)).all())
        assert bool(certificate.products[exact.argmax()].isfinite())


def test_nearer_to_the_truth_than_the_sharp_bound():
    sharp, products = [], []
    for seed in range(8):
        change, producers, radius = tiny(seed)
        exact = exact_supremum(change, producers, 0.0, radius)
        sharp += (certify(change, producers, RELU, input_radius=radius).sharp / exact - 1).tolist()
        products += (spread(change, producers, radius) / exact - 1).tolist()
    assert sum(products) < 0.5 * sum(sharp)
    assert sorted(products)[len(products) // 2] < 0.01


def test_changes_that_nearly_cancel():
    """What reconstruction leaves: outputs of small magnitude, of many channels with large changes of either sign."""
    generator = torch.Generator().manual_seed(0)
    producers = torch.randn(24, 11, generator=generator, dtype=torch.float64)
    x = torch.randn(2000, 10, generator=generator, dtype=torch.float64)
    x = 2 * x / x.norm(dim=1, keepdim=True)
    outputs = torch.relu(x @ producers[:, :-1].T + producers[:, -1])
    change = torch.linalg.eigh(outputs.T @ outputs).eigenvectors[:, :1].T
    certificate = certify(change, producers, RELU, input_radius=2.0, products=1)
    found = largest_found_error(change, producers, RELU, input_radius=2.0, generator=generator)
    assert float(certificate.sharp) > 1.3 * float(found)
    assert float(found) < float(certificate.bound) < 1.15 * float(found)
    assert torch.equal(certificate.bound, certificate.products)


def test_products_make_it_tighter_and_no_step_makes_it_looser(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    producers = torch.randn(16, 9, generator=generator, dtype=torch.float64)
    x = torch.randn(500, 8, generator=generator, dtype=torch.float64)
    outputs = torch.relu(2 * x / x.norm(dim=1, keepdim=True) @ producers[:, :-1].T + producers[:, -1])
    change = torch.linalg.eigh(outputs.T @ outputs).eigenvectors[:, 0]
    ball = Ball.of(2.0, (producers, RELU))
    module = "lightning_coreset.coreset.product_bound"
    bounds = []
    for steps in (*range(8, 24), 40):
        monkeypatch.setattr(f"{module}._STEPS", steps)
        bounds.append(float(bound_with_products(ball, change, (0.0, 1.0))))
    assert bounds == sorted(bounds, reverse=True)
    monkeypatch.setattr(f"{module}._GAPS", ())
    without = float(bound_with_products(ball, change, (0.0, 1.0)))
    assert bounds[-1] < 0.95 * without


@pytest.mark.parametrize("scale", thinned([1e-6, 1e-3, 1e3, 1e6], 3))
def test_ill_scaled_weights(scale):
    for seed in range(4):
        change, producers, radius = tiny(seed)
        powers = scale ** torch.rand(len(producers), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        rows = producers * powers[:, None]
        found = spread(change, rows, radius)
        exact = exact_supremum(change, rows, 0.0, radius)
        assert bool((found >= exact).all())
        assert bool((found <= 1.25 * exact).all())


@pytest.mark.parametrize("seed", range(4))
def test_multipliers_prove_what_they_say_at_every_input(seed):
    """C and Z together are gamma and what the multipliers multiply, none of which is negative."""
    program = problem(seed)
    generator = torch.Generator().manual_seed(seed)
    multipliers = torch.randn(len(program.left), generator=generator, dtype=torch.float64)
    channels, inputs = program.channels, program.inputs
    x = torch.randn(200, inputs, generator=generator, dtype=torch.float64)
    x = x / x.norm(dim=1, keepdim=True) * torch.rand(200, 1, generator=generator, dtype=torch.float64)
    x = torch.cat([x, torch.ones(200, 1, dtype=torch.float64)], dim=1)
    z = x @ program.rows.T
    v = torch.cat([x, z.clamp_min(0)], dim=1)
    parts = torch.cat([z.clamp_min(0), (-z).clamp_min(0)], dim=1)
    torch.testing.assert_close(v @ program.parts[1 : 1 + 2 * channels].T, parts)
    sums = v @ program.parts[1 + 2 * channels :].T
    ball = 1 - x[:, :-1].square().sum(dim=1, keepdim=True)
    conditions = torch.cat([ball, parts, parts * (program.most - parts), parts[:, [0, 1 + channels]] * sums], dim=1)
    assert bool((conditions >= 0).all())
    proven = multipliers[0] + conditions @ multipliers[program.free :]
    made = torch.einsum("bi,ij,bj->b", v, program.goal + program.slack(multipliers), v)
    torch.testing.assert_close(made, proven)


def test_values_and_traces_are_those_of_the_matrices_of_multipliers():
    program = problem()
    matrices = torch.stack([program.slack(one) + program.goal for one in torch.eye(len(program.left)).double()])
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, *program.goal.shape, generator=generator, dtype=torch.float64)
    first, second = first + first.T, second + second.T
    torch.testing.assert_close(program.values(first), torch.einsum("mij,ij->m", matrices, first))
    traces = torch.einsum("mij,jk,nkl,li->mn", matrices, first, matrices, second)
    torch.testing.assert_close(program.products_of(first, second), (traces + traces.T) / 2)


def test_every_step_proves_a_bound_and_the_last_is_the_least():
    one = torch.tensor([[1.0, 0.5]], dtype=torch.float64)  # max(x + 1/2, 0), at most 3/2
    program = Relaxation.of(one, *torch.tensor([[1.0], [0.0], [-0.5], [1.5]], dtype=torch.float64))
    point, bounds = start(program), []
    while point is not None and point.gap > 1e-6:
        assert float(torch.linalg.eigvalsh(point.slack)[0]) > 0
        bounds.append(point.bound)
        assert point.bound <= float(_proven(program, point)) < point.bound + 1e-9
        point = stepped(program, point)
    assert point is not None
    assert 5 < len(bounds) < 60
    assert min(bounds) >= 1.5
    assert bounds[-1] < 1.5 + 1e-4


def test_multipliers_that_prove_nothing_are_made_good_for():
    program = problem()
    point = start(program)
    multipliers = point.multipliers.clone()
    multipliers[0] /= 100
    slack = program.slack(multipliers)
    assert float(torch.linalg.eigvalsh(slack)[0]) < -1e-3
    proven = _proven(program, replace(point, multipliers=multipliers, slack=slack))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(10000, program.inputs, generator=generator, dtype=torch.float64)
    x = torch.cat([x / x.norm(dim=1, keepdim=True), torch.ones(10000, 1, dtype=torch.float64)], dim=1)
    v = torch.cat([x, (x @ program.rows.T).clamp_min(0)], dim=1)
    assert float(multipliers[0]) < float(torch.einsum("bi,ij,bj->b", v, program.goal, v).max()) <= float(proven)


def test_rows_are_bounded_from_the_worst_on_until_the_largest_was():
    change, producers, radius = tiny(3)
    change = torch.cat([0.2 * change[:1], change[1:2], 0.1 * change[2:]])
    certificate = certify(change, producers, RELU, input_radius=radius, products=3)
    assert certificate.products.isfinite().tolist() == [False, True, False]
    assert float(certificate.bound[1]) < float(certificate.sharp[1])
    assert torch.equal(certificate.bound[[0, 2]], certify(change, producers, RELU, input_radius=radius).bound[[0, 2]])
    same = torch.cat([change[1:2], change[1:2] * (1 - 1e-9)])
    assert certify(same, producers, RELU, input_radius=radius, products=1).products.isfinite().sum() == 1
    assert certify(same, producers, RELU, input_radius=radius, products=2).products.isfinite().sum() == 2
    assert certify(same, producers, RELU, input_radius=radius, products=2, enough=1e6).products.isinf().all()


def test_activations_without_such_a_bound_keep_theirs():
    change, producers, radius = tiny(0)
    for name in ("gelu", "tanh", "hardtanh"):
        assert certify(change, producers, find_activation(name), input_radius=radius, products=3).products is None
    assert certify(change, producers, RELU, input_radius=radius).products is None


def test_too_many_channels_are_refused():
    change, producers, kept = torch.ones(1, 1001), torch.ones(1001, 3), torch.arange(1)
    with pytest.raises(ValueError, match=r"at most 1000 channels with `products=2` but got 1001"):
        certify(change, producers, RELU, input_radius=1.0, products=2)
    with pytest.raises(ValueError, match="at most 1000 channels"):
        certify_moved(
            change[:, :1000],
            change[:, :1],
            producers[:1000],
            producers[:1],
            kept,
            RELU,
            input_radius=1.0,
            products=1,
        )


def test_products_are_added_while_memory_allows(monkeypatch):
    change, producers, radius = tiny(4)
    conditions = []
    made = Relaxation.with_products

    def counted(self: Relaxation, factor: Tensor, weights: Tensor) -> Relaxation:
        problem = made(self, factor, weights)
        conditions.append(len(problem.left))
        return problem

    monkeypatch.setattr(Relaxation, "with_products", counted)
    free = bound_with_products(Ball.of(radius, (producers, RELU)), change[0], (0.0, 1.0))
    assert len(conditions) == 5
    monkeypatch.setattr("lightning_coreset.coreset.product_bound._CONDITIONS", conditions[1])
    few = conditions[:2]
    conditions.clear()
    bound = bound_with_products(Ball.of(radius, (producers, RELU)), change[0], (0.0, 1.0))
    assert conditions == few
    assert bool(bound >= free * 0.97)


def test_channels_that_are_always_on_never_on_or_nothing():
    change, producers, radius = tiny(3)
    producers[0] = 0
    producers[1] = torch.tensor([0.1, 0.1, 5.0])
    producers[2] = torch.tensor([0.1, 0.1, -5.0])
    change[:, 3] = 0
    rows = producers.clone()
    rows[0] = torch.tensor([1e-9, 0.0, 0.0])  # the enumeration needs lines
    exact = exact_supremum(change, rows, 0.0, radius)
    found = spread(change, producers, radius)
    assert bool((found >= exact * (1 - 1e-8)).all())
    assert bool((found <= 1.25 * exact).all())
    assert float(spread(torch.zeros(1, len(producers), dtype=torch.float64), producers, radius)) == 0
    assert float(spread(change[:1, :1], producers[:1], radius)) == 0


def test_more_channels_than_inputs_and_one_channel():
    for size in (1, 20):
        generator = torch.Generator().manual_seed(size)
        producers = torch.randn(size, 3, generator=generator, dtype=torch.float64)
        change = torch.randn(2, size, generator=generator, dtype=torch.float64)
        exact = exact_supremum(change, producers, 0.0, 1.0)
        found = spread(change, producers, 1.0)
        assert bool((found >= exact).all())
        assert bool((found <= 1.2 * exact).all())


def test_rows_that_move():
    change, producers, radius = tiny(5)
    generator = torch.Generator().manual_seed(0)
    kept = torch.arange(0, len(producers), 2)
    moved = producers[kept] + 0.4 * torch.randn(len(kept), 3, generator=generator, dtype=torch.float64)
    after = 0.8 * change[:, kept]
    exact = exact_supremum(torch.cat([change, -after], dim=1), torch.cat([producers, moved]), 0.0, radius)
    given = (change, after.requires_grad_(), producers, moved.requires_grad_(), kept, RELU)
    plain = certify_moved(*given, input_radius=radius)
    found = certify_moved(*given, input_radius=radius, products=len(change))
    assert bool((found.bound >= exact).all())
    assert float(found.bound.max()) < float(plain.bound.max())
    assert bool((found.bound <= plain.bound).all())
    assert not found.bound.requires_grad
