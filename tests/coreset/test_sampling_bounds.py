"""The theorem: both directions agree, and draws break it no more often than they may."""

import math
from itertools import product

import pytest
import torch

from lightning_coreset.coreset import (
    draw_fixed,
    error_bound,
    find_activation,
    largest_found_error,
    paper_error_bound,
    paper_sample_size,
    sample_size,
    sampling_complexity,
    sensitivities,
)


def _layers(channels=40, inputs=5, outputs=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(channels, inputs + 1, generator=generator, dtype=torch.float64),
        torch.randn(outputs, channels, 1, generator=generator, dtype=torch.float64),
    )


@pytest.mark.parametrize("delta", [1e-6, 0.05, 0.9])
def test_sizes_and_errors_are_inverses(delta):
    for total, epsilon in product([0.5, 30.0, 1e4], [0.03, 1.0]):
        size = sample_size(total, epsilon, 100, delta)
        assert error_bound(total, size, 100, delta) <= epsilon
        if size > 1:
            assert error_bound(total, size - 1, 100, delta) > epsilon
        size = paper_sample_size(total, epsilon, 100, delta, constant=0.3)
        assert paper_error_bound(total, size, 100, delta, constant=0.3) <= epsilon * (1 + 1e-12)
        if size > 1:
            assert paper_error_bound(total, size - 1, 100, delta, constant=0.3) > epsilon


def test_the_constants_are_those_of_the_theorem():
    expected = 7 / math.sqrt(50) * (2 + math.sqrt(2 * math.log(2 * 10 / 0.1)))
    assert error_bound(7.0, 50, 10, 0.1) == pytest.approx(expected)
    assert paper_sample_size(7.0, 0.5, 20, 0.1) == math.ceil(7 / 0.25 * (20 * math.log(7) + math.log(10)))


@pytest.mark.parametrize("op", ["relu", "leaky_relu", ""])
def test_complexity_is_the_total_where_sensitivities_are_linear(op):
    producers, consumers = _layers()
    s = sensitivities(producers, consumers, find_activation(op))
    assert sampling_complexity(producers, consumers, find_activation(op), s) == pytest.approx(float(s.sum()))


@pytest.mark.parametrize("op", ["gelu", "tanh", "sigmoid", "hardtanh"])
def test_complexity_exceeds_the_total_where_they_are_not(op):
    producers, consumers = _layers()
    activation = find_activation(op)
    s = sensitivities(producers, consumers, activation, input_radius=3.0)
    spread = sampling_complexity(producers, consumers, activation, s, input_radius=3.0)
    linear = activation.lipschitz * consumers.abs().amax(0)[:, 0] * producers.norm(dim=1) * math.sqrt(10)
    assert spread == pytest.approx(math.sqrt(float(s.sum() * (linear**2 / s).sum())))
    assert spread >= float(linear.sum()) * (1 - 1e-12)  # Cauchy and Schwarz


def _errors(op, draws, runs):
    producers, consumers = _layers()
    activation, generator = find_activation(op), torch.Generator().manual_seed(1)
    s = sensitivities(producers, consumers, activation)
    change = consumers[:, :, 0].repeat(runs, 1, 1)
    for run in range(runs):
        sample = draw_fixed(s, draws, generator)
        change[run][:, sample.kept] -= consumers[:, sample.kept, 0] * sample.weights
    found = largest_found_error(
        change.flatten(0, 1), producers, activation, input_radius=1.0, generator=generator, starts=6, steps=25
    )
    spread = sampling_complexity(producers, consumers, activation, s)
    return found.view(runs, -1).amax(dim=1), float(s.sum()), spread


@pytest.mark.parametrize("op", ["relu", "gelu", "sigmoid"])
@pytest.mark.parametrize("draws", [5, 40])
def test_ascent_breaks_the_bound_no_more_often_than_delta(op, draws):
    errors, total, spread = _errors(op, draws, 60)
    for delta in (0.5, 0.1):
        assert float((errors > error_bound(total, draws, 3, delta, complexity=spread)).double().mean()) <= delta
    # The bound is loose by a constant, not vacuous: it and the errors shrink alike.
    assert errors.max() > error_bound(total, draws, 3, 0.1, complexity=spread) / 40


def test_errors_shrink_as_the_root_of_the_draws():
    few, many = _errors("relu", 10, 40)[0].mean(), _errors("relu", 1000, 40)[0].mean()
    assert float(few / many) == pytest.approx(10, rel=0.3)


@pytest.mark.parametrize(
    "arguments",
    [
        (-1.0, 10, 1, 0.1),
        (math.nan, 10, 1, 0.1),
        (1.0, 0, 1, 0.1),
        (1.0, 10, 0, 0.1),
        (1.0, 10, 1, 0.0),
        (1.0, 10, 1, 1.0),
    ],
)
@pytest.mark.parametrize("function", [error_bound, sample_size, paper_sample_size, paper_error_bound])
def test_arguments_out_of_range_are_refused(function, arguments):
    with pytest.raises(ValueError, match="Expected"):
        function(*arguments)
