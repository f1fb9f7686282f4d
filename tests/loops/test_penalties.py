"""Penalties on weights in the step do not hold the channels of these weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from fitting import Classifier, make_loader, make_trainer, widths
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_coreset import CoresetPruningCallback, plan_pruning
from lightning_coreset.structure import Example, StepOutputs, Structure, analyse
from lightning_coreset.verification import failing_groups, tried_groups


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()),
            *(nn.Conv2d(12, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
        )
        for name, parameter in list(self.net.named_parameters()):
            self.register_buffer(f"start_{name.replace('.', '_')}", parameter.detach().clone())
        self.scale = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def weights(self) -> list[Tensor]:
        return [parameter for parameter in self.net.parameters() if parameter.dim() > 1]

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Parameters, each with what it was at the start."""
        named = self.net.named_parameters()
        return [(parameter, self.get_buffer(f"start_{name.replace('.', '_')}")) for name, parameter in named]


Penalty = Callable[[Net], Tensor]


def total(values: list[Tensor]) -> Tensor:
    return torch.stack(values).sum()


def of_each(function: Callable[[Tensor], Tensor]) -> Penalty:
    return lambda net: total([function(parameter) for parameter in net.parameters()])


def of_weights(function: Callable[[Tensor], Tensor]) -> Penalty:
    return lambda net: total([function(weight) for weight in net.weights()])


def noted(net: Net) -> Tensor:
    penalty = of_each(lambda p: p.abs().sum())(net)
    net.scale = penalty.item()
    return penalty


def accumulated(net: Net) -> Tensor:
    penalty = torch.zeros(1)
    for weight in net.weights():
        penalty += weight.abs().sum()
    return penalty.squeeze()


def orthogonality(weight: Tensor) -> Tensor:
    rows = F.normalize(weight.flatten(1), dim=1)
    return (rows @ rows.T - torch.eye(len(rows))).square().sum()


PENALTIES: dict[str, Penalty] = {
    "l1": of_each(lambda p: p.abs().sum()),
    "l1, mean": of_each(lambda p: p.abs().mean()),
    "l1, by number": of_each(lambda p: p.abs().sum() / p.numel()),
    "l1, accumulated": accumulated,
    "l1, as a number too": noted,
    "l2": of_each(lambda p: p.square().sum()),
    "l2, of norms": lambda net: torch.stack([p.norm() for p in net.parameters()]).norm(),
    "l2, of lists": lambda net: total(list(torch._foreach_norm(list(net.parameters())))),
    "l2, of a vector": lambda net: nn.utils.parameters_to_vector(net.net.parameters()).norm(),
    "largest": of_each(lambda p: p.abs().max()),
    "slimming": lambda net: total([m.weight.abs().sum() for m in net.modules() if isinstance(m, nn.BatchNorm2d)]),
    "group lasso": of_weights(lambda w: len(w) ** 0.5 * w.flatten(1).square().sum(1).sqrt().sum()),
    "group lasso, of inputs": of_weights(lambda w: w.transpose(0, 1).flatten(1).norm(dim=1).mean()),
    "exclusive lasso": of_weights(lambda w: w.flatten(1).abs().sum(0).square().sum()),
    "entropy": of_weights(lambda w: -(w.flatten(1).softmax(1) * w.flatten(1).log_softmax(1)).sum()),
    "starting point": lambda net: total([(p - start).square().sum() for p, start in net.pairs()]),
    "starting point, loss": lambda net: total([F.mse_loss(p, start) for p, start in net.pairs()]),
    "orthogonality": of_weights(orthogonality),
    "spectral": of_weights(lambda w: torch.linalg.matrix_norm(w.flatten(1), 2)),
}


def example_of(penalty: Callable[[Net, Tensor], Tensor] | None, factor: float = 1e-2) -> Example:
    inputs = (torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3)

    def step(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = F.cross_entropy(net(batch[0]), batch[1])
        return loss if penalty is None else loss + factor * penalty(net, loss)  # type: ignore[arg-type]

    return Example(inputs, step, 6)


def with_penalty(name: str, factor: float = 1e-2) -> Example:
    return example_of(lambda net, _: PENALTIES[name](net), factor)


@pytest.mark.parametrize("name", PENALTIES)
def test_prunes_as_without(name):
    net = Net()
    expected, found = analyse(net, example_of(None)), analyse(net, with_penalty(name))
    assert [group.name for group in expected.groups] == ["net.0", "net.3"]
    assert [(group.name, group.paths) for group in found.groups] == [
        (group.name, group.paths) for group in expected.groups
    ]
    for group, other in zip(found.groups, expected.groups, strict=True):
        beside = [member for member in group.members if member.name.startswith("start_")]
        assert [member for member in group.members if member not in beside] == list(other.members)
        assert len(beside) == (5 if name.startswith("starting point") else 0)  # lose the same channels
    assert found.macs == expected.macs
    assert tried_groups(net, found.groups, with_penalty(name)) == (found.groups, {})


@pytest.mark.parametrize("name", ["l1", "l2, of a vector", "orthogonality"])
@pytest.mark.parametrize("factor", [1e-4, 1e12])
def test_a_wrong_cut_is_found(name, factor):
    """Also beside a penalty that is larger than everything else by far."""
    net = Net()
    group = analyse(net, with_penalty(name)).groups[0]
    last = group.members[-1]
    assert last.role == "consumer"
    wrong = replace(group, members=(*group.members[:-1], replace(last, index=(*last.index[1:], last.index[0]))))
    assert failing_groups(net, [wrong], with_penalty(name, factor)).keys() == {"net.0"}


class Normed(nn.Module):
    """Divides a weight by a norm of it, and takes the same norm for a penalty."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        norm = self.first.weight.norm()
        return self.second(torch.relu(x @ (self.first.weight / norm).T)), norm


def test_a_norm_by_which_a_weight_is_divided_is_that_of_the_rows_that_stay():
    """So its channels are normalised, and stay by default."""
    (group,) = analyse(Normed(), torch.randn(5, 4)).groups
    assert group.normalized
    plan = plan_pruning(Normed(), torch.randn(5, 4), {"*": 0.5}, include_residual=True)
    assert [one.channels_after for one in plan.groups] == [6]
    with pytest.raises(ValueError, match="is normalised over all its channels"):
        plan_pruning(Normed(), torch.randn(5, 4), 0.5)


def test_a_norm_that_scales_activations_holds_the_weight():
    class Scaled(Normed):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            norm = self.first.weight.norm()
            return self.second(torch.relu(self.first(x)) * norm), norm

    structure = analyse(Scaled(), torch.randn(5, 4))
    assert structure.groups == ()
    assert (
        structure.refused["first"]
        == "is reduced across channels (aten.linalg_vector_norm), and the result enters another computation (aten.mul)"
    )


def test_a_norm_that_is_read_as_a_number_is_compared():
    class Scaled(Normed):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            mean = self.first.weight.abs().mean()
            return self.second(torch.relu(self.first(x)) * mean.item()), mean

    model, inputs = Scaled(), torch.randn(5, 4)
    groups = analyse(model, inputs).groups
    assert failing_groups(model, groups, Example.of(inputs)).keys() == {"first"}


def test_a_mask_that_the_code_writes_to_holds_the_weight():
    class Masked(Normed):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            mask = torch.ones(self.first.weight.shape)
            mask[::2, :2] = 0
            return self.second(torch.relu(x @ (self.first.weight * mask).T))

    assert analyse(Masked(), torch.randn(5, 4)).groups == ()


class Penalised(Classifier):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        penalty = sum((parameter.abs().sum() for parameter in self.parameters()), torch.zeros(()))
        return F.cross_entropy(self(batch[0]), batch[1]) + 1e-3 * penalty


@pytest.mark.parametrize("given", [False, True])
def test_training(given):
    module = Penalised()
    module.example_input_array = torch.zeros(2, 8) if given else None
    callback = CoresetPruningCallback(0.5, schedule={1: 0.5}, verbose=False)
    make_trainer(callback, max_epochs=2).fit(module, make_loader(8))
    assert widths(module)["net.0"][1] < 32
    assert {group.method for group in callback.plans[0].groups} == {"reconstruction (probes)"}


def kl(hidden: Tensor) -> Tensor:
    rate = hidden.sigmoid().mean(0)
    return (0.05 * torch.log(0.05 / rate) + 0.95 * torch.log(0.95 / (1 - rate))).sum()


def entropy(hidden: Tensor) -> Tensor:
    share = hidden.sigmoid()
    return -(share * torch.log(share + 1e-8)).sum(1).mean()


ON_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "l1, mean": lambda h: h.abs().mean(),
    "l1, sum": lambda h: h.abs().sum(),
    "l1, by sample": lambda h: h.abs().sum(1).mean(),
    "l1, by samples": lambda h: h.abs().sum() / len(h),
    "l1, detached too": lambda h: h.abs().mean() / (1 + h.abs().mean().detach()),
    "l2": lambda h: h.pow(2).sum(),
    "l2, mean": lambda h: h.square().mean(),
    "l2, by sample": lambda h: h.pow(2).sum(1).sqrt().mean(),
    "norm": lambda h: h.norm(),
    "norm, by sample": lambda h: h.norm(dim=1).mean(),
    "sparsity": kl,
    "entropy": entropy,
    "variance": lambda h: h.var(0).mean(),
    "variance, of all": lambda h: h.var(),
    "deviation": lambda h: torch.relu(1 - h.std(0)).mean(),
    "of two": lambda h: torch.stack([h.abs().mean(), h.square().mean()]).sum(),
    "ratio": lambda h: h.abs().sum() / h.norm(),
}


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(8, 12), nn.Linear(12, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.first(x).relu()
        return self.last(self.second(hidden).relu()), hidden


Loss = Callable[[Hidden, Tensor, Tensor], Tensor]


def step_of(function: Loss) -> Example:
    generator = torch.Generator().manual_seed(0)

    def step(net: nn.Module, batch: tuple[Tensor, Tensor]) -> StepOutputs:
        return StepOutputs([function(net, *batch)])  # type: ignore[arg-type]

    return Example((torch.randn(9, 8, generator=generator), torch.arange(9) % 3), step, 9)


def penalised(penalty: Callable[[Tensor], Tensor] | None, factor: float = 1e-2) -> Example:
    def loss(net: Hidden, x: Tensor, y: Tensor) -> Tensor:
        logits, hidden = net(x)
        loss = F.cross_entropy(logits, y)
        return loss if penalty is None else loss + factor * penalty(hidden)

    return step_of(loss)


def as_found(found: Structure) -> list[object]:
    return [(group.name, group.paths, group.members, group.normalized) for group in found.groups]


@pytest.mark.parametrize("name", ON_ACTIVATIONS)
def test_prunes_as_without_a_penalty_on_activations(name):
    net = Hidden()
    example = penalised(ON_ACTIVATIONS[name])
    expected, found = analyse(net, penalised(None)), analyse(net, example)
    assert [group.name for group in expected.groups] == ["first", "second"]
    assert as_found(found) == as_found(expected)
    assert found.macs == expected.macs
    assert tried_groups(net, found.groups, example) == (found.groups, {})


@pytest.mark.parametrize("factor", [1e-4, 1e2])
@pytest.mark.parametrize("name", ["l1, mean", "l2", "sparsity"])
def test_a_wrong_cut_is_found_beside_a_penalty_on_activations(name, factor):
    net = Hidden()
    example = penalised(ON_ACTIVATIONS[name], factor)
    group = analyse(net, example).groups[0]
    last = group.members[-1]
    assert last.role == "consumer"
    wrong = replace(group, members=(*group.members[:-1], replace(last, index=(*last.index[1:], last.index[0]))))
    assert failing_groups(net, [wrong], example).keys() == {"first"}


def scaled(net: Hidden, x: Tensor, y: Tensor) -> Tensor:
    hidden = net.first(x).relu()
    second = net.second(hidden).relu() * hidden.mean(1, keepdim=True)
    return F.cross_entropy(net.last(second), y)


def scaled_by_all(net: Hidden, x: Tensor, y: Tensor) -> Tensor:
    hidden = net.first(x).relu()
    return F.cross_entropy(net.last(net.second(hidden).relu()) * hidden.mean(), y)


def into_a_layer(net: Hidden, x: Tensor, y: Tensor) -> Tensor:
    hidden = net.first(x).relu()
    second = net.second(hidden).relu()
    return F.cross_entropy(net.last(second + F.linear(hidden.mean(1, keepdim=True), torch.ones(10, 1))), y)


def a_score(net: Hidden, x: Tensor, y: Tensor) -> Tensor:
    logits, hidden = net(x)
    return F.cross_entropy(logits, y) + (hidden.sum(1) - y).square().mean()


def a_weight_of_losses(net: Hidden, x: Tensor, y: Tensor) -> Tensor:
    logits, hidden = net(x)
    return F.cross_entropy(logits, y) * hidden.mean() + F.cross_entropy(logits, y)


def a_weight_of_all(net: Hidden, x: Tensor, y: Tensor) -> Tensor:
    logits, hidden = net(x)
    return (F.cross_entropy(logits, y) + hidden.mean()) * hidden.mean()


def a_number(net: Hidden, x: Tensor, y: Tensor) -> Tensor:
    hidden = net.first(x).relu()
    logits = net.last(net.second(hidden).relu())
    return F.cross_entropy(logits * hidden.mean().item(), y) + hidden.mean()


def a_number_with_others(net: Hidden, x: Tensor, y: Tensor) -> Tensor:
    logits, hidden = net(x)
    return F.cross_entropy(logits, y) * (logits.sum() + hidden.mean()).item()


def a_weight_of_samples(net: Hidden, x: Tensor, y: Tensor) -> Tensor:
    logits, hidden = net(x)
    return (F.cross_entropy(logits, y, reduction="none") * hidden.mean(1)).mean() + F.cross_entropy(logits, y)


def part_of_a_logit(net: Hidden, x: Tensor, y: Tensor) -> Tensor:
    logits, hidden = net(x)
    return F.softplus(logits[:, 0] + hidden.sum(1)).mean() + F.cross_entropy(logits, y)


def alone(net: Hidden, x: Tensor, y: Tensor) -> Tensor:
    hidden = net.first(x).relu()
    return hidden.pow(2).mean() + net.second(hidden).mean()


FEATURES: list[Loss] = [
    *(
        scaled,
        scaled_by_all,
        into_a_layer,
        a_score,
        a_weight_of_losses,
        a_weight_of_all,
        a_number,
        a_number_with_others,
        a_weight_of_samples,
        part_of_a_logit,
        alone,
    )
]


@pytest.mark.parametrize("loss", FEATURES)
def test_a_mean_that_is_used_otherwise_holds_its_channels(loss):
    structure = analyse(Hidden(), step_of(loss))
    assert "first" not in [group.name for group in structure.groups]
    assert "is reduced across channels (aten." in structure.refused["first"]


def test_what_forward_returns_within_a_step_holds_its_channels():
    def step(net: nn.Module, batch: Tensor) -> StepOutputs:
        logits, hidden = net(batch)
        mean = hidden.mean()
        return StepOutputs([logits.logsumexp(1).mean() + mean], [mean])

    structure = analyse(Hidden(), Example(torch.randn(9, 8), step, 9))
    assert [group.name for group in structure.groups] == ["second"]


def test_a_plain_network_that_returns_such_a_sum_holds_its_channels():
    def run(net: nn.Module, batch: Tensor) -> Tensor:
        logits, hidden = net(batch)
        return logits.logsumexp(1).mean() + hidden.mean()

    structure = analyse(Hidden(), Example(torch.randn(9, 8), run, 9))
    assert [group.name for group in structure.groups] == ["second"]


class Sparse(Classifier):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        hidden = self.net[:2](batch[0])
        loss = F.cross_entropy(self.net[2:](hidden), batch[1])
        penalty = hidden.abs().mean()
        self.log("penalty", penalty)
        loss = loss + 1e-3 * penalty
        self.log("total", loss.item())
        return loss


def test_training_with_a_penalty_on_activations():
    module = Sparse()
    module.example_input_array = None
    callback = CoresetPruningCallback(0.5, schedule={1: 0.5}, verbose=False)
    make_trainer(callback, max_epochs=2).fit(module, make_loader(8))
    assert widths(module)["net.0"][1] < 32
    assert {group.method for group in callback.plans[0].groups} == {"reconstruction (probes)"}
