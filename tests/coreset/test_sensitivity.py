"""The sensitivities against the formula in plain loops, and their properties."""

import math
from itertools import product

import pytest
import torch

from lightning_coreset.coreset import find_activation, largest_magnitude, sensitivities

RELU = find_activation("relu")


def _layers(positions=3, inputs=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(7, inputs + 1, generator=generator, dtype=dtype),
        torch.randn(4, 7, positions, generator=generator, dtype=dtype),
    )


def _naive(producers, consumers, activation, radius):
    result = []
    for p in range(len(producers)):
        norm = math.sqrt(sum(float(x) ** 2 for x in producers[p]))
        largest = largest_magnitude(activation, torch.tensor(norm * math.sqrt(radius**2 + 1), dtype=torch.float64))
        slices = [math.sqrt(sum(float(w) ** 2 for w in consumers[o, p])) for o in range(len(consumers))]
        result.append(max(slices) * float(largest))
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize("op", ["relu", "gelu", "tanh", "sigmoid", "leaky_relu"])
def test_matches_the_formula(op):
    for positions, radius in product([1, 3], [0.1, 1.0, 4.0]):
        producers, consumers = _layers(positions=positions)
        activation = find_activation(op)
        found = sensitivities(producers, consumers, activation, input_radius=radius)
        torch.testing.assert_close(found, _naive(producers, consumers, activation, radius))


@pytest.mark.parametrize("op", ["relu", "gelu", "sigmoid", "hardswish"])
def test_bounds_every_contribution_in_the_ball(op):
    producers, consumers = _layers()
    activation = find_activation(op)
    s = sensitivities(producers, consumers, activation, input_radius=2.0)
    x = torch.randn(2000, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = torch.cat([2 * x / x.norm(dim=1, keepdim=True), torch.ones(2000, 1, dtype=torch.float64)], dim=1)
    h = activation.function(x @ producers.T)
    contribution = (consumers.norm(dim=2).amax(0) * h.abs()).amax(0)
    assert bool((contribution <= s + 1e-12).all())
    assert bool((contribution > 0.2 * s).all())  # and is not vacuous


def test_relu_moves_scale_between_layers_freely():
    producers, consumers = _layers()
    scale = torch.logspace(-3, 3, 7, dtype=torch.float64)
    moved = sensitivities(producers * scale[:, None], consumers / scale[:, None], RELU)
    torch.testing.assert_close(moved, sensitivities(producers, consumers, RELU))


def test_permuting_channels_permutes_the_result():
    producers, consumers = _layers()
    order = torch.tensor([3, 1, 6, 0, 2, 5, 4])
    permuted = sensitivities(producers[order], consumers[:, order], RELU)
    torch.testing.assert_close(permuted, sensitivities(producers, consumers, RELU)[order])


def test_dead_channels_have_none():
    producers, consumers = _layers()
    producers[2], consumers[:, 4] = 0, 0
    s = sensitivities(producers, consumers, RELU)
    assert s.nonzero().flatten().tolist() == [0, 1, 3, 5, 6]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_weights_are_measured_in_float64(dtype):
    producers, consumers = _layers(inputs=4000, dtype=dtype)
    found = sensitivities(producers * 10, consumers, RELU)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, sensitivities((producers * 10).double(), consumers.double(), RELU))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("positions", [1, 3])
def test_weights_that_are_not_finite_are_named(bad, positions):
    producers, consumers = _layers(positions=positions)
    broken = consumers.clone()
    broken[1, 5, 0] = bad
    with pytest.raises(ValueError, match=r"`consumers` holds NaN or infinity in channels 5\."):
        sensitivities(producers, broken, RELU)
    producers[3, 0] = bad
    with pytest.raises(ValueError, match=r"`producers` holds NaN or infinity in channels 3\."):
        sensitivities(producers, consumers, RELU)


@pytest.mark.parametrize(
    ("producers", "consumers"), [((7, 6), (4, 6, 1)), ((7, 6), (4, 7)), ((7,), (4, 7, 1)), ((7, 6), (0, 7, 1))]
)
def test_shapes_that_do_not_fit_are_refused(producers, consumers):
    with pytest.raises(ValueError, match="Expected"):
        sensitivities(torch.ones(producers), torch.ones(consumers), RELU)


@pytest.mark.parametrize("radius", [0.0, -1.0, math.nan, math.inf])
def test_radii_that_are_not_positive_are_refused(radius):
    with pytest.raises(ValueError, match="input_radius"):
        sensitivities(*_layers(), RELU, input_radius=radius)
