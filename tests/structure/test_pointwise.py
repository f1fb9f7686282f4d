"""Chains of element-wise operations: recognised where they are a function of each element, and only there."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_coreset import plan_pruning, prune
from lightning_coreset.coreset import Activation, written_out_activation
from lightning_coreset.layers import GroupView, NoCoresetForm
from lightning_coreset.layers.pairing import layer_pairs
from lightning_coreset.methods import Reconstruction
from lightning_coreset.structure import StepKind, analyse
from lightning_coreset.surgery import named_tensors


class Between(nn.Module):
    """A function between two layers; with another layer of the same input if it takes two arguments."""

    def __init__(self, function, arguments: int = 1) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.layers = nn.ModuleList(nn.Linear(6, 16) for _ in range(arguments))
            self.b = nn.Linear(16, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(*(layer(x) for layer in self.layers)))


def paths(function, arguments: int = 1):
    return [path for group in analyse(Between(function, arguments), X).groups for path in group.paths]


def swapped_twice(z):
    return (z.transpose(0, 1).sigmoid() * z.transpose(0, 1)).transpose(0, 1)


FORMS = {
    "gpt2": (
        lambda z: 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * torch.pow(z, 3.0)))),
        lambda z: functional.gelu(z, approximate="tanh"),
    ),
    "erf": (lambda z: z * 0.5 * (1 + torch.erf(z / math.sqrt(2))), functional.gelu),
    "swish": (lambda z: z * z.sigmoid(), functional.silu),
    "swish in a view": (lambda z: (z.flatten(0, 1).sigmoid() * z.flatten(0, 1)).unflatten(0, (2, 5)), functional.silu),
    "swish swapped": (swapped_twice, functional.silu),
    "mish": (lambda z: z * torch.tanh(functional.softplus(z)), functional.mish),
    "hardswish": (lambda z: z * functional.relu6(z + 3) / 6, functional.hardswish),
    "relu": (lambda z: torch.where(z > 0, z, torch.zeros_like(z)), torch.relu),
    "masked relu": (lambda z: z * (z > 0).float(), torch.relu),
    "leaky": (lambda z: torch.maximum(z, 0.1 * z), lambda z: functional.leaky_relu(z, 0.1)),
    "elu": (lambda z: torch.where(z > 0, z, torch.exp(z) - 1), functional.elu),
}  # fmt: skip
X = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", FORMS)
def test_what_is_written_out_is_pruned_as_what_torch_has(name):
    states = []
    for form in FORMS[name]:
        model = Between(form)
        plan = prune(model, X, 0.5, method=Reconstruction(moments="closed_form"))
        assert [group.method for group in plan.groups] == ["reconstruction"]
        states.append(model.state_dict())
    torch.testing.assert_close(*states, rtol=1e-6, atol=1e-6)


def by_root_of_a_tensor(z):
    return 0.5 * z * (1 + torch.tanh(torch.sqrt(torch.tensor(2 / math.pi)) * (z + 0.044715 * z**3)))


def in_place(z):
    gate = (z * 1.702).sigmoid_()
    return gate.mul_(z)


@pytest.mark.parametrize(
    "function",
    [
        by_root_of_a_tensor,
        in_place,
        lambda z: z * torch.sigmoid(1.702 * z),
        lambda z: torch.relu(z) ** 2,
        lambda z: torch.relu(z).mul_(0.5),
        lambda z: (z.double() * 2).tanh().float(),
        lambda z: z.addcmul(z, z.exp(), value=-0.1),
        lambda z: z.detach().clone() * z.cos(),
    ],
)
def test_the_step_computes_what_the_network_does(function):
    (path,) = paths(function)
    (step,) = path.steps
    assert step.op == StepKind.WRITTEN_OUT
    z = torch.linspace(-4, 4, 160).reshape(10, 16)
    torch.testing.assert_close(step.expression(z.double()).float(), function(z.clone()), rtol=1e-5, atol=1e-6)
    assert isinstance(written_out_activation(step.expression), Activation)


def written_through_a_view(z):
    y = z * 1.0
    y[..., ::2].mul_(2)
    return y * z


def written_past_the_dispatcher(z):
    gate = z.sigmoid()
    z.data.mul_(2)
    return z * gate


def written_between(z):
    gate = z.sigmoid()
    flat = z.view(-1, 16)
    flat.add_(1.0)
    return z * gate


NOT_OF_ONE_ELEMENT = {
    "softmax": lambda z: z * z.softmax(1),
    "sums": lambda z: z * z.cumsum(1),
    "rolled": lambda z: z * z.roll(1, 1),
    "flipped": lambda z: z * z.flip(-1),
    "swapped": lambda z: z * z[:, :2].transpose(0, 1).repeat(1, 3, 1)[:, :5],
    "mean of channels": lambda z: z * z.mean(-1, keepdim=True),
    "mean of positions": lambda z: z * z.mean(1, keepdim=True),
    "mean of all": lambda z: z * z.mean(),
    "largest": lambda z: z - z.amax(1, keepdim=True),
    "read number": lambda z: torch.relu(z * z.mean().item()),
    "read list": lambda z: torch.relu(z * z[0, 0].tolist()[0]),
    "read by numpy": lambda z: torch.relu(z * float(z.detach().numpy().mean())),
    "read into a tensor": lambda z: torch.relu(z * torch.tensor(z.mean().item())),
    "copied into a tensor": lambda z: torch.relu(z * z.mean().detach().clone()),
    "layer norm": lambda z: functional.layer_norm(z, (16,)).sigmoid() * z,
    "noise": lambda z: z * torch.rand_like(z),
    "drawn": lambda z: z * torch.bernoulli(z.sigmoid()),
    "random slopes": lambda z: functional.rrelu(z, training=True) * 2,
    "through a view": written_through_a_view,
    "past the dispatcher": written_past_the_dispatcher,
    "between": written_between,
    "halves": lambda z: torch.cat([z[..., :8] * z[..., 8:].sigmoid(), z[..., 8:]], -1),
    "positions apart": lambda z: z[:, :1].sigmoid() * z,
    "network's input": lambda z: z * X.mean(),
}


@pytest.mark.parametrize("name", NOT_OF_ONE_ELEMENT)
def test_what_depends_on_more_than_an_element_has_no_form(name):
    model = Between(NOT_OF_ONE_ELEMENT[name])
    for group in analyse(model, X).groups:
        with pytest.raises(NoCoresetForm):
            layer_pairs(GroupView(group, named_tensors(model)))
    assert all(step.op != StepKind.WRITTEN_OUT for path in paths(NOT_OF_ONE_ELEMENT[name]) for step in path.steps[-1:])


@pytest.mark.parametrize("function", [lambda z, g: z * g.sigmoid(), lambda z, g: torch.relu(z + g) * z])
def test_the_gate_of_another_layer_is_another_origin(function):
    found = paths(function, 2)
    assert found
    assert all(step.op != StepKind.WRITTEN_OUT for path in found for step in path.steps)


@pytest.mark.filterwarnings("ignore")
def test_a_number_of_the_width_is_seen_by_the_self_check():
    """As one of the expression it would be the width from before."""
    with pytest.raises(ValueError, match="no layer has any"):
        plan_pruning(Between(lambda z: torch.relu(z / z.shape[-1])), X, 0.5)


def test_the_sample_of_the_theorem_and_the_certificate_hold_for_a_written_out_activation():
    plan = plan_pruning(
        Between(lambda z: z * torch.sigmoid(1.702 * z)), X, 0.5, method="sensitivity", certify=True, input_radius=2.0
    )
    (group,) = plan.groups
    assert group.method == "sensitivity (distinct)"
    assert 0 < group.found_error <= group.certified_error < math.inf


def test_a_pair_of_batch_norm_and_what_is_written_out():
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), Written(), nn.Conv2d(8, 2, 1)).eval()
    (group,) = analyse(model, torch.randn(1, 2, 6, 6)).groups
    (pair,) = layer_pairs(GroupView(group, named_tensors(model)))
    assert pair.activation.name == "silu"
    assert pair.before is not None


class Written(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.sigmoid()
