"""Lines below and above activations and their differences, on intervals of all sizes."""

import pytest
import torch

from lightning_coreset.agreement.relaxations import curved, difference_lines, lines
from lightning_coreset.coreset import find_activation
from lightning_coreset.coreset.slopes import enclosed_slopes, slope_range

OPS = {
    "relu": (),
    "leaky_relu": (0.2,),
    "hardtanh": (-1.0, 2.0),
    "softshrink": (0.5,),
    "gelu": (),
    "silu": (),
    "tanh": (),
    "sigmoid": (),
    "mish": (),
    "elu": (),
    "softplus": (),
    "hardswish": (),
    "clamp": (None, 0.5),
}
ENDS = [(-1, 3), (-3, 1), (-2, -1), (1, 2), (-1e-9, 1e-9), (0.3, 0.3 + 1e-9), (-5, 1e-3), (0, 0), (-9, 12), (-1e3, 1e4)]


def intervals() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(40, generator=generator, dtype=torch.float64) * 3
    widths = 10 ** (4 * torch.rand(40, generator=generator, dtype=torch.float64) - 3)
    low, high = torch.tensor(ENDS, dtype=torch.float64).T
    return torch.cat([low, centers - widths]), torch.cat([high, centers + widths])


@pytest.mark.parametrize("op", OPS)
def test_lines_are_below_and_above_and_touch(op):
    activation = find_activation(op, OPS[op])
    low, high = intervals()
    found = lines(activation, low, high)
    z = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, 4001, dtype=torch.float64)
    z = torch.minimum(z, high[:, None])
    values = activation.function(z)
    above = found.upper_slope[:, None] * z + found.upper_offset[:, None] - values
    below = values - found.slope[:, None] * z - found.offset[:, None]
    scale = values.abs().amax(1) + (found.slope.abs() + found.upper_slope.abs()) * z.abs().amax(1) + 1e-12
    for room in (above, below):
        assert bool((room.amin(1) >= -1e-15 * scale).all())  # of the test's own rounding
        assert bool((room.amin(1) <= 0.02 * (high - low) + 1e-12 * scale).all())


@pytest.mark.parametrize("op", OPS)
def test_lines_are_near_where_the_activation_is_nearly_linear(op):
    activation = find_activation(op, OPS[op])
    low = torch.linspace(-3, 3, 50, dtype=torch.float64)
    high = low + 0.01
    gap = lines(activation, low, high).gap(low, high)
    smooth = enclosed_slopes(activation, low, high) is not None and op != "hardswish"
    straight = ~curved(activation, low, high) | (activation.linear is None)
    assert bool((gap[straight] < (5e-5 if smooth else 2e-3)).all())
    assert bool((gap < 1e-2).all())


@pytest.mark.parametrize("op", OPS)
def test_slopes_are_enclosed(op):
    activation = find_activation(op, OPS[op])
    low, high = intervals()
    least, most = slope_range(activation, low, high)
    points = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, 2001, dtype=torch.float64)
    wide = high - low > 1e-3
    slopes = (activation.function(points).diff(dim=1) / points.diff(dim=1))[wide]
    assert bool((slopes >= least[wide, None] - 1e-8).all())
    assert bool((slopes <= most[wide, None] + 1e-8).all())


@pytest.mark.parametrize("op", OPS)
def test_differences_lie_between_their_lines(op):
    activation = find_activation(op, OPS[op])
    generator = torch.Generator().manual_seed(1)
    z, d = 3 * torch.randn(2, 20000, generator=generator, dtype=torch.float64)
    difference = activation.function(z) - activation.function(z - d)
    for low, high in ((-1.0, 0.5), (-2.0, -1.0), (0.1, 3.0), (-1e-3, 1e-3), (0.0, 2.0)):
        ends = torch.tensor([low, high], dtype=torch.float64)
        inside = (d >= low) & (d <= high) & (z.abs() < 2) & ((z - d).abs() < 2)
        slopes = slope_range(activation, *torch.tensor([-2.0, 2.0], dtype=torch.float64))
        found = difference_lines(slopes, *ends)
        assert bool((difference <= found.upper_slope * d + found.upper_offset + 1e-15)[inside].all())
        assert bool((difference >= found.slope * d + found.offset - 1e-15)[inside].all())
        extreme = torch.stack([slopes[0] * ends, slopes[1] * ends]).sort(0).values
        torch.testing.assert_close(found.slope * ends + found.offset, extreme[0])
        torch.testing.assert_close(found.upper_slope * ends + found.upper_offset, extreme[1])


def test_nothing_changes_where_neurons_are_equal():
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    found = difference_lines((zero, one), zero, zero)
    assert float(found.offset) == float(found.upper_offset) == 0


def test_lines_of_intervals_of_any_shape():
    low, high = (end[:48].view(2, 3, 8) for end in intervals())
    whole = lines(find_activation("tanh"), low, high)
    part = lines(find_activation("tanh"), low[1, 2], high[1, 2])
    assert whole.slope.shape == low.shape
    assert torch.equal(whole.offset[1, 2], part.offset)
