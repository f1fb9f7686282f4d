"""The certificate is never broken, and it and the worst input found bracket the truth."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from breadth import crossed

from lightning_coreset.coreset import (
    activation_moments,
    certify,
    draw_pps,
    find_activation,
    largest_absolute_sum,
    largest_found_error,
    linear_preactivations,
    output_radius,
    reconstruct,
    sensitivities,
)

OPS = ["relu", "leaky_relu", "", "gelu", "silu", "tanh", "sigmoid", "hardtanh", "softplus", "hardswish", "elu"]


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _problem(channels=16, inputs=6, rows=5, seed=0):
    generator = _generator(seed)
    producers = torch.randn(channels, inputs + 1, generator=generator, dtype=torch.float64)
    return producers, torch.randn(rows, channels, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("op", "radius", "shape"), crossed(OPS, [0.2, 1.0, 5.0], [(1, 3), (16, 6), (5, 20)]))
def test_no_ascent_breaks_any_bound(op, radius, shape):
    channels, inputs = shape
    producers, change = _problem(channels, inputs)
    activation = find_activation(op)
    certificate = certify(change, producers, activation, input_radius=radius)
    found = largest_found_error(change, producers, activation, input_radius=radius, generator=_generator())
    for bound in (certificate.bound, certificate.triangle, certificate.spectral, certificate.sharp):
        if bound is not None:
            assert bool((found <= bound * (1 + 1e-9)).all())
    assert bool((found > 0).all())


def test_low_dimensions_are_bracketed_tightly():
    # In two dimensions a fine grid of the disc is the truth.
    producers, change = _problem(inputs=2)
    angle = torch.linspace(0, 2 * math.pi, 721, dtype=torch.float64)
    disc = torch.stack([angle.cos(), angle.sin()], dim=1)[None] * torch.linspace(0, 1.5, 61).double()[:, None, None]
    for op in OPS:
        activation = find_activation(op)
        h = activation.function(disc.flatten(0, 1) @ producers[:, :-1].T + producers[:, -1])
        truth = (h @ change.T).abs().amax(dim=0)
        found = largest_found_error(change, producers, activation, input_radius=1.5, generator=_generator())
        assert bool((found >= 0.97 * truth).all())
        assert bool((found <= truth * 1.01).all())
        assert bool((certify(change, producers, activation, input_radius=1.5).bound >= truth).all())


def test_the_identity_is_certified_exactly():
    producers, change = _problem()
    certificate = certify(change, producers, find_activation(""), input_radius=2.0)
    expected = 2 * (change @ producers[:, :-1]).norm(dim=1) + (change @ producers[:, -1]).abs()
    torch.testing.assert_close(certificate.bound, expected)


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_is_below_that_with_signs_apart(seed):
    producers, change = _problem(seed=seed)
    slope, radius = 0.3, 1.5
    certificate = certify(change, producers, find_activation("leaky_relu", (slope,)), input_radius=radius)
    linear = radius * (change @ producers[:, :-1]).norm(dim=1) + (change @ producers[:, -1]).abs()
    parts = [largest_absolute_sum(p.clamp_min(0), producers) for p in (change, -change)]
    kinked = math.sqrt(radius**2 + 1) * torch.maximum(*parts)
    apart = (1 + slope) / 2 * linear + (1 - slope) / 2 * kinked
    assert bool((certificate.sharp <= apart * (1 + 1e-9)).all())
    assert float((certificate.sharp / apart).mean()) < 0.8  # signs together are much sharper


@pytest.mark.parametrize("steps", [0, 1, 30])
def test_the_absolute_sum_is_bounded_by_enumeration_of_signs(steps):
    for seed, inputs in itertools.product(range(4), [2, 30]):
        producers, weights = _problem(10, inputs, seed=seed)
        weights = weights.clamp_min(0)
        signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=10)), dtype=torch.float64)
        truth = torch.stack([(signs * w @ producers).norm(dim=1).max() for w in weights])
        bound = largest_absolute_sum(weights, producers, steps=steps)
        assert bool((bound >= truth).all())
        if steps == 30:
            assert bool((bound <= 1.26 * truth).all())  # the relaxation itself is within sqrt(pi / 2)


def test_descent_tightens_the_bound():
    producers, weights = _problem(30, 10)
    start, end = (largest_absolute_sum(weights.abs(), producers, steps=steps) for steps in (1, 30))
    assert bool((end < 0.99 * start).all())


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e12])
def test_one_channel_much_smaller_than_the_rest_is_not_forgotten(scale):
    producers, weights = _problem(6, 8, rows=3)
    weights = weights.abs()
    weights[:, 0] *= scale
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6)), dtype=torch.float64)
    truth = torch.stack([(signs * w @ producers).norm(dim=1).max() for w in weights])
    for steps in (30, 300):
        assert bool((largest_absolute_sum(weights, producers, steps=steps) >= truth).all())


def test_nothing_changed_is_no_error():
    producers, _ = _problem()
    for op in OPS:
        change = torch.zeros(2, 16)
        activation = find_activation(op)
        assert certify(change, producers, activation, input_radius=1.0).bound.tolist() == [0, 0]
        found = largest_found_error(change, producers, activation, input_radius=1.0, generator=_generator())
        assert found.tolist() == [0, 0]


def test_scale_equivariance():
    producers, change = _problem()
    relu = find_activation("relu")
    plain = certify(change, producers, relu, input_radius=1.0).bound
    torch.testing.assert_close(certify(4 * change, 8 * producers, relu, input_radius=1.0).bound, 32 * plain)
    scale = torch.logspace(-2, 2, 16, dtype=torch.float64)
    moved = certify(change / scale, producers * scale[:, None], relu, input_radius=1.0)
    torch.testing.assert_close(moved.sharp, certify(change, producers, relu, input_radius=1.0).sharp, rtol=1e-2, atol=0)


@pytest.mark.parametrize("method", ["pps", "reconstruction"])
def test_coresets_are_certified_well_below_the_triangle_inequality(method):
    producers, consumers = _problem(60, 30, rows=10)
    relu = find_activation("relu")
    change = consumers.clone()
    if method == "pps":
        sample = draw_pps(sensitivities(producers, consumers[:, :, None], relu), 30, _generator())
        change[:, sample.kept] -= consumers[:, sample.kept] * sample.weights
    else:
        result = reconstruct(activation_moments(relu, linear_preactivations(producers)).second, consumers, 30)
        change[:, result.kept] -= consumers @ result.mix
    certificate = certify(change, producers, relu, input_radius=1.0)
    found = largest_found_error(change, producers, relu, input_radius=1.0, generator=_generator())
    assert bool((certificate.bound < 0.6 * certificate.triangle).all())
    assert bool((certificate.bound < 3 * found).all())


@pytest.mark.parametrize("op", OPS)
def test_no_output_leaves_the_output_radius(op):
    producers, _ = _problem()
    activation = find_activation(op)
    x = torch.randn(5000, 6, generator=_generator(1), dtype=torch.float64)
    x = 2 * x / x.norm(dim=1, keepdim=True)
    norms = activation.function(x @ producers[:, :-1].T + producers[:, -1]).norm(dim=1)
    radius = output_radius(producers, activation, input_radius=2.0)
    assert norms.max() <= radius <= 4 * norms.max()


def test_seeded_and_deaf_to_the_global_generator():
    producers, change = _problem()
    arguments = (change, producers, find_activation("gelu"))
    state = torch.get_rng_state()
    with torch.inference_mode():
        first = largest_found_error(*arguments, input_radius=1.0, generator=_generator(3), starts=2, steps=3)
    second = largest_found_error(*arguments, input_radius=1.0, generator=_generator(3), starts=2, steps=3)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "producers", "radius"),
    [
        (torch.ones(2, 3), torch.ones(4, 2), 1.0),
        (torch.ones(2, 3), torch.ones(3, 2), 0.0),
        (torch.ones(2, 3), torch.ones(3, 2), math.inf),
        (torch.full((2, 3), math.nan), torch.ones(3, 2), 1.0),
    ],
)
def test_impossible_requests_are_refused(change, producers, radius):
    relu = find_activation("relu")
    with pytest.raises(ValueError, match="Expected"):
        certify(change, producers, relu, input_radius=radius)
    with pytest.raises(ValueError, match="Expected"):
        largest_found_error(change, producers, relu, input_radius=radius, generator=_generator())


# ---- rounding: bounds against exact rational arithmetic


def exact(tensor: torch.Tensor) -> list[Fraction]:
    return [Fraction(value) for value in tensor.flatten().tolist()]


@pytest.mark.parametrize(("scale", "size"), crossed([1e-6, 1.0, 1e6], [(1, 1), (7, 1), (40, 1), (7, 3), (3, 7)]))
def test_no_rounding_takes_the_absolute_sum_below_the_truth(scale, size):
    """With one column of producers that is not zero the supremum is a plain sum, known exactly."""
    channels, columns = size
    generator = torch.Generator().manual_seed(channels + columns)
    for _ in range(40):
        weights = scale * torch.rand(1, channels, dtype=torch.float64, generator=generator)
        producers = torch.zeros(channels, columns, dtype=torch.float64)
        producers[:, 0] = torch.randn(channels, dtype=torch.float64, generator=generator)
        truth = sum(w * abs(p) for w, p in zip(exact(weights), exact(producers[:, 0]), strict=True))
        bound = Fraction(float(largest_absolute_sum(weights, producers)))
        assert truth <= bound <= truth * Fraction(1001, 1000)


@pytest.mark.parametrize("inputs", [2, 3, 10])
def test_no_rounding_takes_an_error_found_above_the_truth(inputs):
    """Of one linear channel the largest error is known: the radius times the norm of its row."""
    identity, generator = find_activation(""), torch.Generator().manual_seed(inputs)
    for _ in range(40):
        row = torch.randn(1, inputs + 1, dtype=torch.float64, generator=generator)
        row[:, -1] = 0.0
        change = torch.ones(1, 1, dtype=torch.float64)
        found = largest_found_error(change, row, identity, input_radius=3.0, generator=generator, starts=2, steps=3)
        assert Fraction(float(found)) ** 2 <= 9 * sum(value**2 for value in exact(row))
        assert float(found) == pytest.approx(3 * float(row.norm()), rel=1e-9)
