"""Activations that users add: what is computed with them, and which claims about them are refused."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_coreset.coreset import (
    activation_moments,
    find_activation,
    linear_preactivations,
    register_activation,
    sensitivities,
    value_range,
)

NAME = "house::op"


def relu2(z):
    return torch.relu(z).square()


def dip(z):
    """Falls to -1 at zero and rises again."""
    return z.abs().clamp(max=3) - 1


def test_moments_are_those_of_the_function():
    producers = torch.tensor([[1.0, 0.0, 0.3], [0.6, 0.8, -0.2]], dtype=torch.float64)
    law = linear_preactivations(producers)
    z = torch.randn(2_000_000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sampled = relu2(z @ producers[:, :2].T + producers[:, 2])
    with register_activation(NAME, relu2, turning_points=()):
        moments = activation_moments(find_activation(NAME), law)
    torch.testing.assert_close(moments.mean, sampled.mean(0), rtol=5e-3, atol=0)
    torch.testing.assert_close(moments.second, sampled.T @ sampled / len(sampled), rtol=2e-2, atol=0)


def test_the_range_counts_every_turning_point():
    low, high = torch.tensor([-2.0, 0.5, -5.0]), torch.tensor([1.0, 2.0, -4.0])
    with register_activation(NAME, dip, turning_points=[0.0]):
        found = value_range(find_activation(NAME), low, high)
    expected = torch.tensor([[-1.0, -0.5, 2.0], [1.0, 1.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(found), expected)


def test_nothing_is_said_of_all_inputs_without_turning_points():
    with register_activation(NAME, dip, lipschitz=1.0):
        activation = find_activation(NAME)
    with pytest.raises(ValueError, match="turning points are known but got 'house::op'"):
        value_range(activation, torch.zeros(1), torch.ones(1))
    with pytest.raises(ValueError, match="turning points"):
        sensitivities(torch.ones(2, 3), torch.ones(1, 2, 1), activation)


def test_constants_hold_for_a_call_without_numbers_only():
    with register_activation(
        NAME, lambda z, slope=0.5: torch.where(z > 0, z, slope * z), lipschitz=1, turning_points=()
    ):
        plain, steep = find_activation(NAME), find_activation(NAME, (-4.0,))
    z = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    assert (plain.lipschitz, plain.turning_points, plain.checked) == (1, (), 50)
    assert (steep.lipschitz, steep.turning_points, steep.args) == (math.inf, None, (-4.0,))
    torch.testing.assert_close(plain.function(z), torch.tensor([-0.5, 2.0], dtype=torch.float64))
    torch.testing.assert_close(steep.function(z), torch.tensor([4.0, 2.0], dtype=torch.float64))


def test_a_registration_ends_when_it_is_removed():
    registration = register_activation(NAME, torch.tanh)
    assert find_activation(NAME) is not None
    registration.remove()
    registration.remove()
    assert find_activation(NAME) is None


def test_a_name_like_one_of_ours_is_another_operator():
    with register_activation("house::relu", relu2):
        assert find_activation("relu").function is torch.relu
        assert find_activation("house::relu").function is relu2
    assert find_activation("house::relu") is None
    assert find_activation("house::relu_") is None


@pytest.mark.parametrize(
    ("name", "function", "claims", "message"),
    [
        ("relu", relu2, {}, "'namespace::name', not of aten, but got 'relu'"),
        ("aten::relu", relu2, {}, "'namespace::name', not of aten, but got 'aten::relu'"),
        (NAME, relu2, {"lipschitz": 0.0}, "lipschitz constant of house::op to be positive but got 0.0"),
        (NAME, relu2, {"lipschitz": math.nan}, "to be positive but got nan"),
        (NAME, relu2, {"lipschitz": 10.0}, "slopes .* at most lipschitz=10 but near .* one is"),
        (NAME, torch.sin, {"lipschitz": 0.9}, "at most lipschitz=0.9"),
        (NAME, dip, {"turning_points": ()}, r"monotone between -inf and inf but it turns near -?0\.?"),
        (NAME, torch.sin, {"turning_points": [math.pi / 2]}, "monotone between .* it turns near"),
        (NAME, dip, {"turning_points": [0.0, -1.0]}, r"to ascend but got \[0.0, -1.0\]"),
        (NAME, dip, {"turning_points": [60.0]}, "monotone between -inf and 60 but it turns"),
        (
            NAME,
            lambda z: 0.001 * z.floor(),
            {"lipschitz": 1.0, "turning_points": ()},
            "slopes .* at most lipschitz=1 but",
        ),
        (NAME, lambda z: torch.where(z.abs() < 1, z, 0 * z), {"turning_points": [-1, 1]}, "continuous but it jumps by"),
        (NAME, lambda z: z.relu_().mul_(10), {"lipschitz": 1.0}, "at most lipschitz=1 but near"),
        (NAME, torch.exp, {"lipschitz": 1.0}, "slopes"),
        (NAME, torch.log, {}, "finite between -50 and 50"),
        (NAME, lambda z: z - z.mean(), {}, "elementwise"),
        (NAME, lambda z: z.cumsum(-1), {}, "elementwise"),
        (NAME, lambda z: z.float(), {}, "map a float64 tensor to one of its shape"),
        (NAME, torch.sum, {}, "map a float64 tensor to one of its shape"),
    ],
)
def test_claims_that_are_not_true_are_refused(name, function, claims, message):
    with pytest.raises(ValueError, match=message):
        register_activation(name, function, **claims)
    assert find_activation(NAME) is None


def test_a_name_is_registered_once():
    with register_activation(NAME, torch.tanh):
        with pytest.raises(ValueError, match="not registered yet but house::op is"):
            register_activation(NAME, relu2)
        with register_activation(NAME, relu2, override=True):
            assert find_activation(NAME).function is relu2
        assert find_activation(NAME).function is torch.tanh


def test_a_function_without_numbers_is_unknown_where_the_operator_has_them():
    with register_activation(NAME, torch.tanh):
        assert find_activation(NAME, (2.0,)) is None
