"""The closed-form moments against Monte Carlo, closed forms and numerical integration."""

import math

import numpy as np
import pytest
import torch
from breadth import crossed
from scipy import integrate, stats

from lightning_coreset.coreset import (
    Gaussian,
    activation_moments,
    batchnorm_preactivations,
    find_activation,
    gauss_hermite,
    hermite_coefficients,
    linear_preactivations,
    spatial_correlation,
)

OPS = [
    ("relu", ()),
    ("leaky_relu", (0.2,)),
    ("", ()),
    ("hardtanh", (0.0, 6.0)),
    ("hardtanh", (-1.0, 1.0)),
    ("clamp_max", (0.3,)),
    ("hardsigmoid", ()),
    ("softshrink", ()),
    ("hardswish", ()),
    ("gelu", ()),
    ("silu", ()),
    ("tanh", ()),
    ("sigmoid", ()),
    ("elu", ()),
    ("softplus", ()),
]


def _rows(channels=6, inputs=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(channels, inputs + 1, generator=generator, dtype=torch.float64)


def _integral(function, mean, scale):
    def value(g):
        z = torch.tensor([mean + scale * g], dtype=torch.float64)
        return float(function(z)) * stats.norm.pdf(g)

    kinks = [(at - mean) / scale for at in (-3, -1, -0.5, 0, 0.3, 0.5, 1, 3, 6)]
    return integrate.quad(value, -9, 9, points=[k for k in kinks if -9 < k < 9], limit=400)[0]


@pytest.mark.parametrize(("op", "law"), crossed(OPS, [(0.0, 1.0), (0.7, 0.5), (-1.3, 2.0)]))
def test_coefficients_match_numerical_integration(op, law):
    (op, args), (mean, scale) = op, law
    activation = find_activation(op, args)
    a, second = hermite_coefficients(activation, torch.tensor([mean]).double(), torch.tensor([scale]).double(), 6)
    tolerance = 5e-4 if op in ("hardswish", "elu") else 1e-6  # quadrature across a kink of a derivative
    assert float(second) == pytest.approx(_integral(lambda z: activation.function(z) ** 2, mean, scale), abs=tolerance)
    for k in range(7):
        polynomial = np.polynomial.hermite_e.HermiteE.basis(k)

        def product(z, polynomial=polynomial, k=k):
            g = (z - mean) / scale
            return activation.function(z) * float(polynomial(float(g))) / math.sqrt(math.factorial(k))

        assert float(a[k]) == pytest.approx(_integral(product, mean, scale), abs=tolerance)


@pytest.mark.parametrize(("op", "args"), OPS)
def test_moments_match_monte_carlo(op, args):
    activation, producers = find_activation(op, args), _rows()
    generator = torch.Generator().manual_seed(1)
    factor = torch.randn(4, 4, generator=generator, dtype=torch.float64) / 2
    centre = torch.randn(4, generator=generator, dtype=torch.float64)
    law = linear_preactivations(producers, centre, factor @ factor.T)
    moments = activation_moments(activation, law)
    x = centre + torch.randn(150000, 4, generator=generator, dtype=torch.float64) @ factor.T
    h = activation.function(x @ producers[:, :-1].T + producers[:, -1])
    scale = float(moments.second.diagonal().max())
    torch.testing.assert_close(moments.mean, h.mean(dim=0), rtol=0, atol=0.01 * scale**0.5)
    torch.testing.assert_close(moments.second, h.T @ h / len(h), rtol=0, atol=0.02 * scale)
    torch.testing.assert_close(moments.covariance, torch.cov(h.T, correction=0), rtol=0, atol=0.02 * scale)


def test_relu_is_the_arc_cosine_kernel():
    producers = torch.cat([_rows(30, 8), torch.zeros(30, 0)], dim=1)
    producers[:, -1] = 0
    law = linear_preactivations(producers)
    angle = torch.arccos(law.correlation)
    kernel = (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi) * law.scale[:, None] * law.scale
    found = activation_moments(find_activation("relu"), law).second
    largest = (law.scale[:, None] * law.scale).max()
    assert (found - kernel).abs().max() / largest < 7e-5
    torch.testing.assert_close(found.diagonal(), kernel.diagonal())
    coarse = activation_moments(find_activation("relu"), law, terms=3).second
    assert (coarse - kernel).abs().max() > 10 * (found - kernel).abs().max()


def test_the_identity_has_the_moments_of_its_input():
    law = linear_preactivations(_rows())
    moments = activation_moments(find_activation(""), law)
    covariance = law.scale[:, None] * law.correlation * law.scale
    torch.testing.assert_close(moments.covariance, covariance)


@pytest.mark.parametrize("op", ["relu", "gelu", "hardswish", "hardtanh"])
def test_more_channels_than_inputs_leave_the_matrix_positive(op):
    moments = activation_moments(find_activation(op), linear_preactivations(_rows(40, 3)))
    assert torch.equal(moments.second, moments.second.T)
    for matrix in (moments.second, moments.covariance):
        assert torch.linalg.eigvalsh(matrix)[0] > -1e-10 * matrix.diagonal().sum()


@pytest.mark.parametrize(
    ("op", "mean", "scale"),
    crossed(["relu", "leaky_relu", "hardtanh", "gelu"], [-2.0, 0.0, 0.4, 1e6], [0.0, 1e-300, 1e-20]),
)
def test_a_channel_without_variance_is_a_constant(op, mean, scale):
    activation = find_activation(op)
    means, scales = torch.tensor([mean, 0.3]).double(), torch.tensor([scale, 1.0]).double()
    law = Gaussian(means, scales, torch.eye(2, dtype=torch.float64))
    moments = activation_moments(activation, law)
    value = activation.function(means[:1])
    torch.testing.assert_close(moments.mean[:1], value)
    torch.testing.assert_close(moments.second[0, 0], value[0] ** 2)
    assert bool(moments.second.isfinite().all())


def test_permuting_channels_permutes_the_moments():
    producers, order = _rows(), torch.tensor([4, 0, 5, 1, 3, 2])
    relu = find_activation("relu")
    plain, permuted = (
        activation_moments(relu, linear_preactivations(producers)),
        activation_moments(relu, linear_preactivations(producers[order])),
    )
    torch.testing.assert_close(permuted.second, plain.second[order][:, order])


def test_relu_moments_scale_with_the_rows():
    producers, scale = _rows(), torch.logspace(-2, 2, 6, dtype=torch.float64)
    relu = find_activation("relu")
    plain, scaled = (
        activation_moments(relu, linear_preactivations(producers)),
        activation_moments(relu, linear_preactivations(producers * scale[:, None])),
    )
    torch.testing.assert_close(scaled.second, plain.second * scale[:, None] * scale)


def test_a_kronecker_covariance_is_never_formed_but_meant():
    generator = torch.Generator().manual_seed(3)
    producers = _rows(5, 3 * 4)
    factor = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    channels, positions = factor @ factor.T, spatial_correlation((2, 2), 0.8)
    mean = torch.randn(3, generator=generator, dtype=torch.float64)
    pair = linear_preactivations(producers, mean, (channels, positions))
    full = linear_preactivations(producers, mean.repeat_interleave(4), torch.kron(channels, positions))
    torch.testing.assert_close(pair.mean, full.mean)
    torch.testing.assert_close(pair.scale, full.scale)
    torch.testing.assert_close(pair.correlation, full.correlation)


def test_a_chain_propagates_moments():
    # The second layer's law from the first one's moments, against samples through both layers.
    relu, first, second = find_activation("relu"), _rows(5, 4), _rows(3, 5, seed=4)
    moments = activation_moments(relu, linear_preactivations(first))
    law = linear_preactivations(second, moments.mean, moments.covariance)
    x = torch.randn(200000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h = (x @ first[:, :-1].T + first[:, -1]).clamp(min=0)
    z = h @ second[:, :-1].T + second[:, -1]
    torch.testing.assert_close(law.mean, z.mean(dim=0), rtol=0, atol=0.03)
    torch.testing.assert_close(law.scale, z.std(dim=0), rtol=0.01, atol=0)
    torch.testing.assert_close(law.correlation, torch.corrcoef(z.T), rtol=0, atol=0.01)


def test_batchnorm_marginals_with_correlations_of_the_folded_filters():
    producers, shift = _rows(), torch.linspace(-1, 1, 6)
    gamma = torch.tensor([1.0, -2.0, 0.5, 0.0, -0.1, 3.0])
    folded = producers * gamma[:, None]
    law = batchnorm_preactivations(folded, shift, gamma)
    torch.testing.assert_close(law.mean, shift.double())
    torch.testing.assert_close(law.scale, gamma.abs().double())
    cosine = torch.nn.functional.cosine_similarity(folded[:, None, :-1], folded[None, :, :-1], dim=2)
    cosine.fill_diagonal_(1)
    torch.testing.assert_close(law.correlation, cosine)


def test_spatial_correlation_follows_the_distance():
    rho = spatial_correlation((3, 3), 0.7)
    assert float(rho[0, 8]) == pytest.approx(0.7 ** math.sqrt(8))
    assert float(rho[1, 3]) == pytest.approx(0.7 ** math.sqrt(2))
    assert torch.linalg.eigvalsh(spatial_correlation((5, 5), 0.8))[0] > 0


@pytest.mark.parametrize("nodes", [1, 2, 7, 200])
def test_gauss_hermite_is_numpys(nodes):
    expected_nodes, expected_weights = np.polynomial.hermite_e.hermegauss(nodes)
    found_nodes, found_weights = gauss_hermite(nodes)
    np.testing.assert_allclose(found_nodes, expected_nodes, atol=1e-12)
    np.testing.assert_allclose(found_weights, expected_weights / expected_weights.sum(), atol=1e-14)


def test_large_matrices_are_float32():
    law = linear_preactivations(torch.randn(2049, 3, generator=torch.Generator().manual_seed(0)))
    assert law.correlation.dtype == torch.float32
    moments = activation_moments(find_activation("relu"), law)
    assert moments.second.dtype == torch.float32
    few = activation_moments(
        find_activation("relu"), Gaussian(law.mean[:50], law.scale[:50], law.correlation[:50, :50].double())
    )
    torch.testing.assert_close(moments.second[:50, :50].double(), few.second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("mean", "covariance"),
    [
        (torch.ones(3), 1.0),
        (None, torch.eye(3)),
        (None, (torch.eye(3), torch.eye(1))),
    ],
)
def test_inputs_that_do_not_fit_are_refused(mean, covariance):
    with pytest.raises(ValueError, match="Expected"):
        linear_preactivations(_rows(), mean, covariance)
