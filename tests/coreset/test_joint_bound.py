"""The bound on all channels together: never below the exact supremum, and near it; for all activations and scales."""

import math

import pytest
import torch
from breadth import crossed
from suprema import exact_supremum, tiny

from lightning_coreset.coreset import certify, find_activation, largest_found_error
from lightning_coreset.coreset.eigenvalues import follow_largest, proven_largest_eigenvalues
from lightning_coreset.coreset.majorants import majorants

OTHERS = ["gelu", "silu", "tanh", "sigmoid", "hardswish", "hardtanh", "elu", "softplus", "relu6", "mish"]


def test_the_exact_supremum_is_that_of_a_fine_grid():
    change, producers, radius = tiny(0)
    line = torch.linspace(-radius, radius, 801, dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).flatten(0, 1)
    angle = torch.linspace(0, 2 * math.pi, 20001, dtype=torch.float64)
    circle = radius * torch.stack([angle.cos(), angle.sin()], dim=1)
    points = torch.cat([grid[grid.norm(dim=1) <= radius], circle])
    found = (torch.relu(points @ producers[:, :-1].T + producers[:, -1]) @ change.T).abs().amax(dim=0)
    exact = exact_supremum(change, producers, 0.0, radius)
    assert bool((exact >= found * (1 - 1e-12)).all())
    torch.testing.assert_close(exact, found, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("slope", "part"), crossed([0.0, 0.2, -0.5], range(20)))
def test_never_below_the_exact_supremum(slope, part):
    activation = find_activation("leaky_relu", (slope,))
    for seed in range(8 * part, 8 * part + 8):
        change, producers, radius = tiny(seed)
        exact = exact_supremum(change, producers, slope, radius)
        certificate = certify(change, producers, activation, input_radius=radius)
        assert bool((certificate.sharp >= exact).all())
        assert bool((certificate.bound <= 2.5 * exact + 1e-6).all())


def test_parts_of_the_ball_are_bounded_to_within_a_tenth():
    ratios = []
    for seed in range(8):
        change, producers, radius = tiny(seed, rows=2)
        exact = exact_supremum(change, producers, 0.0, radius)
        relu = find_activation("relu")
        whole, parts = (certify(change, producers, relu, input_radius=radius, splits=n).bound for n in (0, 16))
        assert bool((parts >= exact).all())
        assert bool((parts <= whole * (1 + 1e-9)).all())
        ratios += (parts / exact).tolist()
    ratios.sort()
    assert ratios[len(ratios) // 2] < 1.03
    assert ratios[int(0.9 * len(ratios))] < 1.1


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e3, 1e6])
def test_ill_scaled_weights(scale):
    for seed in range(6):
        change, producers, radius = tiny(seed)
        powers = scale ** torch.rand(len(producers), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        rows = producers * powers[:, None]
        exact = exact_supremum(change, rows, 0.0, radius)
        bound = certify(change, rows, find_activation("relu"), input_radius=radius).bound
        assert bool((bound >= exact).all())
        assert bool((bound <= 2.5 * exact + 1e-6 * exact.max()).all())


@pytest.mark.parametrize("op", OTHERS)
def test_other_activations_are_bounded_more_sharply_than_by_their_ranges(op):
    generator = torch.Generator().manual_seed(3)
    producers = torch.randn(24, 9, generator=generator, dtype=torch.float64) / 2
    change = torch.randn(4, 24, generator=generator, dtype=torch.float64)
    activation = find_activation(op)
    certificate = certify(change, producers, activation, input_radius=2.0)
    found = largest_found_error(change, producers, activation, input_radius=2.0, generator=generator)
    assert bool((found <= certificate.sharp).all())
    assert bool((certificate.sharp < 0.75 * certificate.triangle).all())
    assert bool((certificate.bound < 2 * found).all())


def test_rows_that_need_no_tighter_bound_stop_early(monkeypatch):
    from lightning_coreset.coreset.joint_bound import JointBound

    steps, original = [], JointBound._value
    monkeypatch.setattr(JointBound, "_value", lambda self, *args: steps.append(1) or original(self, *args))
    change, producers, radius = tiny(1)
    certify(change, producers, find_activation("relu"), input_radius=radius, enough=1e9)
    assert len(steps) < 10


@pytest.mark.parametrize(("op", "change"), crossed(["relu", *OTHERS], [-1.5, 0.7]))
def test_a_majorant_lies_above_its_activation_and_touches_it(op, change):
    activation = find_activation(op)
    low, high = torch.tensor([-3.0, -0.5, 1.0, -7.0]).double(), torch.tensor([2.0, 4.0, 1.5, -6.0]).double()
    z = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, 20001, dtype=torch.float64)
    for square in (-0.4, 0.0, 0.8):
        for tilt in (-1.0, 0.3):
            full = [torch.full((1, 4), value, dtype=torch.float64) for value in (change, square, tilt)]
            rest = change * activation.function(z) - square * z.square() - tilt * z
            proven = majorants([(activation, low.shape[-1])], low, high).proven(*full)[0]
            assert bool((proven >= rest.amax(dim=1) - 1e-12).all())
            assert bool((proven <= rest.amax(dim=1) + (1e-3 if activation.linear else 2e-2)).all())
            searched, at = majorants([(activation, low.shape[-1])], low, high).searched(*full)
            assert bool((searched[0] <= rest.amax(dim=1) + 1e-3).all())
            assert bool(((at[0] >= low) & (at[0] <= high)).all())


def test_proven_eigenvalues_and_followed_vectors():
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(2, 30, 30, generator=generator, dtype=torch.float64)).Q
    values = torch.linspace(-5, 1, 30, dtype=torch.float64)
    matrices = (basis * values) @ basis.mT
    magnitude = values.abs().sum().expand(2)
    for estimate in (None, torch.tensor([0.5, 40.0]).double()):
        proven = proven_largest_eigenvalues(matrices, magnitude, 30, estimate=estimate)
        assert bool((proven >= 1).all())
        assert float(proven[0]) < (1.001 if estimate is None else 1.6)
    vectors = torch.eye(30, 4, dtype=torch.float64).expand(2, -1, -1)
    for _ in range(60):
        found, vectors = follow_largest(lambda columns: matrices @ columns, vectors)
    torch.testing.assert_close(found[:, -1], torch.ones(2, dtype=torch.float64), rtol=1e-4, atol=0)
    assert bool((found[:, -1] <= 1 + 1e-12).all())
