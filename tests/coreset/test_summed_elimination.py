"""Elimination on the summed error of several consumers, each with moments of its own."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from lightning_coreset.coreset import eliminate, elimination_curve


def readers(channels=8, count=3):
    generator = torch.Generator().manual_seed(0)
    moments, consumers = [], []
    for _ in range(count):
        factor = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
        moments.append(factor @ factor.T / channels)
        consumers.append(torch.randn(4, channels, generator=generator, dtype=torch.float64))
    return moments, consumers


def cost(moments, consumers, kept, ridge=1e-9):
    """The summed error of the best weights on the kept channels, straight from the definition."""
    total = 0.0
    for moment, weights in zip(moments, consumers, strict=True):
        within = moment[kept][:, kept] + ridge * moment.diagonal().mean() * torch.eye(len(kept), dtype=torch.float64)
        across = weights @ moment[:, kept]
        total += float(((weights @ moment) * weights).sum() - (torch.linalg.solve(within, across.T).T * across).sum())
    return total


def test_one_channel_goes_that_costs_least_in_sum():
    moments, consumers = readers()
    kept = eliminate(moments, consumers, 7, ridge=1e-9)
    best = min(combinations(range(8), 7), key=lambda some: cost(moments, consumers, torch.tensor(some)))
    assert kept.tolist() == list(best)
    alone = eliminate(moments[0], consumers[0], 7, ridge=1e-9)
    assert alone.tolist() != kept.tolist()  # or this case would show nothing


def test_the_curve_is_the_summed_cost():
    moments, consumers = readers()
    curve = elimination_curve(moments, consumers, ridge=1e-9)
    kept = torch.arange(8)
    for gone in range(1, 4):
        kept = eliminate(moments, consumers, 8 - gone, rounds=64, ridge=1e-9)
        assert abs(float(curve[gone]) - cost(moments, consumers, kept)) < 1e-6


def test_classes_go_whole_by_their_summed_cost():
    moments, consumers = readers()
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    kept = eliminate(moments, consumers, 6, ridge=1e-9, classes=labels)
    pairs = [torch.tensor([c for c in range(8) if c // 2 != gone]) for gone in range(4)]
    assert kept.tolist() == min(pairs, key=lambda some: cost(moments, consumers, some)).tolist()
    curve = elimination_curve(moments, consumers, ridge=1e-9, classes=labels)
    assert len(curve) == 4
    assert abs(float(curve[1]) - min(cost(moments, consumers, some) for some in pairs)) < 1e-6


def test_as_many_consumers_as_moments():
    moments, consumers = readers()
    with pytest.raises(ValueError, match="as many `consumers` as moments, at least one, but got 2 and 3"):
        eliminate(moments, consumers[:2], 4)
    with pytest.raises(ValueError, match="at least one"):
        eliminate([], [], 4)
