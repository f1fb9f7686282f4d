"""Batches of any make: what can be cut to a few samples is, anything else is used as it is."""

from __future__ import annotations

import dataclasses
from collections import UserDict, namedtuple
from typing import Any

import pytest
import torch
from breadth import thinned
from fitting import Classifier, make_loader, make_trainer, widths
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence
from torch.utils.data import DataLoader, default_collate

from lightning_coreset import CoresetPruningCallback
from lightning_coreset.training.examples.batches import first_samples, fresh, on_device

AT_ONCE: dict[str, Any] = {"schedule": "one_shot", "start": 0, "unit": "channels", "verbose": False}


@dataclasses.dataclass
class Plain:
    x: Tensor
    y: Tensor


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: Tensor
    y: Tensor


@dataclasses.dataclass(slots=True)
class Slotted:
    x: Tensor
    y: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlotted:
    x: Tensor
    y: Tensor


Named = namedtuple("Named", "x y")


class Own:
    """As graph batches are: moves itself, in place."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def to(self, device: Any, **options: Any) -> Own:
        self.x, self.y = self.x.to(device), self.y.to(device)
        return self


class Slots:
    __slots__ = ("x", "y")

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y


class KnowsItsLength(UserDict):
    """As a TensorDict: what is put into it has to be as long as it is."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.length = len(x)
        super().__init__(x=x, y=y)

    def to(self, device: Any) -> KnowsItsLength:
        return KnowsItsLength(self.x.to(device), self.y.to(device))

    def __bool__(self) -> bool:
        raise RuntimeError("ambiguous")

    def __setitem__(self, key: str, value: Tensor) -> None:
        if len(value) != self.length:
            raise RuntimeError("batch dimension mismatch")
        super().__setitem__(key, value)

    def __getattr__(self, name: str) -> Any:
        if name in ("x", "y"):
            return self.data[name]
        raise AttributeError(name)


KINDS = (Plain, Frozen, Slotted, FrozenSlotted, Named, Own, Slots, KnowsItsLength)


class OfAnyBatch(Classifier):
    def training_step(self, batch, batch_idx):
        x, y = batch.x, batch.y
        x *= 1.0
        return F.cross_entropy(self.net(x), y)

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        return batch  # Lightning refuses some of them


@pytest.mark.parametrize("kind", thinned(KINDS, 3))
def test_any_batch(kind):
    module = OfAnyBatch()
    loader = DataLoader(make_loader(8).dataset, batch_size=16, collate_fn=lambda rows: kind(*default_collate(rows)))

    callback = CoresetPruningCallback(0.5, **AT_ONCE)
    make_trainer(callback, max_epochs=1).fit(module, loader)

    assert widths(module) == {"net.0": (8, 16), "net.2": (16, 12), "net.4": (12, 3)}
    assert callback.plans[0].macs_after == 8 * 16 + 16 * 12 + 12 * 3  # of one sample


@pytest.mark.parametrize("kind", KINDS)
def test_the_original_is_left_alone(kind):
    batch = kind(torch.arange(12.0), torch.arange(12))
    for copy in (fresh(batch), on_device(batch, "meta"), first_samples(batch)):
        assert type(copy) is kind
    assert batch.x.device.type == "cpu"
    assert len(batch.x) == 12
    other = fresh(batch)
    other.x.add_(1)
    assert batch.x[0] == 0
    if kind is not Slots:  # which nothing can move
        assert on_device(batch, "meta").x.is_meta


def test_what_is_cut():
    x = torch.arange(20.0)
    assert len(first_samples((x, {"y": x}))[1]["y"]) == 8
    assert len(first_samples(Frozen(x, x)).x) == 8
    for whole in ((x, torch.ones(3)), {"x": x, "names": ["a"] * 20}, [x, torch.tensor(1.0)], KnowsItsLength(x, x)):
        assert first_samples(whole) is whole
    packed = pack_sequence([torch.ones(3), torch.ones(2)])
    assert first_samples(packed) is packed
    assert on_device(packed, "cpu").batch_sizes.tolist() == [2, 2, 1]


class WantsAllOfIt(Classifier):
    """Views its batch as pairs of a fixed number."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        x = x.unflatten(0, (2, 8)).flatten(0, 1)
        return F.cross_entropy(self.net(x), y)

    def forward(self, x):
        raise NotImplementedError


def test_a_step_that_fails_on_a_few_samples_is_run_on_all():
    module = WantsAllOfIt()

    make_trainer(CoresetPruningCallback(0.5, **AT_ONCE), max_epochs=1).fit(module, make_loader(8))

    assert widths(module) == {"net.0": (8, 16), "net.2": (16, 12), "net.4": (12, 3)}
