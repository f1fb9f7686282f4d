"""The laws of synthetic inputs: moments, correlations over distance, spectra."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from breadth import some_of

from lightning_coreset.probes import dead_leaves, pink_noise
from lightning_coreset.probes.dead_leaves import _topmost


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


def slope(power: torch.Tensor, first: int = 1) -> float:
    """The exponent of a power law, by least squares over its logarithms; ``power[i]`` is that of frequency i."""
    frequency = torch.arange(first, len(power)).log()
    line = torch.stack([frequency, torch.ones_like(frequency)], 1)
    return torch.linalg.lstsq(line, power[first:].log()[:, None]).solution[0].item()


def radial_power(images: torch.Tensor) -> torch.Tensor:
    """Mean power of square images at whole frequencies below the largest one."""
    size = images.shape[-1]
    power = torch.fft.fft2(images - images.mean((-1, -2), keepdim=True)).abs().square().mean((0, 1))
    frequency = torch.fft.fftfreq(size) * size
    distance = (frequency[:, None].square() + frequency.square()).sqrt()
    return torch.stack([power[(distance - one).abs() < 0.5].mean() for one in range(size // 2)])


@pytest.mark.parametrize("size", some_of([(32, 32), (9, 40), (64, 64), (8, 16, 16)], (32, 32), (8, 16, 16)))
def test_dead_leaves_have_zero_mean_and_unit_deviation(size):
    made = dead_leaves(96, 3, size, rng())

    assert made.shape == (96, 3, *size)
    assert made.dtype == torch.float32
    assert abs(made.mean()) < 1e-5
    assert abs(made.square().mean() - 1) < 1e-4


def test_neighbours_of_dead_leaves_are_alike_and_distant_pixels_are_not():
    images = dead_leaves(256, 3, (32, 32), rng())

    along = [correlation(images[..., :-step], images[..., step:]) for step in (1, 2, 4, 8, 16)]
    across = [correlation(images[..., :-step, :], images[..., step:, :]) for step in (1, 2, 4, 8, 16)]
    for found in (along, across):
        assert found[0] > 0.8
        assert all(near > far + 0.05 for near, far in pairwise(found))
        assert found[-1] < 0.2


def test_dead_leaves_have_edges():
    """A Gaussian field of the same spectrum has none: differences of neighbours are mostly 0, and large at edges."""
    images = dead_leaves(128, 1, (48, 48), rng())
    steps = images.diff(dim=-1)

    assert (steps == 0).float().mean() > 0.7
    kurtosis = steps.pow(4).mean() / steps.square().mean().square()
    assert kurtosis > 8  # that of a Gaussian is 3


@pytest.mark.parametrize("size", some_of([32, 64], 32))
def test_power_of_dead_leaves_falls_as_in_photographs(size):
    images = dead_leaves(256, 1, (size, size), rng())

    assert -2.7 < slope(radial_power(images)) < -1.9
    assert slope(radial_power(torch.randn(256, 1, size, size, generator=rng()))) > -0.2  # white noise is none


def test_colours_of_dead_leaves_correlate():
    images = dead_leaves(512, 3, (16, 16), rng())

    expected = 1 / (1 + 0.35**2)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(correlation(images[:, a], images[:, b]) - expected) < 0.03


def test_dead_leaves_lie_where_their_balls_are():
    """Against the distances of all pixels to all balls."""
    centres, radii = torch.rand(5, 20, 2, generator=rng()), 1 + 5 * torch.rand(5, 20, generator=rng(1))
    size = (11, 17)
    pixels = torch.cartesian_prod(torch.arange(0.5, 11), torch.arange(0.5, 17)).view(11, 17, 1, 2)
    within = (pixels - (centres * torch.tensor(size))[:, None, None]).square().sum(-1) < radii[:, None, None].square()
    expected = (within * torch.arange(1, 21)).amax(-1)

    found = _topmost(centres, radii, size)

    assert (found == expected).float().mean() > 0.999  # a pixel's centre may lie on a circle to rounding


def test_many_images_are_made_as_few_are(monkeypatch):
    """They are made in parts, to bound memory, which does not show."""
    whole = dead_leaves(20, 3, (12, 12), rng())
    monkeypatch.setitem(dead_leaves.__globals__, "_PIXELS_AT_ONCE", 300)
    parts = dead_leaves(20, 3, (12, 12), rng())

    assert torch.equal(whole, parts)


@pytest.mark.parametrize("length", some_of([16, 64, 501], 64))
def test_pink_noise_has_zero_mean_and_unit_variance(length):
    series = pink_noise(4096, 2, length, rng())

    assert series.shape == (4096, 2, length)
    assert abs(series.mean()) < 0.05
    assert (series.square().mean((0, 1)) - 1).abs().max() < 0.1  # at every point in time


def test_power_of_pink_noise_falls_with_the_frequency():
    series = pink_noise(512, 1, 512, rng())
    power = torch.fft.rfft(series * torch.hann_window(512)).abs().square().mean((0, 1))

    assert abs(slope(power[:200], first=4) + 1) < 0.05


def test_features_of_pink_noise_correlate_mildly():
    series = pink_noise(2048, 3, 32, rng())

    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(correlation(series[:, a], series[:, b]) - 0.3) < 0.05


def test_the_end_of_pink_noise_does_not_meet_its_start():
    series = pink_noise(4096, 1, 64, rng())

    assert correlation(series[..., 0], series[..., -1]) < correlation(series[..., 0], series[..., 1]) - 0.2


@pytest.mark.parametrize("law", [lambda g: dead_leaves(4, 3, (9, 9), g), lambda g: pink_noise(4, 3, 9, g)])
def test_laws_are_seeded_and_leave_the_global_generator_alone(law):
    before = torch.get_rng_state()

    first, again, other = law(rng(3)), law(rng(3)), law(rng(4))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
