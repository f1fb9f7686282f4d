"""The samplers against their naive loops, and their properties."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lightning_coreset.coreset import draw_distinct, draw_fixed, draw_pps, inclusion_probabilities

SAMPLERS = [draw_distinct, draw_fixed, draw_pps]
SCORES = torch.tensor([0.5, 3.0, 1.0, 0.0, 2.0, 0.2], dtype=torch.float64)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _naive_distinct(scores, size, rng):
    probability = scores / scores.sum()
    counts = np.zeros(len(scores), dtype=int)
    while (counts > 0).sum() < size:
        counts[rng.choice(len(scores), p=probability)] += 1
    kept = counts.nonzero()[0]
    return kept, counts[kept] / (counts.sum() * probability[kept])


def test_distinct_has_the_exact_law_for_two_channels():
    # A run that ends on its second distinct channel is a^k b, so P(S = {a, b}, n_a = k, n_b = 1) is known exactly.
    probability = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    draws, observed, generator = 8000, Counter(), _generator(1)
    for _ in range(draws):
        sample = draw_distinct(probability, 2, generator)
        parts = sample.weights * probability[sample.kept]  # n_q / M
        total = 1 / float(parts.min())  # one of the two came up once
        observed[(*sample.kept.tolist(), *(parts * total).round().int().tolist())] += 1
    expected = {}
    for a in range(3):
        for b in range(a + 1, 3):
            for k in range(1, 60):
                p, q = float(probability[a]), float(probability[b])
                if k == 1:
                    expected[(a, b, 1, 1)] = 2 * p * q
                else:
                    expected[(a, b, k, 1)], expected[(a, b, 1, k)] = p**k * q, q**k * p
    common = {key: value for key, value in expected.items() if value * draws >= 8}
    rest = 1 - sum(common.values())
    f_observed = [observed[key] for key in common] + [draws - sum(observed[key] for key in common)]
    f_expected = [draws * value for value in common.values()] + [draws * rest]
    assert stats.chisquare(f_observed, f_expected).pvalue > 1e-3


def test_distinct_has_the_law_of_the_naive_loop():
    scores, size, draws = SCORES, 4, 2000
    rng, generator = np.random.default_rng(0), _generator(2)
    ours, naive = [], []
    for _ in range(draws):
        sample = draw_distinct(scores, size, generator)
        ours.append((tuple(sample.kept.tolist()), sample.weights.numpy()))
        naive_kept, naive_weights = _naive_distinct(scores.numpy(), size, rng)
        naive.append((tuple(naive_kept.tolist()), naive_weights))
    subsets = sorted({kept for kept, _ in ours + naive})
    table = [[sum(kept == s for kept, _ in runs) for s in subsets] for runs in (ours, naive)]
    table = np.array(table)[:, np.array(table).sum(axis=0) >= 10]
    assert stats.chi2_contingency(table).pvalue > 1e-3
    for channel in (1, 4, 5):
        mine = [w[kept.index(channel)] for kept, w in ours if channel in kept]
        theirs = [w[kept.index(channel)] for kept, w in naive if channel in kept]
        assert stats.ks_2samp(mine, theirs).pvalue > 1e-3


def test_distinct_does_not_wait_for_channels_of_probability_near_zero():
    scores = torch.cat([torch.tensor([1.0]), torch.full((99,), 1e-250)]).double()
    scores[1:] = 1e-250
    sample = draw_distinct(scores, 50, _generator())
    assert len(sample.kept) == 50
    assert bool(sample.weights.isfinite().all())
    assert float(sample.weights[0]) == pytest.approx(1.0)


@pytest.mark.parametrize("draws", [1, 7, 40])
@pytest.mark.slow
def test_fixed_has_the_multinomial_law(draws):
    probability, generator, runs = SCORES / SCORES.sum(), _generator(3), 3000
    counts = torch.zeros(runs, len(SCORES), dtype=torch.float64)
    for row in counts:
        sample = draw_fixed(SCORES, draws, generator)
        row[sample.kept] = sample.weights * draws * probability[sample.kept]
    torch.testing.assert_close(counts, counts.round())
    assert bool((counts.sum(dim=1).round() == draws).all())
    for channel in range(len(SCORES)):
        values = np.arange(draws + 1)
        expected = runs * stats.binom.pmf(values, draws, float(probability[channel]))
        observed = np.bincount(counts[:, channel].round().int().numpy(), minlength=draws + 1)
        rare = expected < 8
        observed = np.append(observed[~rare], observed[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
        if expected[-1] < 8:
            assert observed[-1] < 30
            observed, expected = observed[:-1], expected[:-1] * observed[:-1].sum() / expected[:-1].sum()
        if len(expected) > 1:
            assert stats.chisquare(observed, expected).pvalue > 1e-3
    covariance = torch.cov(counts.T)
    expected = draws * (probability.diag() - probability[:, None] * probability)
    torch.testing.assert_close(covariance, expected, rtol=0, atol=0.12 * draws**0.5)


@pytest.mark.parametrize(("sampler", "count"), [(draw_fixed, 3), (draw_fixed, 50), (draw_pps, 2), (draw_pps, 4)])
def test_unbiased(sampler, count):
    generator, runs = _generator(4), 3000
    total, square = torch.zeros_like(SCORES), torch.zeros_like(SCORES)
    for _ in range(runs):
        sample = sampler(SCORES, count, generator)
        weights = torch.zeros_like(SCORES)
        weights[sample.kept] = sample.weights
        total, square = total + weights, square + weights**2
    mean = total / runs
    error = (square / runs - mean**2).clamp_min(1e-30).sqrt() / runs**0.5
    assert bool(((mean - (SCORES > 0).double()).abs() <= 4.5 * error + 1e-9).all())


def test_pps_includes_each_channel_with_its_probability():
    generator, runs, size = _generator(5), 3000, 3
    probability = inclusion_probabilities(SCORES, size)
    came = torch.zeros_like(SCORES)
    for _ in range(runs):
        sample = draw_pps(SCORES, size, generator)
        assert len(sample.kept) == size
        came[sample.kept] += 1
    error = (probability * (1 - probability) / runs).sqrt()
    assert bool(((came / runs - probability).abs() <= 4.5 * error + 1e-12).all())


@settings(max_examples=40, deadline=None)
@given(
    scores=st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=40),
    part=st.floats(0.01, 0.99),
)
def test_inclusion_probabilities_by_property(scores, part):
    s = torch.tensor(scores, dtype=torch.float64)
    size = max(1, int(part * len(s)))
    probability = inclusion_probabilities(s, size)
    assert bool((probability <= 1).all() and (probability > 0).all())
    assert float(probability.sum()) == pytest.approx(size, rel=1e-9)
    shared = probability < 1 - 1e-9
    if shared.any():  # proportional below one, and nothing below one is larger than what is certain
        ratio = probability[shared] / s[shared]
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
        assert bool((s[~shared] * ratio[0] >= 1 - 1e-6).all())


@settings(max_examples=40, deadline=None)
@given(
    scores=st.lists(st.one_of(st.just(0.0), st.floats(1e-12, 1e12)), min_size=1, max_size=40),
    size=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
@pytest.mark.parametrize("sampler", [draw_distinct, draw_pps])
def test_size_is_exact(sampler, scores, size, seed):
    s = torch.tensor(scores, dtype=torch.float64)
    sample = sampler(s, size, _generator(seed))
    assert len(sample.kept) == max(1, min(size, int((s > 0).sum())))
    assert sample.kept.dtype == torch.int64
    assert sample.weights.dtype == torch.float64
    assert bool((sample.kept.diff() > 0).all())
    assert bool((sample.weights > 0).all() and sample.weights.isfinite().all())
    if s.any():
        assert bool((s[sample.kept] > 0).all())


@pytest.mark.parametrize("sampler", [draw_distinct, draw_pps])
@pytest.mark.parametrize("size", [5, 6, 100])
def test_full_size_is_the_identity(sampler, size):
    sample = sampler(SCORES, size, _generator())
    assert sample.kept.tolist() == [0, 1, 2, 4, 5]
    assert sample.weights.tolist() == [1.0] * 5


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("scores", [[0.0, 0.0, 0.0], [0.0], [2.0]])
def test_one_channel_always_stays(sampler, scores):
    sample = sampler(torch.tensor(scores), 2, _generator())
    assert sample.kept.tolist() == [0]
    assert sample.weights.tolist() == [1.0]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("factor", [1e-300, 1e290])
def test_a_common_factor_changes_nothing(sampler, factor):
    plain, scaled = (sampler(s, 3, _generator(7)) for s in (SCORES, SCORES * factor))
    assert plain.kept.tolist() == scaled.kept.tolist()
    torch.testing.assert_close(plain.weights, scaled.weights)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_seeded_and_deaf_to_the_global_generator(sampler):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = sampler(SCORES, 3, _generator(11))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    again = sampler(SCORES, 3, _generator(11))
    assert torch.equal(first.kept, again.kept)
    assert torch.equal(first.weights, again.weights)
    others = [tuple(sampler(SCORES, 3, _generator(seed)).kept.tolist()) for seed in range(20)]
    assert len(set(others)) > 1


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_impossible_sensitivities_are_refused(sampler, bad):
    with pytest.raises(ValueError, match="finite and not negative"):
        sampler(torch.tensor([1.0, bad]), 1, _generator())


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("scores", "count"), [(torch.ones(3), 0), (torch.ones(0), 1), (torch.ones(2, 2), 1)])
def test_impossible_sizes_are_refused(sampler, scores, count):
    with pytest.raises(ValueError, match="Expected"):
        sampler(scores, count, _generator())


def test_millions_of_draws_cost_no_more_than_one():
    sample = draw_fixed(SCORES, 10**12, _generator())
    torch.testing.assert_close(sample.weights, torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-4)
