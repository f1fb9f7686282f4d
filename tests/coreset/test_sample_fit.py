"""Least squares on samples against torch's own, and the moments of samples."""

from __future__ import annotations

import pytest
import torch

from lightning_coreset.coreset import fit_samples, position_correlation, sample_moments


def data(samples=300, inputs=7, outputs=3):
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(samples, inputs, generator=generator, dtype=torch.float64) @ mixed + 1.0
    return x, torch.tanh(x @ torch.randn(inputs, outputs, generator=generator, dtype=torch.float64)) + 0.3


def test_weights_are_those_of_a_direct_solution():
    x, y = data()
    fit = fit_samples(x, y, torch.zeros(3, 7), ridge=1e-12)
    ones = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], dim=1)
    expected = torch.linalg.lstsq(ones, y).solution.T
    assert torch.allclose(fit.weights, expected[:, :-1], atol=1e-7)
    assert torch.allclose(fit.constant, expected[:, -1], atol=1e-7)
    left = y - ones @ expected.T
    assert abs(fit.error - float(left.square().sum(dim=1).mean())) < 1e-9
    assert abs(fit.energy - float((y - y.mean(dim=0)).square().sum(dim=1).mean())) < 1e-9


def test_without_an_intercept_nothing_is_added():
    x, y = data()
    fit = fit_samples(x, y, torch.zeros(3, 7), intercept=False, ridge=1e-12)
    expected = torch.linalg.lstsq(x, y).solution.T
    assert torch.allclose(fit.weights, expected, atol=1e-7)
    assert not fit.constant.any()


def test_a_ridge_pulls_to_the_start_where_samples_say_nothing():
    x, y = data()
    x = torch.cat([x, torch.zeros(len(x), 1, dtype=torch.float64)], dim=1)  # an input that is never there
    start = torch.full((3, 8), 5.0, dtype=torch.float64)
    fit = fit_samples(x, y, start, ridge=1e-3)
    assert torch.allclose(fit.weights[:, -1], torch.full((3,), 5.0, dtype=torch.float64))
    assert not torch.allclose(fit.weights[:, :-1], start[:, :-1], atol=1.0)


def test_variance_ratios_tell_what_the_new_outputs_lack():
    x, y = data()
    fit = fit_samples(x, y, torch.zeros(3, 7), ridge=1e-12)
    made = x @ fit.weights.T
    assert torch.allclose(fit.variance_ratios, made.var(dim=0) / y.var(dim=0), atol=1e-7)
    assert bool((fit.variance_ratios < 1).all())


def test_moments_of_samples():
    x, _ = data()
    mean, covariance = sample_moments(x, centred=True)
    _, second = sample_moments(x, centred=False)
    assert torch.allclose(covariance, torch.cov(x.T, correction=0), atol=1e-7)
    assert torch.allclose(second, covariance + torch.outer(mean, mean), atol=1e-7)


def test_positions_correlate_as_they_were_made():
    generator = torch.Generator().manual_seed(0)
    wanted = torch.tensor([[1.0, 0.6, 0.1], [0.6, 1.0, 0.5], [0.1, 0.5, 1.0]], dtype=torch.float64)
    noise = torch.randn(4000, 5, 3, generator=generator, dtype=torch.float64)
    found = position_correlation(noise @ torch.linalg.cholesky(wanted).T + torch.arange(5.0)[:, None])
    assert torch.allclose(found, wanted, atol=0.03)


@pytest.mark.parametrize("size", [1e-35, 1e-22, 1e22, 1e30])
def test_samples_whose_squares_single_precision_cannot_hold(size):
    x, y = (one.float() for one in data())
    x = torch.cat([x, 1e-3 * x], dim=1)  # dependent inputs: rounding of the moments must not make them indefinite
    start = torch.zeros(3, 14, dtype=torch.float64)
    expected = fit_samples(x, y, start)
    fit = fit_samples(x * size, y * size, start)
    assert torch.allclose(fit.weights, expected.weights, rtol=1e-4, atol=1e-5)
    assert abs(fit.error / size / size - expected.error) < 1e-4 * expected.error
    _, moment = sample_moments(x * size, centred=True)
    assert torch.allclose(moment / size / size, sample_moments(x, centred=True)[1], rtol=1e-5, atol=1e-6)
    assert torch.allclose(position_correlation((x * size)[:, None]), position_correlation(x[:, None]), atol=1e-5)
