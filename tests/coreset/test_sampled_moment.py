"""Moments by samples say what the matrix says: of the precision, of what stays, and of the new weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_coreset._compat import DispatchMode
from lightning_coreset.coreset import SampledMoment, eliminate, elimination_curve, fit_samples, sample_fit
from lightning_coreset.coreset.elimination import regularisation
from lightning_coreset.coreset.elimination_state import Solution, costs_of_classes
from lightning_coreset.coreset.sampled_moment import products_of_rows

N, R = 60, 25


def made(kind: str, seed: int = 0) -> Tensor:
    """Samples (R, N), float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(R, N, generator=generator, dtype=torch.float64)
    if kind == "duplicates":
        x[:, 30:45] = x[:, :15]
    if kind == "dead":
        x[:, 5:20] = 0.0
    if kind == "of all sizes":
        x *= 10 ** torch.linspace(-3, 3, N, dtype=torch.float64)
    if kind == "a large mean":
        x += 100
    if kind == "of low rank":
        x = x[:, :4] @ torch.randn(4, N, generator=generator, dtype=torch.float64)
    return x


KINDS = ["random", "duplicates", "dead", "of all sizes", "a large mean", "of low rank"]


def both(kind: str, *, centred: bool, seed: int = 0) -> tuple[SampledMoment, Tensor]:
    """The moments by samples, and as a matrix."""
    x = made(kind, seed)
    around = x - x.mean(dim=0) if centred else x
    return SampledMoment.of(x, centred=centred), around.T @ around / R


def consumers(count: int = 7) -> Tensor:
    return torch.randn(count, N, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


@pytest.mark.parametrize("ridge", [1e-2, 1e-3, 1e-6])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_precision_is_the_inverse(kind, centred, ridge):
    sampled, moment = both(kind, centred=centred)
    amount = regularisation(sampled, ridge)
    assert amount == pytest.approx(regularisation(moment, ridge), rel=1e-12)
    assert sampled.shape == moment.shape
    assert len(sampled) == N
    inverse = torch.linalg.inv(moment + amount * torch.eye(N, dtype=torch.float64))
    precision = sampled.precision(amount)
    these, most, few = torch.tensor([3, 0, 41]), torch.randperm(N)[:50], torch.tensor([41, 7])
    near = {"rtol": 1e-5, "atol": 1e-6 * float(inverse.diagonal().amin())}
    torch.testing.assert_close(precision.diagonal, inverse.diagonal(), **near)
    for others in (most, few):
        torch.testing.assert_close(precision.block(these, others), inverse[these][:, others], **near)
    members = torch.arange(N).reshape(-1, 3)
    torch.testing.assert_close(precision.blocks(members), inverse[members[:, :, None], members[:, None, :]], **near)
    for count in (7, 40):  # more of them than samples count as fewer with the same products
        weights, found = consumers(count), precision.times(consumers(count))
        expected = weights @ moment @ inverse
        assert len(found) == min(count, R)
        torch.testing.assert_close(found.T @ found, expected.T @ expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_downdates_are_those_of_the_matrix(kind):
    sampled, moment = both(kind, centred=False)
    amount = regularisation(moment, 1e-3)
    one, other = (Solution.of(each, consumers(), amount) for each in (sampled, moment))
    generator = torch.Generator().manual_seed(1)
    for count in (5, 12, 20, 9):
        order = torch.randperm(len(one.alive), generator=generator)
        dropped, kept = order[:count].sort().values, order[count:].sort().values
        one, other = one.without(dropped, kept), other.without(dropped, kept)
        assert torch.equal(one.alive, other.alive)
        some, labels = torch.randperm(len(kept), generator=generator)[:6], torch.arange(len(kept)) // 2
        for found, expected in (
            (one.diagonal, other.diagonal),
            (one.norms(), other.norms()),
            (one.at(some).precision, other.at(some).precision),
            (one.at(some).squares, other.at(some).squares),
            (costs_of_classes(one, labels), costs_of_classes(other, labels)),
        ):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8 * float(expected.abs().amax()))


@pytest.mark.parametrize("size", [50, 31, 4])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("kind", ["random", "dead", "of all sizes", "a large mean"])
def test_the_same_channels_stay(kind, centred, size):
    pairs = [both(kind, centred=centred, seed=seed) for seed in (0, 1)]
    weights = [consumers(), consumers(40)]
    labels = torch.arange(N) // 3
    for options in ({}, {"classes": labels}, {"ridge": 1e-5}):
        sampled, matrices, mixed = ([one for one, _ in pairs], [one for _, one in pairs], [pairs[0][0], pairs[1][1]])
        kept = [eliminate(each, weights, size, **options).tolist() for each in (sampled, matrices, mixed)]
        assert len({len(one) for one in kept}) == 1
        # Which of the channels go that are nothing, and cost nothing, is for rounding to say.
        first, *rest = ([q for q in one if kind != "dead" or not 5 <= q < 20] for one in kept)
        assert rest == [first, first]
    before = sampled[0].samples.clone()
    eliminate(sampled[0], weights[0], size)
    assert torch.equal(sampled[0].samples, before)


def test_the_curve_is_that_of_the_matrix():
    sampled, moment = both("random", centred=True)
    torch.testing.assert_close(elimination_curve(sampled, consumers()), elimination_curve(moment, consumers()))


def test_wide_layers_are_told_in_single_precision(monkeypatch):
    sampled, moment = both("of all sizes", centred=True)
    amount = regularisation(moment, 1e-3)
    monkeypatch.setattr("lightning_coreset.coreset.gaussian_moments._FLOAT64_CHANNELS", N - 1)
    inverse = torch.linalg.inv(moment + amount * torch.eye(N, dtype=torch.float64))
    for samples in (sampled.samples, sampled.samples.float()):
        precision = SampledMoment(samples).precision(amount)
        assert precision.diagonal.dtype == precision.times(consumers()).dtype == torch.float32
        # Of what is as large as this kind's largest channels, 1 - |y|^2 is 1e-6: in single precision nothing of it.
        torch.testing.assert_close(precision.diagonal.double(), inverse.diagonal(), rtol=1e-4, atol=0)


class Largest(DispatchMode):
    """The most numbers in what an operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, Tensor):
            self.numbers = max(self.numbers, found.numel())
        return found


def test_no_matrix_of_all_channels_is_made():
    x = torch.randn(20, 400)
    weights = torch.randn(6, 400)
    with Largest() as largest:
        kept = eliminate(SampledMoment.of(x, centred=True), weights, 320)
        fit_samples(x[:, kept], x @ weights.T, weights[:, kept])
    assert largest.numbers < 400 * 400 // 4


def test_products_of_rows_in_blocks(monkeypatch):
    monkeypatch.setattr("lightning_coreset.coreset.sampled_moment._BLOCK", 7)
    x = torch.randn(25, 9)
    torch.testing.assert_close(products_of_rows(x), x.double() @ x.double().T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 1e-28, 1e25])
@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("kind", ["random", "duplicates", "dead", "of low rank"])
def test_weights_are_those_of_the_equations_of_the_inputs(monkeypatch, kind, intercept, size, dtype):
    x = (made(kind) * size).to(dtype)
    targets = x @ consumers().T.to(dtype) + (3 * size if intercept else 0)
    kept = torch.arange(0, 50)
    start = consumers()[:, kept] + 0.1
    options = {"intercept": intercept, "ridge": 1e-3}
    found = fit_samples(x[:, kept], targets, start, **options)
    monkeypatch.setattr(sample_fit, "_by_samples", sample_fit._by_inputs)
    expected = fit_samples(x[:, kept].double(), targets.double(), start, **options)
    near = {"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-8, "atol": 1e-9}
    torch.testing.assert_close(found.weights, expected.weights, **near)
    torch.testing.assert_close(found.constant / size, expected.constant / size, **near)
    torch.testing.assert_close(found.variance_ratios, expected.variance_ratios, **near)
    if size >= 1:  # the squares of the smallest are no numbers in double precision
        assert found.error / size**2 == pytest.approx(expected.error / size**2, rel=near["rtol"], abs=1e-9)
        assert found.energy == pytest.approx(expected.energy, rel=near["rtol"])
