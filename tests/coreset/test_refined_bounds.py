"""The refined theorem: its parts by hand, its failure share over many draws, and never more draws than the theorem."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from lightning_coreset.coreset import (
    DrawLaw,
    draw_fixed,
    draw_law,
    error_bound,
    failure_probability,
    find_activation,
    refined_error_bound,
    refined_sample_size,
    sample_size,
    sensitivities,
)

pytestmark = pytest.mark.usefixtures("double_precision")

ACTIVATIONS = ["relu", "leaky_relu", "", "tanh", "sigmoid", "gelu", "hardtanh"]


def layers(channels: int = 40, inputs: int = 2, outputs: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(channels, inputs + 1, generator=generator),
        torch.randn(outputs, channels, generator=generator) * torch.logspace(-1, 1, outputs)[:, None],
    )


def law_of(op: str, radius: float = 1.0, seed: int = 0, **affine: Tensor) -> tuple[DrawLaw, Tensor]:
    producers, consumers = layers(seed=seed)
    activation = find_activation(op)
    assert activation is not None
    s = sensitivities(producers, consumers[..., None], activation, input_radius=radius)
    if affine:
        s = s * affine["scale"].abs() + consumers.abs().amax(0) * affine["offset"].abs()
    return draw_law(producers, consumers, activation, s, input_radius=radius, **affine), s


def ball(radius: float, inputs: int = 2, points: int = 240, seed: int = 1) -> Tensor:
    """Points of a ball of two dimensions, dense enough to stand for all of it."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(points, inputs, generator=generator), dim=1)
    inner = torch.rand(points // 3, 1, generator=generator).sqrt()
    return radius * torch.cat([directions, directions[: points // 3] * inner, torch.zeros(1, inputs)])


def draws_of(
    op: str, radius: float, seed: int = 0, scale: Tensor | float = 1.0, offset: Tensor | float = 0.0
) -> Tensor:
    """What each channel contributes to each coordinate when it is drawn, at all points, (J, points, N)."""
    producers, consumers = layers(seed=seed)
    activation = find_activation(op)
    assert activation is not None
    x = ball(radius)
    h = scale * activation.function(x @ producers[:, :-1].T + producers[:, -1]) + offset
    _, s = law_of(op, radius, seed, **({} if isinstance(scale, float) else {"scale": scale, "offset": offset}))
    return consumers[:, None] * h * s.sum() / s


def probabilities(scores: Tensor) -> Tensor:
    return scores / scores.sum()


@pytest.mark.parametrize("radius", [0.5, 3.0])
@pytest.mark.parametrize("op", ACTIVATIONS)
@pytest.mark.parametrize("affine", [False, True])
def test_every_number_of_the_law_holds_at_all_points(op, radius, affine):
    """The range of draws, how far they deviate from their mean, and their variance, enumerated."""
    made = torch.Generator().manual_seed(5)
    parts = {"scale": torch.randn(40, generator=made), "offset": torch.randn(40, generator=made)} if affine else {}
    law, s = law_of(op, radius, **parts)
    drawn, pr = draws_of(op, radius, **parts), probabilities(s)
    mean = drawn @ pr
    assert (drawn.amax((1, 2)) - drawn.amin((1, 2)) <= law.spread).all()
    assert ((mean - drawn.amin(2)).amax(1) <= law.above[0]).all()
    assert ((drawn.amax(2) - mean).amax(1) <= law.above[1]).all()
    deviation = ((drawn.square() @ pr) - mean.square()).clamp_min(0).sqrt().amax(1)
    assert (deviation <= law.deviation).all()
    assert (law.deviation <= law.spread / 2 * (1 + 1e-8)).all()
    # And they are not merely huge.
    assert (drawn.amax((1, 2)) - drawn.amin((1, 2)) > law.spread / 3).all()
    assert (deviation > law.deviation / 4).all()


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_the_mean_of_the_largest_error_is_bounded(op):
    """Over many draws, for few and many of them; the mean is within a few times the bound."""
    law, s = law_of(op, 2.0)
    drawn, generator = draws_of(op, 2.0), torch.Generator().manual_seed(2)
    mean = drawn @ probabilities(s)
    for draws in (1, 4, 30):
        largest = torch.zeros(2, len(drawn))
        for _ in range(60):
            sample = draw_fixed(s, draws, generator)
            weights = sample.weights * probabilities(s)[sample.kept]
            error = mean - drawn[:, :, sample.kept] @ weights
            largest += torch.stack([error.amax(1), (-error).amax(1)]) / 60
        assert (largest <= law.mean / math.sqrt(draws)).all()
        assert (largest > law.mean / math.sqrt(draws) / 8).any()


@pytest.mark.parametrize("op", ["relu", "tanh", "gelu"])
def test_draws_fail_no_more_often_than_they_may(op):
    law, s = law_of(op)
    drawn, generator = draws_of(op, 1.0), torch.Generator().manual_seed(3)
    mean = drawn @ probabilities(s)
    for draws in (3, 50):
        errors = []
        for _ in range(200):
            sample = draw_fixed(s, draws, generator)
            errors.append(
                (mean - drawn[:, :, sample.kept] @ (sample.weights * probabilities(s)[sample.kept])).abs().max()
            )
        errors = torch.stack(errors)
        for delta in (0.5, 0.1, 0.01):
            bound = refined_error_bound(law, draws, delta)
            assert float((errors > bound).double().mean()) <= delta
        assert float(errors.max()) > bound / 10


def test_no_tail_of_coin_tosses_is_longer():
    """Two constant channels of opposite signs: the law of the error is binomial, and little is to spare in the tail."""
    producers = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    consumers = torch.tensor([[0.5, -0.5]])
    identity = find_activation("")
    assert identity is not None
    s = torch.tensor([0.5, 0.5])
    law = draw_law(producers, consumers, identity, s)
    assert law.mean.item() == pytest.approx(0.0, abs=1e-6)
    assert law.spread.item() == pytest.approx(2.0)
    for draws in (1, 4, 16, 64):
        tosses = torch.arange(draws + 1)
        errors = (2 * tosses - draws) / draws
        log = torch.lgamma(torch.tensor(draws + 1.0)) - torch.lgamma(tosses + 1.0) - torch.lgamma(draws - tosses + 1.0)
        chance = torch.exp(log - draws * math.log(2))
        for epsilon in torch.linspace(0.05, 1.0, 20).tolist():
            true = float(chance[errors.abs() >= epsilon - 1e-9].sum())
            bound = failure_probability(law, draws, epsilon)
            assert true <= bound


def bounded_by_hand(law: DrawLaw, draws: int, epsilon: float) -> float:
    total = 0.0
    for j, sign in product(range(len(law.mean)), range(2)):
        mean, b = float(law.mean[j]) / math.sqrt(draws), float(law.above[sign, j])
        gap = epsilon - mean
        if gap <= 0:
            return 1.0
        v = draws * float(law.deviation[j]) ** 2 + 2 * b * draws * mean
        low, high = 0.0, 1e6
        for _ in range(200):  # Bousquet's t for which the bound is reached
            t = (low + high) / 2
            reached = math.sqrt(2 * t * v) + b * t / 3 >= draws * gap
            low, high = (low, t) if reached else (t, high)
        total += min(math.exp(-2 * draws * gap**2 / float(law.spread[j]) ** 2), math.exp(-low))
    return min(1.0, total)


@pytest.mark.parametrize("op", ["relu", "sigmoid"])
def test_probabilities_are_those_of_the_inequalities(op):
    law, _ = law_of(op)
    for draws, part in product((10, 300, 10000), (0.05, 0.3, 1.0)):
        epsilon = part * law.total
        by_hand = bounded_by_hand(law, draws, epsilon)
        assert failure_probability(law, draws, epsilon) == pytest.approx(by_hand, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("delta", [1e-6, 0.05, 0.9])
@pytest.mark.parametrize("op", ACTIVATIONS)
def test_never_more_draws_than_the_theorem(op, delta):
    law, _ = law_of(op, 1.5)
    for epsilon in (0.01 * law.total, 0.3 * law.total, 3 * law.total):
        theorem = sample_size(law.total, epsilon, 3, delta, complexity=law.complexity)
        size = refined_sample_size(law, epsilon, delta)
        assert size <= theorem
        assert refined_error_bound(law, size, delta) <= epsilon * (1 + 1e-6)
        if size > 1:
            assert refined_error_bound(law, size - 1, delta) > epsilon
            assert failure_probability(law, size - 1, epsilon) > delta
    assert refined_error_bound(law, 50, delta) <= error_bound(law.total, 50, 3, delta, complexity=law.complexity)


def test_a_useless_law_leaves_the_theorem():
    law, _ = law_of("relu")
    useless = replace(law, mean=torch.full_like(law.mean, math.inf))
    assert failure_probability(useless, 10**6, 1.0) == 1.0
    assert refined_sample_size(useless, 1.0, 0.1) == sample_size(law.total, 1.0, 3, 0.1, complexity=law.complexity)
    assert refined_sample_size(replace(useless, complexity=math.inf), 1.0, 0.1) == 2**62
    broken = replace(law, spread=torch.full_like(law.spread, math.nan), deviation=torch.full_like(law.mean, math.nan))
    assert failure_probability(broken, 10**6, law.total) == 1.0


def test_channels_that_are_never_drawn_must_not_matter():
    producers, consumers = layers()
    relu = find_activation("relu")
    assert relu is not None
    s = sensitivities(producers, consumers[..., None], relu)
    at = int(s.argmax())
    s[at] = 0.0
    assert draw_law(producers, consumers, relu, s).mean.isinf().all()
    consumers[:, at] = 0.0
    assert draw_law(producers, consumers, relu, s).mean.isfinite().all()


def test_scores_below_the_sensitivities_have_no_theorem():
    """Whose draws it is not about; the refined numbers hold for any probabilities."""
    producers, consumers = layers()
    relu = find_activation("relu")
    assert relu is not None
    law = draw_law(producers, consumers, relu, torch.full((40,), 1e-3))
    assert math.isinf(law.complexity)
    drawn = consumers[:, None] * relu.function(ball(1.0) @ producers[:, :-1].T + producers[:, -1]) * 40
    assert (drawn.amax((1, 2)) - drawn.amin((1, 2)) <= law.spread).all()


def test_laws_of_several_consumers_are_joined():
    one, _ = law_of("relu", seed=0)
    other, _ = law_of("relu", seed=1)
    both = DrawLaw.joined([one, other])
    assert len(both.mean) == 6
    each = [failure_probability(law, 100, one.total) for law in (one, other)]
    assert failure_probability(both, 100, one.total) == pytest.approx(min(1.0, sum(each)))
