"""Activations that are written out: enclosures hold, constants are proven, what is no activation is none."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from lightning_coreset.coreset import (
    activation_moments,
    find_activation,
    linear_preactivations,
    value_range,
    written_out_activation,
)
from lightning_coreset.coreset.enclosure_rules import enclose
from lightning_coreset.coreset.range_proof import prove
from lightning_coreset.expressions import Expression, applied

Z = Expression()


def op(name, *args, **kwargs):
    return applied(name, args, kwargs)


def new_gelu():
    inner = op("mul", op("add", Z, op("mul", op("pow", Z, 3.0), 0.044715)), math.sqrt(2 / math.pi))
    return op("mul", op("mul", Z, 0.5), op("add", op("tanh", inner), 1.0))


QUICK_GELU = op("mul", Z, op("sigmoid", op("mul", Z, 1.702)))
SQUARED_RELU = op("square", op("relu", Z))
HAT = op("relu", op("rsub", op("abs", op("sub", Z, 0.3)), 1.0))
WHERE = op("where", op("gt", Z, 0), Z, op("mul", Z, 0.1))
SIGNED = ["neg", "square", "exp", "expm1", "tanh", "sigmoid", "erf", "erfc", "atan", "asinh", "softplus", "log_sigmoid"]
SIGNED += ["relu", "relu6", "hardtanh", "leaky_relu", "elu", "celu", "selu", "silu", "mish", "gelu", "hardsigmoid"]
SIGNED += ["hardswish", "abs"]
ENCLOSED = {
    **{name: op(name, Z) for name in SIGNED},
    "new gelu": new_gelu(),
    "gelu by tanh": op("gelu", Z, approximate="tanh"),
    "quick gelu": QUICK_GELU,
    "hat": HAT,
    "where": WHERE,
    "cube": op("sub", op("pow", Z, 3), Z),
    "fourth power": op("pow", Z, 4),
    "reciprocal": op("reciprocal", op("add", op("square", Z), 0.5)),
    "softsign": op("div", Z, op("add", op("abs", Z), 1.0)),
    "divided": op("div", op("sub", Z, 1.0, alpha=2), -3.0),
    "logarithm": op("log", op("add", op("exp", Z), 1.0)),
    "log1p": op("log1p", op("square", Z)),
    "root": op("sqrt", op("add", op("square", Z), 1.0)),
    "clamped": op("clamp", op("mul", Z, -2.0), -1.0, 3.0),
    "smaller": op("minimum", op("square", Z), op("add", Z, 1.0)),
    "masked": op("mul", op("lt", Z, 1.0), op("sub", Z, 1.0)),
    "less": op("where", op("le", op("square", Z), 1.0), op("square", Z), 1.0),
}


@pytest.mark.parametrize("name", ENCLOSED)
def test_an_enclosure_holds_all_values_and_slopes(name):
    generator = torch.Generator().manual_seed(0)
    low = 12 * torch.rand(400, generator=generator, dtype=torch.float64) - 6
    width = 10.0 ** (-4 * torch.rand(400, generator=generator, dtype=torch.float64))
    found = enclose(ENCLOSED[name], low, low + width)
    inside = torch.rand(50, 400, generator=generator, dtype=torch.float64)
    z = (low + width * inside).requires_grad_()
    values = ENCLOSED[name](z)
    (slopes,) = torch.autograd.grad(values.sum(), z)
    for lower, upper, truth in ((found.low, found.high, values), (found.least, found.most, slopes)):
        assert bool((truth >= lower - 1e-8 * (1 + lower.abs())).all())  # torch's softplus is rounded at its threshold
        assert bool((truth <= upper + 1e-8 * (1 + upper.abs())).all())


@pytest.mark.parametrize("name", ["new gelu", "quick gelu", "hat", "where", "cube", "softsign", "less"])
def test_constants_are_those_of_the_function(name):
    expression = ENCLOSED[name]
    proof = prove(expression)
    assert proof is not None
    assert proof.checked >= 50
    z = torch.linspace(-50, 50, 200_001, dtype=torch.float64)
    values = expression(z)
    steepest = float((values.diff() / z.diff()).abs().max())
    if name == "cube":
        assert proof.lipschitz == math.inf
    else:
        assert steepest * (1 - 1e-9) <= proof.lipschitz <= steepest * (1 + 1e-3)
    edges = [-50.0, *(at for at, _ in proof.turning_points), 50.0]
    for start, stop in pairwise(edges):
        steps = values[(z >= start) & (z <= stop)].diff()
        assert not (bool((steps > 1e-12).any()) and bool((steps < -1e-12).any()))
    assert [round(at, 3) for at, _ in proof.turning_points] == {
        "new gelu": [-0.752], "quick gelu": [-0.751], "hat": [0.3], "cube": [-0.577, 0.577], "less": [0.0],
    }.get(name, [])  # fmt: skip


@pytest.mark.parametrize(
    ("expression", "name", "args"),
    [
        (new_gelu(), "gelu", ("tanh",)),
        (op("mul", op("mul", Z, 0.5), op("add", op("erf", op("div", Z, math.sqrt(2.0))), 1.0)), "gelu", ()),
        (op("div", Z, op("add", op("exp", op("neg", Z)), 1.0)), "silu", ()),
        (op("mul", Z, op("tanh", op("softplus", Z))), "mish", ()),
        (op("div", op("mul", Z, op("relu6", op("add", Z, 3.0))), 6.0), "hardswish", ()),
        (op("where", op("gt", Z, 0.0), Z, op("expm1", Z)), "elu", ()),
        (op("mul", Z, op("gt", Z, 0)), "relu", ()),
    ],
)
def test_what_the_table_has_bears_its_name(expression, name, args):
    found, known = written_out_activation(expression), find_activation(name, args)
    assert (found.name, found.args, found.linear) == (known.name, known.args, known.linear)
    assert (found.lipschitz, found.turning_points) == (known.lipschitz, known.turning_points)
    assert 100 < found.checked < math.inf


def test_what_is_another_function_far_out_is_not_the_same():
    """Between -50 and 50 it is a ReLU."""
    found = written_out_activation(op("clamp_max", op("relu", Z), 70.0))
    assert (found.name, found.linear) == ("clamp_max(relu(z), 70)", None)
    _, high = value_range(found, torch.tensor([0.0]), torch.tensor([100.0]))
    assert float(high) == 70


def test_pieces_are_found():
    found = written_out_activation(HAT)
    assert found.linear.slope == found.linear.constant == 0
    expected = [(-0.7, 1.0), (0.3, -2.0), (1.3, 1.0)]
    torch.testing.assert_close(torch.tensor(found.linear.kinks).double(), torch.tensor(expected).double())
    assert written_out_activation(WHERE).half_slopes == pytest.approx((0.1, 1.0), abs=1e-14)


@pytest.mark.parametrize("expression", [QUICK_GELU, SQUARED_RELU, HAT], ids=["quick gelu", "squared", "hat"])
def test_moments_are_those_of_samples(expression):
    producers = torch.tensor([[1.0, 0.0, 0.3], [0.6, 0.8, -0.2]], dtype=torch.float64)
    z = torch.randn(2_000_000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sampled = expression(z @ producers[:, :2].T + producers[:, 2])
    moments = activation_moments(written_out_activation(expression), linear_preactivations(producers))
    torch.testing.assert_close(moments.mean, sampled.mean(0), rtol=5e-3, atol=0)
    torch.testing.assert_close(moments.second, sampled.T @ sampled / len(sampled), rtol=2e-2, atol=0)


@pytest.mark.parametrize(
    "expression",
    [op("log", Z), op("reciprocal", Z), op("add", Z, op("gt", Z, 0.0)), op("hardshrink", Z), op("round", Z)],
    ids=str,
)
def test_what_jumps_or_is_not_finite_is_none(expression):
    assert written_out_activation(expression) is None


def test_of_what_has_no_enclosure_nothing_is_said_of_all_inputs():
    found = written_out_activation(op("sin", Z))
    assert (found.turning_points, found.lipschitz) == (None, math.inf)


def test_operations_that_are_the_same_are_there_once():
    square = op("mul", Z, Z)
    twice = op("add", op("exp", square), op("neg", op("mul", Z, Z)))
    assert [one.op for one in twice.operations] == ["mul", "exp", "neg", "add"]
    assert hash(twice) == hash(op("add", op("exp", op("mul", Z, Z)), op("neg", square)))
