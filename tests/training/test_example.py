"""Whatever way a LightningModule is run in, its structure is read, and reading it leaves no trace."""

import random
from collections import deque
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchmetrics
from breadth import thinned
from fitting import (
    Classifier,
    MemoryLogger,
    Watcher,
    assert_same,
    convnet,
    hooks_of,
    make_loader,
    make_trainer,
    mlp,
    widths,
)
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, default_collate

from lightning_coreset import CoresetPruningCallback

AT_ONCE: dict[str, Any] = {"schedule": "one_shot", "start": 0, "unit": "channels", "verbose": False}


def as_dicts(**names: str) -> DataLoader:
    """Batches as dicts, with the names given to inputs and targets."""
    dataset = make_loader(8).dataset
    rows = [{names.get("x", "x"): x, names.get("y", "y"): y} for x, y in dataset]
    return DataLoader(rows, batch_size=16)


class Direct(Classifier):
    """Calls the network, not itself."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.net(x), y)


class WithoutIndex(Classifier):
    def training_step(self, batch):
        x, y = batch
        return {"loss": F.cross_entropy(self.net(x), y), "inputs": x}


class Loose(Classifier):
    """Layers of the LightningModule itself."""

    def __init__(self):
        super().__init__(nn.Identity())
        self.first = nn.Linear(8, 32)
        self.second = nn.Linear(32, 24)
        self.third = nn.Linear(24, 3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        h = F.relu(self.second(F.relu(self.first(x))))
        return F.cross_entropy(self.third(h), y)


class Dicts(Classifier):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch["x"]), batch["y"])


@dataclass
class Output:
    loss: Tensor
    logits: Tensor


class LikeHuggingFace(Classifier):
    """Takes the batch apart into keywords, and the labels out of it."""

    def forward(self, input_values, labels=None):
        logits = self.net(input_values)
        return Output(F.cross_entropy(logits, labels), logits)

    def training_step(self, batch, batch_idx):
        labels = batch.pop("labels")
        return self(**batch, labels=labels).loss


class InPlace(Classifier):
    """Normalises the batch where it lies."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        x.mul_(0.5).sub_(1.0)
        self.losses.append(x.sum().item())
        return F.cross_entropy(self.net(x), y)


class TwoNetworks(Classifier):
    """An encoder and a decoder, called in turn."""

    def __init__(self):
        super().__init__(nn.Identity())
        self.encoder = mlp(8, 32, 24)
        self.decoder = mlp(24, 16, 8)

    def training_step(self, batch, batch_idx):
        x, _ = batch
        return F.mse_loss(self.decoder(F.relu(self.encoder(x))), x)


class Adversaries(pl.LightningModule):
    """Manual optimization with two networks and two optimizers."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = mlp(4, 16, 8)
        self.critic = mlp(8, 12, 1)

    def training_step(self, batch, batch_idx):
        real, _ = batch
        first, second = self.optimizers()
        noise = torch.randn(len(real), 4)
        loss = F.softplus(self.critic(self.generator(noise).detach())).mean() + F.softplus(-self.critic(real)).mean()
        second.zero_grad()
        self.manual_backward(loss)
        second.step()
        loss = F.softplus(-self.critic(self.generator(noise))).mean()
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        self.log("loss", loss)

    def configure_optimizers(self):
        return [torch.optim.Adam(self.generator.parameters()), torch.optim.Adam(self.critic.parameters())]


class Sampled(Classifier):
    """Has an example of its own; what its forward takes has two names."""

    def __init__(self):
        super().__init__()
        self.example_input_array = {"x": torch.randn(2, 8), "scale": torch.tensor(2.0)}

    def forward(self, x, scale):
        return self.net(x) * scale

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self(x, torch.tensor(1.0)), y)


X = torch.randn(2, 8)
SEQUENTIAL = {"net.0": (8, 16), "net.2": (16, 12), "net.4": (12, 3)}

WAYS = [
    pytest.param(Classifier, None, SEQUENTIAL, id="self(x)"),
    pytest.param(Direct, None, SEQUENTIAL, id="self.net(x)"),
    pytest.param(WithoutIndex, None, SEQUENTIAL, id="training_step(batch)"),
    pytest.param(Loose, None, {"first": (8, 16), "second": (16, 12), "third": (12, 3)}, id="layers of its own"),
    pytest.param(Dicts, None, SEQUENTIAL, id="dict"),
    pytest.param(LikeHuggingFace, None, SEQUENTIAL, id="keywords, labels popped"),
    pytest.param(InPlace, None, SEQUENTIAL, id="batch changed in place"),
    pytest.param(
        TwoNetworks,
        None,
        {"encoder.0": (8, 16), "encoder.2": (16, 12), "decoder.0": (12, 8), "decoder.2": (8, 8)},
        id="two networks",
    ),
    pytest.param(
        Adversaries,
        None,
        {"generator.0": (4, 8), "generator.2": (8, 8), "critic.0": (8, 6), "critic.2": (6, 1)},
        id="manual optimization",
    ),
    pytest.param(Sampled, None, SEQUENTIAL, id="example_input_array"),
    pytest.param(Classifier, X, SEQUENTIAL, id="a tensor given"),
    pytest.param(Sampled, (X, torch.tensor(1.0)), SEQUENTIAL, id="a tuple given"),
    pytest.param(Sampled, {"scale": torch.tensor(1.0), "x": X}, SEQUENTIAL, id="a dict given"),
]


def loader_for(module: type) -> DataLoader:
    if module is Dicts:
        return as_dicts()
    return as_dicts(x="input_values", y="labels") if module is LikeHuggingFace else make_loader(8)


@pytest.mark.parametrize(("kind", "example_inputs", "expected"), thinned(WAYS, 3))
def test_structure_is_read_and_training_goes_on(kind, example_inputs, expected):
    module, watcher = kind(), Watcher()
    callback = CoresetPruningCallback(0.5, example_inputs=example_inputs, **AT_ONCE)

    make_trainer(callback, watcher, max_epochs=2).fit(module, loader_for(kind))

    assert widths(module) == expected  # the last layer keeps its outputs
    for name, parameter in module.named_parameters():
        assert not torch.equal(watcher.weights[-2][name], parameter), f"{name} has not been trained since"
    assert hooks_of(module) == 0


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
@pytest.mark.parametrize("example_inputs", [None, X], ids=["its own step", "given"])
def test_read_in_the_precision_of_training(precision, example_inputs):
    module = Classifier()
    callback = CoresetPruningCallback(0.5, example_inputs=example_inputs, **AT_ONCE)

    make_trainer(callback, max_epochs=1, precision=precision).fit(module, make_loader(8))

    assert widths(module) == SEQUENTIAL


def test_manual_optimization_is_pruned_after_its_first_step_then_before_an_epoch():
    module, watcher = Adversaries(), Watcher()
    callback = CoresetPruningCallback(0.5, schedule={0: 0.25, 1: 0.5}, unit="channels", verbose=False)

    make_trainer(callback, watcher, max_epochs=2).fit(module, make_loader(8))

    assert [len(weights["critic.0.bias"]) for weights in watcher.weights] == [9] * 4 + [6] * 4
    optimizers = [state for optimizer in module.trainer.optimizers for state in optimizer.state.items()]
    assert len(optimizers) == 8
    assert all(parameter.shape == state["exp_avg"].shape for parameter, state in optimizers)


class Late(Adversaries):
    """Does nothing in its first step."""

    def training_step(self, batch, batch_idx):
        if self.global_step > 0 or batch_idx > 0:
            super().training_step(batch, batch_idx)


def test_manual_optimization_is_watched_until_a_step_calls_a_network():
    module, watcher = Late(), Watcher()

    make_trainer(CoresetPruningCallback(**AT_ONCE), watcher, max_epochs=1).fit(module, make_loader(8))

    assert [len(weights["critic.0.bias"]) for weights in watcher.weights] == [12, 6, 6, 6]


class Keeping(Adversaries):
    """Keeps what it made, and the graph behind it, as Lightning's own example of a GAN does."""

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        self.made = self.generator(torch.randn(2, 4))


def test_a_graph_kept_from_before_is_no_obstacle():
    module = Keeping()
    callback = CoresetPruningCallback(0.5, schedule={0: 0.25, 1: 0.5}, unit="channels", verbose=False)

    make_trainer(callback, max_epochs=2).fit(module, make_loader(8))

    assert widths(module) == {"generator.0": (4, 8), "generator.2": (8, 8), "critic.0": (8, 6), "critic.2": (6, 1)}
    assert module.made.requires_grad


class Bag:
    """A batch of a user's own class, whose size Lightning cannot tell."""

    def __init__(self, x, y):
        self.x, self.y = x, y


class OfBags(Classifier):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch.x), batch.y)


def test_a_batch_of_any_class():
    module = OfBags()
    loader = DataLoader(make_loader(8).dataset, batch_size=16, collate_fn=lambda rows: Bag(*default_collate(rows)))

    make_trainer(callback := CoresetPruningCallback(**AT_ONCE), max_epochs=1).fit(module, loader)

    assert widths(module) == SEQUENTIAL
    assert callback.plans[0].macs_after == 8 * 16 + 16 * 12 + 12 * 3  # of one sample


class Iterating(Classifier):
    def training_step(self, dataloader_iter):
        (x, y), _, _ = next(dataloader_iter)
        loss = F.cross_entropy(self(x), y)
        self.losses.append(loss.item())
        return loss


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")  # Lightning calls it experimental
def test_a_step_that_fetches_its_batches_needs_an_example():
    module = Iterating()
    with pytest.raises(MisconfigurationException, match=r"takes an iterator.*example_inputs"):
        make_trainer(CoresetPruningCallback(**AT_ONCE), max_epochs=1).fit(module, make_loader(8))
    assert module.losses == []

    make_trainer(CoresetPruningCallback(example_inputs=X, **AT_ONCE), max_epochs=1).fit(module, make_loader(8))

    assert widths(module) == SEQUENTIAL


class Busy(Classifier):
    """Has everything that a look at it could leave a trace on."""

    def __init__(self):
        super().__init__(nn.Sequential(*convnet(), nn.Dropout(0.2)))
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3)
        self.total = torchmetrics.SumMetric()  # not logged, so that Lightning does not reset it
        self.register_buffer("calls", torch.zeros(()))
        self.latest = deque(maxlen=3)
        self.counts = {"steps": 0}

    def training_step(self, batch, batch_idx):
        x, y = batch
        x += 0.1 * torch.randn_like(x) + 0.01 * random.random()
        logits = self(x)
        loss = F.cross_entropy(logits, y)
        self.calls += 1
        self.counts["steps"] += 1
        self.latest.append(loss.item())
        self.losses.append(loss.item() + np.random.rand())
        self.accuracy(logits, y)
        self.total.update(loss.detach())
        self.log("acc", self.accuracy, on_step=True, on_epoch=True)
        self.log_dict({"loss": loss, "noise": torch.rand(())}, on_epoch=True)
        self.logger.log_metrics({"direct": loss.item()}, step=self.counts["steps"])
        return loss


class BusyByHand(Busy):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.optimizers().zero_grad()
        self.manual_backward(loss)
        self.optimizers().step()


class BusyWithExample(Busy):
    def __init__(self):
        super().__init__()
        self.example_input_array = torch.randn(2, 1, 6, 6)


def run_busy(kind, *callbacks, epochs=2):
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    module, logger, watcher = kind(), MemoryLogger(), Watcher()
    loader = make_loader(1, 6, 6, shuffle=True)
    make_trainer(watcher, *callbacks, max_epochs=epochs, logger=logger).fit(module, loader)
    rows = [(step, row) for step, row in logger.rows if not any(tag.startswith("coreset/") for tag in row)]
    dice = [random.random(), np.random.rand(), torch.rand(()).item()]
    kept = [list(module.latest), module.counts, module.losses, module.total.compute().item(), dice]
    return watcher.weights, rows, kept


@pytest.mark.parametrize("kind", [Busy, BusyByHand, BusyWithExample])
@pytest.mark.slow
def test_without_an_event_everything_is_as_without_the_callback(kind):
    weights, rows, kept = run_busy(kind)

    pruned_weights, pruned_rows, pruned_kept = run_busy(kind, CoresetPruningCallback(0.0))

    assert len(weights) == len(pruned_weights) == 8
    for one, other in zip(weights, pruned_weights, strict=True):
        assert_same(one, other)
    assert rows == pruned_rows
    assert kept == pruned_kept


@pytest.mark.parametrize("kind", [Busy, BusyByHand, BusyWithExample])
@pytest.mark.slow
def test_an_event_that_removes_nothing_changes_nothing(kind):
    weights, rows, kept = run_busy(kind)
    callback = CoresetPruningCallback(1e-6, schedule="one_shot", start=1, verbose=False)

    with pytest.warns(UserWarning, match="epoch 1 removed no channel"):
        pruned_weights, pruned_rows, pruned_kept = run_busy(kind, callback)

    assert [plan.channels_removed for plan in callback.plans] == [0]
    for one, other in zip(weights, pruned_weights, strict=True):
        assert_same(one, other)
    assert rows == pruned_rows
    assert kept == pruned_kept


@pytest.mark.slow
def test_before_the_first_event_everything_is_as_without_the_callback():
    weights, _, _ = run_busy(Busy)

    pruned_weights, _, _ = run_busy(Busy, CoresetPruningCallback(0.5, schedule="one_shot", start=1, verbose=False))

    for one, other in zip(weights[:4], pruned_weights[:4], strict=True):
        assert_same(one, other)
    assert weights[4]["net.0.weight"].shape != pruned_weights[4]["net.0.weight"].shape


def test_the_users_own_example_is_not_written_to():
    class Normalising(Classifier):
        def forward(self, x):
            return self.net(x.mul_(0.5))

    given = torch.randn(4, 8)
    before = given.clone()
    module = Normalising()

    make_trainer(CoresetPruningCallback(example_inputs=given, **AT_ONCE), max_epochs=1).fit(module, make_loader(8))

    assert torch.equal(given, before)
    assert widths(module) == SEQUENTIAL


def test_a_layer_that_no_step_runs_is_left_alone():
    module = Classifier()
    module.spare = mlp(8, 32, 3)

    make_trainer(callback := CoresetPruningCallback(**AT_ONCE), max_epochs=1).fit(module, make_loader(8))

    assert widths(module) == SEQUENTIAL | {"spare.0": (8, 32), "spare.2": (32, 3)}
    assert callback.plans[0].skipped["spare.0"] == "is not run by the example inputs"


class Reshaping(nn.Module):
    """A width written as a number."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Linear(8, 24)
        self.narrow = nn.Linear(12, 16)
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        pairs = F.relu(self.wide(x)).view(-1, 12, 2).sum(2)
        return self.last(F.relu(self.narrow(pairs)))


def test_a_width_in_the_code_is_left_alone_and_training_goes_on():
    module = Classifier(Reshaping())

    with pytest.warns(UserWarning, match=r"net\.wide.*a width may be written as a number"):
        make_trainer(CoresetPruningCallback(**AT_ONCE), max_epochs=2).fit(module, make_loader(8))

    assert widths(module) == {"net.wide": (8, 24), "net.narrow": (12, 8), "net.last": (8, 3)}
    assert module.losses[-1] < module.losses[0]
