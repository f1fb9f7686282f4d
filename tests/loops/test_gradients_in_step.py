"""Steps that differentiate themselves prune as the same steps without their derivatives."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from breadth import some_of
from fitting import Classifier, make_loader, make_trainer, widths
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap
from torch.nn.functional import cross_entropy

from lightning_coreset import CoresetPruningCallback, plan_pruning, prune
from lightning_coreset.structure import Example, analyse
from lightning_coreset.training.metrics import ForwardRecorder
from lightning_coreset.verification import failing_groups, tried_groups


def plain(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(net(x), y)


def gradient_penalty(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.requires_grad_()
    logits = net(x)
    (slope,) = torch.autograd.grad(logits, x, torch.ones_like(logits), create_graph=True)
    return cross_entropy(logits, y) + (slope.norm(dim=1) - 1).square().mean()


def second_derivatives(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.requires_grad_()
    (slope,) = torch.autograd.grad(net(x)[:, 0].sum(), x, create_graph=True)
    curvature = sum(torch.autograd.grad(slope[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2))
    return plain(net, x, y) + curvature.square().mean()


def inner_loop(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    fast = dict(net.named_parameters())
    for _ in range(2):
        loss = cross_entropy(functional_call(net, fast, (x,)), y)
        slopes = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
        fast = {name: value - 0.1 * slope for (name, value), slope in zip(fast.items(), slopes, strict=True)}
    return cross_entropy(functional_call(net, fast, (x,)), y)


def inner_loop_on_copies(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    fast = {name: value.detach().clone().requires_grad_() for name, value in net.named_parameters()}
    loss = cross_entropy(functional_call(net, fast, (x,)), y)
    slopes = torch.autograd.grad(loss, list(fast.values()))
    fast = {name: value - 0.1 * slope for (name, value), slope in zip(fast.items(), slopes, strict=True)}
    return plain(net, x, y) + cross_entropy(functional_call(net, fast, (x,)), y)


def adversarial(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    noise = torch.zeros_like(x, requires_grad=True)
    for _ in range(2):
        plain(net, x + noise, y).backward()
        assert noise.grad is not None
        noise.data = (noise + noise.grad / noise.grad.norm()).clamp(-1, 1)
        noise.grad.zero_()
    net.zero_grad()
    return plain(net, x + noise.detach(), y)


def hooked(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    slopes: list[Tensor] = []
    logits = net(x)
    logits.register_hook(slopes.append)
    logits.retain_grad()
    loss = cross_entropy(logits, y)
    loss.backward(retain_graph=True)
    assert logits.grad is not None
    return loss + slopes[0].square().mean() + logits.grad.square().mean()


def functional_gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return plain(net, x, y) + grad(lambda z: net(z).sum())(x).square().mean()


def functional_products(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    logits, pull_back = vjp(net, x)
    logits_again, tangents = jvp(net, (x,), (torch.ones_like(x),))
    slope = pull_back(torch.ones_like(logits))[0]
    return cross_entropy(logits + logits_again, y) + slope.square().mean() + tangents.square().mean()


def of_each_sample(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    jacobians = vmap(jacrev(net))(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch compiles its own formulas in a deprecated way
        hessians = vmap(hessian(lambda z: net(z).sum()))(x)
    return plain(net, x, y) + jacobians.square().mean() + hessians.square().mean()


def dual_numbers(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with forward_ad.dual_level():
        dual = net(forward_ad.make_dual(x, torch.ones_like(x)))
        logits, tangents = forward_ad.unpack_dual(dual)
        assert str(dual)  # which looks for the tangent
    assert str(logits)
    assert tangents is not None
    return cross_entropy(logits, y) + tangents.square().mean()


def jacobian(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    found: Any = torch.autograd.functional.jacobian(lambda z: net(z).sum(0), x, create_graph=True)
    along: Any = torch.autograd.functional.hvp(lambda z: net(z).sum(), x, torch.ones_like(x), create_graph=True)
    many: Any = torch.autograd.functional.jacobian(lambda z: net(z).sum(0), x, create_graph=True, vectorize=True)
    return plain(net, x, y) + found.square().mean() + along[1].square().mean() + many.square().mean()


AS_ONE_CALL = (
    *(gradient_penalty, second_derivatives, inner_loop, inner_loop_on_copies, adversarial, hooked),
    *(functional_gradient, functional_products, dual_numbers, jacobian),
)
STEPS = (*AS_ONE_CALL, of_each_sample)
Step = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Net(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(4, 12), nn.Softplus(), nn.Linear(12, 8), nn.Softplus(), nn.Linear(8, 3))


def example_of(step: Step) -> Example:
    inputs = (torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3)
    return Example(inputs, lambda net, batch: step(net, batch[0].clone(), batch[1]), 6)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_prunes_as_without(step):
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    expected, found = analyse(net, example_of(plain)), analyse(net, example_of(step))
    names = [group.name for group in expected.groups]
    assert names == ["0", "2"]
    if step in AS_ONE_CALL:  # also what stands between layers, by which the plan is made
        assert found.groups == expected.groups
    assert [(group.name, group.members) for group in found.groups] == [
        (group.name, group.members) for group in expected.groups
    ]
    assert tried_groups(net, found.groups, example_of(step)) == (found.groups, {})
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("step", [gradient_penalty, inner_loop, adversarial], ids=lambda step: step.__name__)
def test_a_wrong_cut_is_found(step):
    net = Net()
    group = analyse(net, example_of(step)).groups[0]
    last = group.members[-1]
    assert last.role == "consumer"
    wrong = replace(group, members=(*group.members[:-1], replace(last, index=(*last.index[1:], last.index[0]))))
    assert failing_groups(net, [wrong], example_of(step)).keys() == {"0"}


def test_a_derivative_of_all_channels_holds_them():
    """The sum over all hidden channels is differentiated: it changes when one goes."""

    def step(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x = x.requires_grad_()
        (slope,) = torch.autograd.grad(net.get_submodule("0")(x).sum(), x, create_graph=True)
        return plain(net, x, y) + slope.square().mean()

    structure = analyse(Net(), example_of(step))
    assert [group.name for group in structure.groups] == ["2"]
    assert "is reduced across channels" in structure.refused["0"]


def test_outputs_that_are_not_finite_prove_nothing():
    net = Net()
    groups = analyse(net, example_of(plain)).groups

    def undefined(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return plain(net, x, y) * torch.log(-x.square().sum())

    reasons = failing_groups(net, groups, example_of(undefined))
    assert set(reasons.values()) == {"no output is a finite number, so that nothing can be compared"}


class ManyTasks(Classifier):
    """Inner loops on half of each of several tasks, which a few samples of the batch leave empty."""

    def training_step(self, batch, batch_idx):
        loss = torch.zeros(())
        for x, y in zip(batch[0].chunk(8), batch[1].chunk(8), strict=True):
            half, slow = len(x) // 2, dict(self.net.named_parameters())
            steps = torch.autograd.grad(
                cross_entropy(self.net(x[:half]), y[:half]), [*slow.values()], create_graph=True
            )
            fast = {name: one - 0.1 * step for (name, one), step in zip(slow.items(), steps, strict=True)}
            loss = loss + cross_entropy(functional_call(self.net, fast, x[half:]), y[half:])
        return loss


@pytest.mark.slow
def test_a_step_that_makes_parts_of_its_batch_gets_the_whole_of_it():
    module = ManyTasks()
    trainer = make_trainer(CoresetPruningCallback(schedule={1: 0.4}, verbose=False), max_epochs=2)
    trainer.fit(module, make_loader(8, batch_size=32))
    assert widths(module)["net.0"][1] < 32


def test_torch_is_left_as_it_was():
    def failing(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        plain(net, x, y).backward()
        raise RuntimeError("broken step")

    functions = forward_ad.make_dual, forward_ad.unpack_dual
    net = Net()
    with pytest.raises(RuntimeError, match="broken step"):
        analyse(net, example_of(failing))
    assert functions == (forward_ad.make_dual, forward_ad.unpack_dual)
    assert all(parameter.grad is None for parameter in net.parameters())
    x = torch.ones(2, requires_grad=True)
    assert torch.equal(torch.autograd.grad(x.square().sum(), x)[0], torch.full((2,), 2.0))


class WithForces(nn.Module):
    """A potential that returns its forces."""

    def __init__(self, by_backward: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Softplus(), nn.Linear(16, 1))
        self.by_backward = by_backward

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        x = x.detach().requires_grad_()
        energy = self.net(x)
        if not self.by_backward:
            return energy, torch.autograd.grad(energy.sum(), x, create_graph=True)[0]
        energy.sum().backward()
        return energy, x.grad


@pytest.mark.parametrize("by_backward", [False, True])
def test_forces_of_a_potential(by_backward):
    model = WithForces(by_backward)
    x = torch.randn(5, 6)
    plan = plan_pruning(model, x, 0.5, certify=True)  # which runs the network to measure its inputs
    assert all(parameter.grad is None for parameter in model.parameters())
    assert plan.groups[0].method == "reconstruction"
    prune(model, x, 0.5)
    assert model.net[0].out_features == 8
    energy, forces = model(x)
    assert energy.shape == (5, 1)
    assert forces is not None
    assert forces.shape == (5, 6)


class Stepping(Classifier):
    """Trains with one of the steps above."""

    def __init__(self, step: Step) -> None:
        super().__init__(
            nn.Sequential(nn.Linear(8, 24), nn.Softplus(), nn.Linear(24, 12), nn.Softplus(), nn.Linear(12, 3))
        )
        self.step = step

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(self.net, batch[0].clone(), batch[1])


@pytest.mark.parametrize("step", some_of([gradient_penalty, inner_loop, of_each_sample], gradient_penalty))
def test_training(step):
    module = Stepping(step)
    callback = CoresetPruningCallback(0.5, schedule={1: 0.5}, verbose=False)
    make_trainer(callback, max_epochs=2).fit(module, make_loader(8))
    assert len(callback.plans) == 1
    assert widths(module)["net.0"][1] < 24
    assert widths(module)["net.2"][1] < 12


def test_calls_in_a_transform_are_not_recorded():
    """Their tensors have no values outside of it, and nobody may look at them later."""
    net = Net()
    x = torch.randn(5, 4)
    with ForwardRecorder(net) as recorder:
        vmap(grad(lambda z: net(z).sum()))(x)
        net(x)
    assert [call.args[0].shape for call in recorder.calls] == [(5, 4)]
