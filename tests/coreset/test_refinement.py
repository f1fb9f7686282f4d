"""Moved producers: their expected error against Monte Carlo, and that it never rises."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_coreset.coreset import Refinement, find_activation, refine_producers


def law(channels: int = 12, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, covariance and consumers of correlated channels."""
    generator = torch.Generator().manual_seed(seed)
    mean = 0.5 * torch.randn(channels, generator=generator, dtype=torch.float64)
    factor = torch.randn(channels, 6, generator=generator, dtype=torch.float64)
    covariance = factor @ factor.T / 6 + 0.05 * torch.eye(channels, dtype=torch.float64)
    return mean, covariance, torch.randn(5, channels, generator=generator, dtype=torch.float64)


def sampled(name: str, found: Refinement, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Old and new activations of many draws."""
    mean, covariance, _ = law()
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(200_000, len(mean), generator=generator, dtype=torch.float64)
    z = mean + noise @ torch.linalg.cholesky(covariance).T
    phi = find_activation(name).function
    return phi(z), phi(z @ found.combination.T + found.shift)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("name", ["relu", "gelu", "tanh"])
def test_the_error_is_that_of_monte_carlo(name, centred):
    mean, covariance, consumers = law()
    kept = torch.tensor([0, 3, 5, 8])
    found = refine_producers(find_activation(name), mean, covariance, consumers, kept, centred=centred, steps=15)
    old, new = sampled(name, found)
    if centred:
        old, new = old - found.means[0], new - found.means[1]
    error = float(((old - new @ found.mix.T) @ consumers.T).square().sum(dim=1).mean())
    energy = float((old @ consumers.T).square().sum(dim=1).mean())
    # The ridge counts in the one and not in the other, and 200,000 draws leave half a percent.
    assert abs(error - found.error) < 0.01 * energy
    assert found.error < 0.9 * found.error_before


def test_the_means_are_those_of_monte_carlo():
    mean, covariance, consumers = law()
    found = refine_producers(find_activation("relu"), mean, covariance, consumers, torch.tensor([1, 2]), centred=True)
    old, new = sampled("relu", found)
    assert torch.allclose(old.mean(dim=0), found.means[0], atol=0.01)
    assert torch.allclose(new.mean(dim=0) / new.std(dim=0), found.means[1] / new.std(dim=0), atol=0.01)


def test_more_steps_never_make_it_worse():
    mean, covariance, consumers = law()
    errors = [
        refine_producers(
            find_activation("relu"), mean, covariance, consumers, torch.tensor([0, 4, 9]), centred=True, steps=steps
        ).error
        for steps in (0, 5, 40)
    ]
    assert errors[0] > errors[1] >= errors[2] > 0


@pytest.mark.parametrize("name", ["relu", "gelu"])
def test_rows_keep_their_size_where_any_would_do(name):
    """A ReLU of a row of any size makes the same up to a factor; steps may take it to thousands."""
    mean, covariance, consumers = law()
    kept = torch.tensor([1, 4, 7])
    found = refine_producers(find_activation(name), mean, 1e-3 * covariance, consumers, kept, centred=True)
    deviations = ((found.combination @ covariance) * found.combination).sum(dim=1).sqrt()

    assert torch.allclose(deviations, covariance.diagonal()[kept].sqrt()) == (name == "relu")


def test_without_steps_rows_stay_as_they_are():
    mean, covariance, consumers = law()
    kept = torch.tensor([2, 7])
    found = refine_producers(find_activation("relu"), mean, covariance, consumers, kept, centred=True, steps=0)
    assert found.error == found.error_before
    assert torch.equal(found.combination, torch.eye(12, dtype=torch.float64)[kept])
    assert not found.shift.any()


def test_gradients_are_neither_needed_nor_left_on():
    mean, covariance, consumers = law()
    with torch.no_grad():
        found = refine_producers(
            find_activation("relu"), mean, covariance, consumers, torch.tensor([0]), centred=True, steps=3
        )
        assert not torch.is_grad_enabled()
    assert not found.combination.requires_grad
    assert found.error < found.error_before
