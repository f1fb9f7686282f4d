"""Where a network cannot be copied the trial finds another way; where there is none, nothing is pruned."""

from __future__ import annotations

import copy
import functools
import gc
import socket
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fitting import Classifier, make_loader, make_trainer, mlp
from networks import assert_untouched, snapshot
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_coreset import CoresetPruningCallback, prune
from lightning_coreset.state import duplicate
from lightning_coreset.structure import Example, analyse
from lightning_coreset.verification import ways
from lightning_coreset.verification.check import tried_groups

X = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """The width of heads stands in a closure: only a trial finds that four cannot become two."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.split = lambda t: t.reshape(*t.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.qkv(x))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Net(nn.Module):
    """Two layers that may be pruned, and an attention that may not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 16)
        self.attention, self.last = Attention(), nn.Linear(16, 3)

    def inner(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return self.last((x + self.attention(x)).mean(1))


class WithLock(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class WithClient(Net):
    """An object around things that cannot be copied, which keeps settings as well."""

    class Client:
        def __init__(self) -> None:
            self.socket, self.settings = socket.socket(), {"a": 1}

    def __init__(self) -> None:
        super().__init__()
        self.client, self.others = self.Client(), [threading.Condition(), (line for line in "abc")]


class WithFile(Net):
    def __init__(self) -> None:
        super().__init__()
        self.file = open(__file__)  # noqa: SIM115


class WithLambda(Net):
    """A function that encloses the network: that of a copy has to enclose the copy."""

    def __init__(self) -> None:
        super().__init__()
        self.run = lambda x: self.second(self.first(x).relu())

    def inner(self, x: Tensor) -> Tensor:
        return self.run(x)


class WithDefault(Net):
    def __init__(self) -> None:
        super().__init__()
        self.run = lambda x, first=self.first, *, second=self.second: second(first(x).relu())

    def inner(self, x: Tensor) -> Tensor:
        return self.run(x)


class WithHook(Net):
    """The second layer is called by a hook on the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first.register_forward_hook(lambda module, inputs, output: self.second(output.relu()))

    def inner(self, x: Tensor) -> Tensor:
        return self.first(x)


class WithMethods(Net):
    def __init__(self) -> None:
        super().__init__()
        self.steps = [self.first.forward, functools.partial(self.call, self.second)]

    @staticmethod
    def call(layer: nn.Module, x: Tensor) -> Tensor:
        return layer(x.relu())

    def inner(self, x: Tensor) -> Tensor:
        return self.steps[1](self.steps[0](x))


class WithReference(Net):
    """Knows itself by a weak reference, which a copy keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.me = weakref.ref(self)

    def inner(self, x: Tensor) -> Tensor:
        me = self.me()
        return me.second(me.first(x).relu())


class NotCopied(Net):
    def __deepcopy__(self, memo: object) -> nn.Module:
        raise TypeError("cannot be copied")


KNOWN: dict[str, nn.Module] = {}


class ByName(Net):
    """Found in a global variable by its own code."""

    def __init__(self) -> None:
        super().__init__()
        KNOWN["model"] = self

    def inner(self, x: Tensor) -> Tensor:
        model = KNOWN["model"]
        return model.second(model.first(x).relu())


KINDS = (
    *(WithLock, WithClient, WithFile, WithLambda, WithDefault, WithHook, WithMethods, WithReference, NotCopied, ByName),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_other_ways_find_what_a_copy_would(kind):
    torch.manual_seed(0)
    model = kind()
    groups = analyse(model, X).groups
    assert {group.name for group in groups} >= {"first", "attention.qkv"}
    before, objects = snapshot(model), dict(model.named_parameters())
    model(X).sum().backward()
    gradients = {name: parameter.grad for name, parameter in objects.items()}
    failures = tried_groups(model, groups, Example.of(X))[1]
    assert failures.keys() == {"attention.qkv"}
    assert_untouched(model, before)
    for name, parameter in model.named_parameters():
        assert parameter is objects[name]
        assert parameter.grad is gradients[name]
    KNOWN.clear()
    gc.collect()  # sockets and files


@pytest.mark.parametrize("kind", [WithLock, WithLambda, WithDefault, WithHook, WithMethods])
def test_a_copy_runs_on_its_own_weights(kind):
    model = kind()
    expected = model(X)
    twin = duplicate(model)
    torch.testing.assert_close(twin(X), expected, rtol=0, atol=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(twin(X), expected, rtol=0, atol=0)


def test_what_holds_parameters_is_not_shared():
    class Holder:
        def __init__(self, layer: nn.Module) -> None:
            self.layer, self.lock = layer, threading.Lock()

        def __deepcopy__(self, memo: object) -> Holder:
            raise TypeError("cannot be copied")

    model = Net()
    model.holder = Holder(model.first)
    with pytest.raises(TypeError, match="cannot be copied"):
        duplicate(model)
    groups = analyse(model, X).groups
    assert tried_groups(model, groups, Example.of(X))[1].keys() == {"attention.qkv"}


def no_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("no memory left")


def test_in_the_memory_of_the_network_itself(monkeypatch):
    monkeypatch.setattr(copy, "deepcopy", no_memory)
    model = Net()
    groups, before = analyse(model, X).groups, snapshot(model)
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    assert tried_groups(model, groups, Example.of(X))[1].keys() == {"attention.qkv"}
    assert_untouched(model, before)
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers


@pytest.mark.parametrize("way", ways.WAYS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_network_is_whole_whatever_ends_a_trial(way, error):
    model = Net()
    before = snapshot(model)

    @torch.no_grad()
    def spoil(usable: nn.Module) -> None:
        for parameter in usable.parameters():
            parameter.normal_()
        usable.first.weight.data = torch.zeros(1)
        usable.first.out_features = 1
        raise error

    with pytest.raises(error), way(model) as usable:
        spoil(usable.model)
    assert_untouched(model, before)
    assert model.first.out_features == 12


def test_groups_are_tried_one_by_one_where_all_do_not_fit(monkeypatch):
    from lightning_coreset.verification.removal import Removal

    sizes = []

    def attempt(self: Removal, groups: Any, *options: Any, **others: Any) -> str | None:
        sizes.append(len(groups))
        return no_memory() if len(groups) > 1 else original(self, groups, *options, **others)

    original = Removal.attempt_once
    monkeypatch.setattr(Removal, "attempt_once", attempt)
    model = mlp(6, 8, 8, 8, 2)
    groups = analyse(model, X[0]).groups
    found, failures = tried_groups(model, groups, Example.of(X[0]))
    assert failures == {}
    assert [group.name for group in found] == ["0", "2", "4"]
    assert sizes.count(1) == 6  # evaluation and training


NO_WAY: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
    "no memory": lambda patch: [
        patch.setattr(copy, "deepcopy", no_memory),
        patch.setattr("lightning_coreset.verification.tried_network.randomise_", no_memory),
    ],
    "no run": lambda patch: patch.setattr("lightning_coreset.verification.runs.seed_everything", no_memory),
}


@pytest.mark.parametrize("kind", NO_WAY)
def test_nothing_is_pruned_without_a_trial(kind, monkeypatch):
    NO_WAY[kind](monkeypatch)
    model = Net()
    before = snapshot(model)
    match = (
        r"(?s)first.*: the trial could not be run \(OutOfMemoryError: no memory left\); give self_check=False to prune"
    )
    with pytest.warns(UserWarning, match=match), pytest.raises(ValueError, match=match):
        prune(model, X, 0.3)
    assert_untouched(model, before)
    prune(model, X, {"first": 0.5}, self_check=False)
    assert model.first.out_features < 12


def test_the_callback_refuses_to_prune_without_a_trial(monkeypatch):
    NO_WAY["no run"](monkeypatch)
    model = Classifier()
    trainer = make_trainer(CoresetPruningCallback(0.4, start=1), max_epochs=2)
    with (
        pytest.warns(UserWarning, match="could not be run"),
        pytest.raises(ValueError, match="self_check=False"),
    ):
        trainer.fit(model, make_loader(8))
    assert model.net[0].out_features == 32


def test_a_dry_run_plans_on_a_copy_that_shares_what_cannot_be_copied():
    model = Classifier()
    model.lock = threading.Lock()
    trainer = make_trainer(callback := CoresetPruningCallback(0.4, start=1), max_epochs=2)
    run = callback.dry_run(trainer, model, batch=next(iter(make_loader(8))))
    assert run.plans[1].groups
    assert model.net[0].out_features == 32
