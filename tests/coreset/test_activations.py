"""The table of activations: the functions are PyTorch's, the constants are exact."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_coreset.coreset import find_activation, largest_magnitude, value_range

TABLE = [
    ("", ()),
    ("relu", ()),
    ("relu_", ()),
    ("leaky_relu", ()),
    ("leaky_relu", (0.3,)),
    ("leaky_relu", (2.0,)),
    ("leaky_relu", (-0.5,)),
    ("hardtanh", ()),
    ("hardtanh", (0.0, 6.0)),
    ("hardtanh", (-3.0, -1.0)),
    ("relu6", ()),
    ("clamp", (0,)),
    ("clamp", (None, 6.0)),
    ("clamp_min", (-0.5,)),
    ("clamp_max", (0.5,)),
    ("softshrink", ()),
    ("hardsigmoid", ()),
    ("hardswish", ()),
    ("elu", ()),
    ("elu", (1.6732632423543772, 1.0507009873554805)),
    ("elu", (-0.5,)),
    ("celu", (0.5,)),
    ("selu", ()),
    ("softplus", ()),
    ("softplus", (2.0, 0.5)),
    ("log_sigmoid_forward", ()),
    ("sigmoid", ()),
    ("tanh", ()),
    ("gelu", ()),
    ("gelu", ("tanh",)),
    ("silu", ()),
    ("mish", ()),
]
MODULES = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.LeakyReLU(0.2),
    nn.ReLU6(),
    nn.Hardtanh(-0.3, 0.7),
    nn.Softshrink(),
    nn.Hardsigmoid(),
    nn.Hardswish(),
    nn.ELU(0.5),
    nn.CELU(2.0),
    nn.SELU(),
    nn.Softplus(2.0, 10),
    nn.LogSigmoid(),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.SiLU(),
    nn.Mish(),
]


class _Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.calls.append((func.overloadpacket.__name__, (*args[1:], *kwargs.values())))
        return func(*args, **kwargs)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_an_op_seen_in_dispatch_finds_the_module_it_came_from(module):
    z = torch.linspace(-30, 30, 601, dtype=torch.float64)
    passed = z.clone()
    with _Recorder() as recorder:
        module(passed)
    (call,) = recorder.calls
    activation = find_activation(*call)
    assert activation is not None
    torch.testing.assert_close(activation.function(z), module(z.clone()))


@pytest.mark.parametrize(
    ("op", "args"),
    [("", ()), ("relu", ()), ("mul", ()), ("softplus", (-1.0,)), ("celu", (-1.0,)), ("elu", (1.0, 1.0, -1.0))],
)
def test_unknown_ops_and_arguments_out_of_range_are_none(op, args):
    assert (find_activation(op, args) is not None) == (op in ("", "relu"))


def _grid(radius: float) -> Tensor:
    return torch.linspace(-radius, radius, 20001, dtype=torch.float64)


@pytest.mark.parametrize(("op", "args"), TABLE)
def test_largest_magnitude_is_what_a_fine_grid_finds(op, args):
    activation = find_activation(op, args)
    radii = torch.tensor([0.0, 0.01, 0.5, 0.76, 1.3, 1.5, 3.0, 7.0, 30.0])
    for radius, found in zip(radii, largest_magnitude(activation, radii), strict=True):
        on_grid = activation.function(_grid(float(radius))).abs().max()
        assert on_grid <= found + 1e-12
        torch.testing.assert_close(found, on_grid, rtol=0, atol=4e-3 * activation.lipschitz)


@pytest.mark.parametrize(("op", "args"), TABLE)
def test_value_range_is_what_a_fine_grid_finds(op, args):
    for low, high in [(-9.0, -2.0), (-1.4, -0.2), (-0.76, 0.1), (0.2, 0.9), (-4.0, 25.0)]:
        activation = find_activation(op, args)
        values = activation.function(torch.linspace(low, high, 20001, dtype=torch.float64))
        infimum, supremum = value_range(activation, torch.tensor(low), torch.tensor(high))
        assert infimum <= values.min() + 1e-6  # float32 ends
        assert supremum >= values.max() - 1e-6
        torch.testing.assert_close(
            torch.stack([infimum, supremum]), torch.stack([values.min(), values.max()]), rtol=0, atol=4e-3
        )


def test_the_dip_of_gelu_is_found_where_it_is_the_extreme():
    infimum, _ = value_range(find_activation("gelu"), torch.tensor(-2.0), torch.tensor(-0.1))
    assert float(infimum) == pytest.approx(-0.16997120747990366, abs=1e-15)


@pytest.mark.parametrize(("op", "args"), TABLE)
def test_the_lipschitz_constant_is_the_steepest_slope(op, args):
    activation = find_activation(op, args)
    z = torch.linspace(-20, 9, 290001, dtype=torch.float64)
    slopes = (activation.function(z).diff() / z.diff()).abs()
    if activation.lipschitz == math.inf:  # this softplus steps down by 0.24 at its threshold
        assert slopes.max() > 100
        return
    assert slopes.max() <= activation.lipschitz * (1 + 1e-9)
    assert slopes.max() >= activation.lipschitz * (1 - 1e-3)


@pytest.mark.parametrize(("op", "args"), [(op, args) for op, args in TABLE if find_activation(op, args).linear])
def test_the_pieces_are_the_function(op, args):
    activation = find_activation(op, args)
    z = _grid(9.0)
    pieces = activation.linear.constant + activation.linear.slope * z
    for at, change in activation.linear.kinks:
        pieces = pieces + change * (z - at).clamp(min=0)
    torch.testing.assert_close(pieces, activation.function(z))


@pytest.mark.parametrize(
    ("op", "args", "slopes"),
    [("relu", (), (0.0, 1.0)), ("", (), (1.0, 1.0)), ("leaky_relu", (0.3,), (0.3, 1.0)), ("relu6", (), None)],
)
def test_half_slopes(op, args, slopes):
    assert find_activation(op, args).half_slopes == slopes


@pytest.mark.parametrize("radius", [-1.0, math.nan, math.inf])
def test_impossible_radii_are_refused(radius):
    with pytest.raises(ValueError, match="finite and not negative"):
        largest_magnitude(find_activation("relu"), torch.tensor([radius]))
