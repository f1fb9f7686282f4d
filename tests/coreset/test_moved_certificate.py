"""Bounds where rows move: never below the exact supremum, and nearer to it than those of rows side by side."""

from itertools import product

import pytest
import torch
from breadth import crossed
from suprema import exact_supremum, tiny
from torch import Tensor

from lightning_coreset.coreset import certify, certify_moved, find_activation, largest_found_error, slope_range

Moves = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, float]


def moves(seed: int, length: float = 0.3) -> Moves:
    """Old and new weights, old and moved rows, the channels that stay, and a radius; some move, some do not."""
    before, producers, radius = tiny(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    kept = torch.randperm(len(producers), generator=generator)[: 1 + len(producers) // 2].sort().values
    after = before[:, kept] * (0.7 + 0.6 * torch.rand(len(before), len(kept), generator=generator, dtype=torch.float64))
    shift = length * torch.randn(len(kept), 3, generator=generator, dtype=torch.float64)
    shift[torch.rand(len(kept), generator=generator) < 0.2] = 0
    return before, after, producers, producers[kept] + shift, kept, radius


def side_by_side(before: Tensor, after: Tensor, producers: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([before, -after], dim=1), torch.cat([producers, moved])


@pytest.mark.parametrize(("slope", "part"), crossed([0.0, 0.2, -0.5, 1.5], range(10)))
def test_never_below_the_exact_supremum(slope, part):
    activation = find_activation("leaky_relu", (slope,))
    for seed in range(8 * part, 8 * part + 8):
        *given, kept, radius = moves(seed)
        change, rows = side_by_side(*given)
        # Where a row stays it lies there twice; the enumeration needs lines that meet in points.
        exact = exact_supremum(change, rows * (1 + 1e-9 * torch.arange(len(rows))[:, None]), slope, radius)
        certificate = certify_moved(*given, kept, activation, input_radius=radius)
        for bound in (certificate.sharp, certificate.triangle, certificate.spectral, certificate.bound):
            assert bool((bound >= exact * (1 - 1e-6)).all())


def test_nearer_to_the_truth_than_rows_side_by_side_where_little_moves():
    relu, apart, together = find_activation("relu"), [], []
    for seed in range(8):
        *given, kept, radius = moves(seed, length=0.05)
        change, rows = side_by_side(*given)
        exact = exact_supremum(change, rows * (1 + 1e-9 * torch.arange(len(rows))[:, None]), 0.0, radius)
        apart += (certify(change, rows, relu, input_radius=radius).bound / exact).tolist()
        together += (certify_moved(*given, kept, relu, input_radius=radius).bound / exact).tolist()
    assert sum(together) < 0.9 * sum(apart)
    assert max(together) < 2


def test_where_rows_move_far_no_worse_than_side_by_side():
    relu = find_activation("relu")
    for seed, length in product(range(6), (1.0, 2.0)):
        *given, kept, radius = moves(seed, length)
        change, rows = side_by_side(*given)
        apart = certify(change, rows, relu, input_radius=radius).bound
        found = certify_moved(*given, kept, relu, input_radius=radius).bound
        assert bool((found <= apart * (1 + 1e-9)).all())


@pytest.mark.parametrize("op", ["relu", "gelu", "tanh", "sigmoid", "hardswish", "relu6", "elu", "softplus"])
def test_other_activations_hold_under_the_attack(op):
    activation, generator = find_activation(op), torch.Generator().manual_seed(0)
    for length in (0.01, 0.3, 3.0):
        *given, kept, radius = moves(4, length)
        certificate = certify_moved(*given, kept, activation, input_radius=radius)
        change, rows = side_by_side(*given)
        found = largest_found_error(change, rows, activation, input_radius=radius, generator=generator, starts=64)
        assert bool((found <= certificate.bound * (1 + 1e-12)).all())
        assert bool((found <= certificate.sharp * (1 + 1e-12)).all())


def test_rows_that_stay_give_what_certify_gives():
    before, after, producers, _, kept, radius = moves(5)
    relu = find_activation("relu")
    still = certify_moved(before, after, producers, producers[kept], kept, relu, input_radius=radius)
    as_usual = certify(before.index_add(1, kept, -after), producers, relu, input_radius=radius)
    torch.testing.assert_close(still.triangle, as_usual.triangle)
    torch.testing.assert_close(still.spectral, as_usual.spectral)
    torch.testing.assert_close(still.sharp, as_usual.sharp, rtol=0.05, atol=0)


def test_nothing_that_changes_is_no_error():
    before, _, producers, _, _, radius = moves(6)
    everything = torch.arange(len(producers))
    found = certify_moved(
        before, before, producers, producers, everything, find_activation("relu"), input_radius=radius
    )
    assert bool((found.bound <= 1e-12).all())


def test_a_move_alone_errs_by_slope_times_move():
    """Of one channel with weight 2 and a move of its row by (0, 0.1): 2 * 0.1 * radius times the steepest slope."""
    weight, kept = torch.tensor([[2.0]]), torch.tensor([0])
    for op, bias, slope in (("relu", 5.0, 1.0), ("sigmoid", 0.0, 0.25)):
        rows, moved = torch.tensor([[1.0, 0.0, bias]]), torch.tensor([[1.0, 0.1, bias]])
        found = certify_moved(weight, weight, rows, moved, kept, find_activation(op), input_radius=3.0)
        torch.testing.assert_close(found.bound, torch.tensor([2 * 0.1 * 3 * slope]).double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_ill_scaled_weights(scale):
    for seed in range(4):
        before, after, producers, moved, kept, radius = moves(seed)
        generator = torch.Generator().manual_seed(seed)
        powers = scale ** torch.rand(len(producers), 1, generator=generator, dtype=torch.float64)
        given = before, after, producers * powers, moved * powers[kept]
        change, rows = side_by_side(*given)
        exact = exact_supremum(change, rows * (1 + 1e-9 * torch.arange(len(rows))[:, None]), 0.0, radius)
        found = certify_moved(*given, kept, find_activation("relu"), input_radius=radius)
        assert bool((found.sharp >= exact * (1 - 1e-6)).all())


def test_shapes_that_do_not_fit_are_refused():
    before, after, producers, moved, kept, radius = moves(0)
    with pytest.raises(ValueError, match="one index in `kept` for every row of `moved`"):
        certify_moved(before, after, producers, moved, kept[:-1], find_activation("relu"), input_radius=radius)


@pytest.mark.parametrize(
    ("op", "low", "high", "expected"),
    [
        ("relu", -1, 1, (0, 1)),
        ("relu", 0.5, 1, (1, 1)),
        ("relu", -9, -1, (0, 0)),
        ("hardtanh", -5, 5, (0, 1)),
        ("", -1, 1, (1, 1)),
    ],
)
def test_slopes_of_activations(op, low, high, expected):
    ends = torch.tensor([low, high]).double()
    assert tuple(map(float, slope_range(find_activation(op), *ends))) == pytest.approx(expected)


@pytest.mark.parametrize(
    "op", ["relu", "gelu", "silu", "tanh", "sigmoid", "hardswish", "elu", "leaky_relu", "softplus"]
)
def test_no_slope_leaves_its_range(op):
    activation = find_activation(op)
    for low, high in ((-9, 9), (-2, 0.5), (1, 4), (-6, -3)):
        least, most = slope_range(activation, *torch.tensor([low, high]).double())
        z = torch.linspace(low, high, 100001, dtype=torch.float64)
        slopes = torch.diff(activation.function(z)) / torch.diff(z)
        assert float(least) <= float(slopes.min()) + 1e-6
        assert float(slopes.max()) <= float(most) + 1e-6


def test_a_channel_that_is_always_on_is_no_kink():
    """What a linear channel changes by moving is bounded exactly."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    rows[:, -1] = 50
    moved = rows + 0.1 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    weight, kept = torch.randn(3, 6, generator=generator, dtype=torch.float64), torch.arange(6)
    shift = weight @ (rows - moved)
    exact = 2.0 * shift[:, :-1].norm(dim=1) + shift[:, -1].abs()
    found = certify_moved(weight, weight, rows, moved, kept, find_activation("relu"), input_radius=2.0, steps=300)
    torch.testing.assert_close(found.sharp, exact, rtol=1e-2, atol=0)
    assert bool((found.sharp >= exact * (1 - 1e-12)).all())
