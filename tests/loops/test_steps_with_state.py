"""Training steps that change more than their loss: every run of the self-check begins alike, and leaves no trace."""

from __future__ import annotations

import copy
import functools
import gc
import random
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchmetrics
from fitting import make_loader, make_trainer, mlp, widths
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_coreset import CoresetPruningCallback, prune
from lightning_coreset.state import duplicate, restored
from lightning_coreset.state.iterators import put_back
from lightning_coreset.structure import Example, analyse
from lightning_coreset.training.metrics import isolated
from lightning_coreset.verification import tried_groups


class Step(nn.Module):
    """A network, and a loss that depends on what the runs before have left."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 12, 8, 3)
        self.begin()

    def begin(self) -> None:
        """Make the state."""

    def term(self, y: Tensor) -> Tensor | float:
        """The part of the loss with the state."""
        return 0.0

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        return y.pow(2).mean() * (1 + self.term(y))


class Counter(Step):
    def begin(self):
        self.count = 0

    def term(self, y):
        self.count += 1
        return self.count / 10


class RunningMean(Step):
    def begin(self):
        self.register_buffer("mean", torch.ones(()))

    def term(self, y):
        self.mean.lerp_(y.detach().abs().mean().to(self.mean), 0.5)
        return self.mean.clone()


class Queue(Step):
    def begin(self):
        self.register_buffer("old", torch.zeros(16, 3))
        self.at = 0

    def term(self, y):
        term = (y @ self.old.T.to(y)).logsumexp(1).mean()
        self.old[self.at : self.at + len(y)] = y.detach()
        self.at = (self.at + len(y)) % 16
        return term


class Growing(Step):
    def begin(self):
        self.register_buffer("old", torch.zeros(0, 3))

    def term(self, y):
        self.old = torch.cat([self.old.to(y), y.detach()])
        return self.old.sum() / 10


class Resized(Step):
    def begin(self):
        self.register_buffer("scale", torch.ones(0))

    def term(self, y):
        self.scale.resize_(len(self.scale) + 2).fill_(len(self.scale))
        return self.scale.sum()


class Registered(Step):
    def begin(self):
        self.runs = 0
        self.register_buffer("first", torch.ones(2))

    def term(self, y):
        if hasattr(self, "first"):
            del self.first
        else:
            self.runs += 1
        self.register_buffer(f"seen{self.runs}", torch.ones(3))
        return len(list(self.buffers()))


class Lazily(Step):
    def begin(self):
        self.table = None

    def term(self, y):
        if self.table is None:
            self.table = y.detach().mean(0)
        return self.table.sum()


class TorchGenerator(Step):
    def begin(self):
        self.generator = torch.Generator().manual_seed(1)

    def term(self, y):
        return torch.rand((), generator=self.generator)


class PythonGenerator(Step):
    def begin(self):
        self.random = random.Random(1)

    def term(self, y):
        return self.random.random()


class NumpyGenerators(Step):
    def begin(self):
        self.old, self.new = np.random.RandomState(1), np.random.default_rng(1)

    def term(self, y):
        return float(self.old.rand() + self.new.random())


class Annealer:
    def __init__(self) -> None:
        self.value, self.history = 1.0, []

    def __call__(self) -> float:
        self.value *= 0.5
        self.history.append(self.value)
        return self.value + len(self.history)


class Slots:
    __slots__ = ("at", "items")

    def __init__(self) -> None:
        self.at, self.items = 0, [0.0]


class AnObject(Step):
    def begin(self):
        self.annealer = Annealer()

    def term(self, y):
        return self.annealer()


class Slotted(Step):
    def begin(self):
        self.slots = Slots()

    def term(self, y):
        self.slots.at += 1
        self.slots.items.append(float(self.slots.at))
        return sum(self.slots.items) + self.slots.at


class Containers(Step):
    def begin(self):
        self.window, self.seen, self.sums = deque([torch.zeros(())], maxlen=3), {0}, {"a": [torch.zeros(())]}

    def term(self, y):
        self.window.append(self.window[-1] + 1)
        self.seen.add(len(self.seen))
        self.sums["a"][0] += 1
        return sum(self.window) + len(self.seen) + self.sums["a"][0]


class Array(Step):
    def begin(self):
        self.array = np.zeros(3)

    def term(self, y):
        self.array += 1
        return float(self.array.sum())


class Iterators(Step):
    def begin(self):
        self.generator = (number / 10 for number in range(1000))
        self.others = {"list": iter([number / 10 for number in range(1000)])}

    def term(self, y):
        return next(self.generator) + next(self.others["list"])


class Metric(Step):
    def begin(self):
        self.metric = torchmetrics.MeanMetric()

    def term(self, y):
        return self.metric(y.detach().mean()) + self.metric.compute()


class Momentum(Step):
    """Writes into a parameter, as a momentum encoder does."""

    def begin(self):
        self.slow = nn.Linear(6, 3, bias=False).requires_grad_(False)

    def term(self, y):
        self.slow.weight.data.mul_(0.5)
        torch._foreach_add_([self.slow.weight.detach()], 0.1)
        return self.slow.weight.sum()


class OtherData(Step):
    def begin(self):
        self.slow = nn.Linear(6, 3, bias=False).requires_grad_(False)

    def term(self, y):
        self.slow.weight.data = self.slow.weight.data + 0.1
        return self.slow.weight.sum()


class AddsModules(Step):
    def term(self, y):
        self.add_module(f"extra{len(list(self.children()))}", nn.Identity())
        return len(list(self.children()))


def of_the_class() -> nn.Module:
    class OfTheClass(Step):
        count = 0
        log: list[int] = []  # noqa: RUF012

        def term(self, y):
            type(self).count += 1
            self.log.append(1)
            return self.count + len(self.log)

    return OfTheClass()


def in_a_closure() -> nn.Module:
    count, log = 0, []

    class InAClosure(Step):
        def term(self, y):
            nonlocal count
            count += 1
            log.append(count)
            return count + len(log)

    return InAClosure()


def in_a_default() -> nn.Module:
    class InADefault(Step):
        def term(self, y, log=[0.0]):  # noqa: B006
            log.append(1.0)
            return len(log)

    return InADefault()


def in_a_partial() -> nn.Module:
    def count(log: list[int], y: Tensor) -> float:
        log.append(1)
        return len(log)

    result = Step()
    result.term = functools.partial(count, [])
    return result


KINDS: dict[str, Callable[[], nn.Module]] = {
    kind.__name__: kind
    for kind in (
        *(Counter, RunningMean, Queue, Growing, Resized, Registered, Lazily, TorchGenerator, PythonGenerator),
        *(NumpyGenerators, AnObject, Slotted, Containers, Array, Iterators, Metric, Momentum, OtherData, AddsModules),
        *(of_the_class, in_a_closure, in_a_default, in_a_partial),
    )
}
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return KINDS[kind]()


def losses(model: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return [torch.as_tensor(model(scale * X)) for scale in (1.0, 1.1, 1.2)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_run_begins_alike_and_leaves_no_trace(kind):
    model = made(kind)
    expected = losses(model)
    with torch.no_grad():
        assert model(2 * X) != made(kind)(2 * X)  # or there is nothing to put back
    model = made(kind)
    names = list(model.state_dict())
    groups = analyse(model, X).groups
    assert [group.name for group in groups] == ["net.0", "net.2"]
    assert tried_groups(model, groups, Example.of(X))[1] == {}
    assert list(model.state_dict()) == names
    assert losses(model) == expected


class Annealed(pl.LightningModule):
    """The weight of a term grows with a counter; a momentum copy of the head and a running loss go along."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 32, 24, 3)
        self.annealer = Annealer()
        self.register_buffer("mean", torch.ones(()))
        self.values: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        y = self.net(batch[0])
        loss = nn.functional.cross_entropy(y, batch[1]) + self.annealer() * y.pow(2).mean()
        self.mean.lerp_(loss.detach(), 0.1)
        self.values.append(self.annealer.value)
        return loss / self.mean.clone()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def test_a_run_is_pruned_and_its_own_state_goes_on_as_it_would():
    model = Annealed()
    make_trainer(CoresetPruningCallback(0.4, start=1, end=2), max_epochs=3).fit(model, make_loader(8))
    assert widths(model)["net.0"][1] < 32
    assert model.values == [0.5**step for step in range(1, 13)]  # each step once


def test_recalibration_does_not_step_a_momentum_copy():
    class Slow(Annealed):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.slow = nn.BatchNorm1d(8), nn.Parameter(torch.zeros(1), requires_grad=False)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.slow.data.add_(1)
            return super().training_step((self.norm(batch[0]), batch[1]), batch_idx)

    model = Slow()
    make_trainer(CoresetPruningCallback(0.4, start=1, recalibrate_batches=2), max_epochs=2).fit(model, make_loader(8))
    assert model.slow.item() == 8


STATE = {"calls": 0}


def test_state_that_nobody_sees_is_named_as_the_reason():
    class Global(Step):
        def term(self, y):
            STATE["calls"] += 1
            return STATE["calls"]

    model = Global()
    groups = analyse(model, X).groups
    failures = tried_groups(model, groups, Example.of(X))[1]
    assert failures.keys() == {"net.0", "net.2"}
    assert all(reason.startswith("its outputs are others in every run (relative error") for reason in failures.values())


def test_a_step_with_state_does_not_hide_a_width_in_the_code():
    class Literal(Counter):
        def forward(self, x):
            y = self.net[:2](x).view(-1, 12)
            return self.net[2:](y).pow(2).mean() * self.term(y)

    model = Literal()
    failures = tried_groups(model, analyse(model, X).groups, Example.of(X))[1]
    assert failures.keys() == {"net.0"}
    assert "does not run" in failures["net.0"]


@pytest.mark.parametrize("kind", ["Queue", "Momentum"])
def test_what_a_step_writes_differs_with_channels_that_leak(kind):
    """A state that depends on removed channels is a leak within one run."""
    model = made(kind)
    model.memory = model.register_buffer("memory", torch.zeros(12))

    def forward(module: Any, x: Tensor) -> Tensor:
        hidden = module.net[0](x)
        module.memory.add_(hidden.detach().mean(0).to(module.memory))
        return module(x) + module.memory.mean()

    example = Example(X, run=forward)
    groups = [group for group in analyse(model, X).groups if group.name == "net.0"]
    assert tried_groups(model, groups, example)[1].keys() == {"net.0"}


class Carried(pl.LightningModule):
    """Its step reads what the last one has left, and then leaves something for the next one."""

    def __init__(self, kind: str, of: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 3)
        self.register_buffer("buffer", torch.ones(()))
        self.tensor, self.number, self.values, self.annealer = torch.ones(()), 1.0, deque([1.0], 1), Annealer()
        (self.read, self.write), self.of = CARRIED[kind], of

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        hidden = torch.relu(self.a(batch[0]))
        y = self.b(hidden)
        loss = nn.functional.cross_entropy(y / self.read(self), batch[1])
        self.write(self, self.of(hidden.detach(), y.detach()))
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.01)


def by_tensor(net: Carried, value: Tensor) -> None:
    net.tensor = 0.5 * net.tensor + value


def by_buffer(net: Carried, value: Tensor) -> None:
    net.buffer.mul_(0.5).add_(value)


def by_number(net: Carried, value: Tensor) -> None:
    net.number = 0.5 * net.number + float(value)


def by_values(net: Carried, value: Tensor) -> None:
    net.values.append(value)


def by_object(net: Carried, value: Tensor) -> None:
    net.annealer.value = value


CARRIED: dict[str, tuple[Callable[[Carried], Any], Callable[[Carried, Tensor], None]]] = {
    "tensor": (lambda net: net.tensor, by_tensor),
    "buffer": (lambda net: net.buffer.clone(), by_buffer),
    "number": (lambda net: net.number, by_number),
    "values": (lambda net: net.values[0], by_values),
    "object": (lambda net: net.annealer.value, by_object),
}


def fit(model: pl.LightningModule) -> None:
    make_trainer(CoresetPruningCallback(0.4, start=1, end=2, verbose=False), max_epochs=3).fit(model, make_loader(8))


@pytest.mark.parametrize("kind", CARRIED)
def test_what_the_next_step_reads_is_followed(kind):
    """The first run shows nothing of it: a mean over channels that go is another one than over those that stay."""
    model = Carried(kind, lambda hidden, y: hidden.mean())
    with pytest.raises(
        ValueError, match=r"a: is reduced across channels \(aten\.mean\), and the result (enters|is read)"
    ):
        fit(model)


@pytest.mark.parametrize("kind", CARRIED)
def test_what_outputs_leave_behind_is_no_reason(kind):
    model = Carried(kind, lambda hidden, y: y.abs().mean())
    fit(model)
    assert widths(model)["a"][1] < 32


def test_the_trial_runs_a_second_step_where_one_reads_what_the_first_has_left():
    class Later(Step):
        def begin(self):
            self.last = None

        def forward(self, x):
            hidden = self.net[:2](x)
            y = self.net[2:](hidden if self.last is None else hidden.view(-1, 12) + self.last)
            self.last = y.detach().mean()
            return y

    model = Later()
    failures = tried_groups(model, analyse(model, X).groups, Example.of(X))[1]
    assert failures.keys() == {"net.0"}
    assert "does not run" in failures["net.0"]


def test_a_second_step_that_does_not_run_is_not_needed():
    class Once(Step):
        def begin(self):
            self.scales = iter([2.0])
            self.last = 1.0

        def forward(self, x):
            self.last = self.net(x).detach().mean() * next(self.scales)
            return self.net(x)

    model = Once()
    groups = analyse(model, X).groups
    assert len(groups) == 2
    assert tried_groups(model, groups, Example.of(X))[1] == {}


def prepared(backend: str, *, fused: bool) -> nn.Module:
    """A network with observers and fake quantisation, of weights for each channel or for all."""
    quantization = pytest.importorskip("torch.ao.quantization")
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 24, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own
        net.qconfig = quantization.get_default_qat_qconfig(backend, version=1 if fused else 0)
        return quantization.prepare_qat(net.train())


@pytest.mark.parametrize("runs", [0, 2])
@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
@pytest.mark.filterwarnings("ignore")
def test_networks_prepared_for_quantisation(backend, runs):
    """Scales and zero points of channels go with them; before the first run there are none."""
    net, x = prepared(backend, fused=True), torch.randn(2, 3, 12, 12)
    for _ in range(runs):
        net(x)
    before = copy.deepcopy(net.state_dict())
    groups = analyse(net, x).groups
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert [group.name for group in groups] == ["0", "3"]
    prune(net, x, 0.4, method="magnitude")
    assert net[3].in_channels == net[0].out_channels < 16
    assert net[3].out_channels < 24
    net(x).sum().backward()
    for layer in (net[0], net[3]):
        quantiser = layer.weight_fake_quant
        if backend == "fbgemm":
            assert len(quantiser.scale) == len(quantiser.zero_point) == layer.out_channels


def test_wrong_groups_of_a_network_prepared_for_quantisation_are_found():
    net, x = prepared("fbgemm", fused=True), torch.randn(2, 3, 12, 12)
    net(x)
    for name in ("3.weight_fake_quant.zero_point", "1.running_mean"):
        groups = [
            replace(group, members=tuple(member for member in group.members if member.name != name))
            for group in analyse(net, x).groups
        ]
        assert len(tried_groups(net, groups, Example.of(x))[1]) == 1


@pytest.mark.filterwarnings("ignore")
def test_observers_that_take_ranges_in_several_operations_leave_layers_whole():
    net, x = prepared("fbgemm", fused=False), torch.randn(2, 3, 12, 12)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="no layer has any"):
        prune(net, x, 0.3)
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_weak_proxies_stay_what_they_are_also_when_what_they_stand_for_is_gone():
    model, other = Annealed(), Annealer()
    model.other = weakref.proxy(other)
    with isolated(model), restored(model):
        assert type(vars(model)["other"]) in weakref.ProxyTypes
        model.annealer()
    assert model.annealer.history == []
    del other
    gc.collect()
    with isolated(model), restored(model):
        model.annealer()
    assert model.annealer.history == []
    duplicate(model)


class SecondLoader(Annealed):
    """Draws from a second loader, of which it asks more than the next batch."""

    def __init__(self) -> None:
        super().__init__()
        data = TensorDataset(torch.randn(24, 8, generator=torch.Generator().manual_seed(1)))
        self.loader = DataLoader(data, batch_size=8)
        self.batches, self.drawn = iter(self.loader), []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        try:
            (x,) = next(self.batches)
        except StopIteration:
            self.batches = iter(self.loader)
            (x,) = next(self.batches)
        self.drawn.append((float(x[0, 0]), len(self.batches), self.batches._dataset_kind))
        return super().training_step(batch, batch_idx) + self.net(x).pow(2).mean()


def test_an_iterator_is_what_it_was_to_all_who_ask():
    models = SecondLoader(), SecondLoader()
    for model, callbacks in zip(models, ([CoresetPruningCallback(0.4, start=1, end=3)], []), strict=True):
        make_trainer(*callbacks, max_epochs=5).fit(model, make_loader(8))
    assert widths(models[0])["net.0"][1] < 32
    assert models[0].drawn == models[1].drawn
    assert len(models[0].drawn) == 20


def test_what_was_drawn_is_put_back_into_the_same_object():
    source = iter([1, 2, 3, 4])
    first = put_back([0], source)
    assert next(first) == 0
    assert next(first) == 1
    second = put_back([0, 1], first)
    assert second is first
    assert list(second) == [0, 1, 2, 3, 4]
