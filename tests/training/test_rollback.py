"""Going back to a state of training."""

from __future__ import annotations

import copy

import lightning.pytorch as pl
import pytest
import torch
from fitting import Classifier, assert_same, make_loader
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from networks import make
from torch import nn
from torch.utils.data import DataLoader

from lightning_coreset import prune
from lightning_coreset.training.rollback import Savepoint


class Around(pl.Callback):
    """Takes a savepoint, prunes, lets train, goes back, and keeps what there was before and after."""

    def __init__(self, example):
        self.example = example

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.before = everything(trainer, pl_module)
            savepoint = Savepoint.take(trainer, pl_module)
            plan = prune(pl_module.net, self.example, 0.4)
            assert plan.channels_removed
            for optimizer in trainer.optimizers:
                optimizer.state.clear()
            self.savepoint = savepoint.after(pl_module)
        if trainer.current_epoch == 2:
            self.savepoint.restore(trainer, pl_module)
            self.after = everything(trainer, pl_module)
            assert all(parameter.grad is None for parameter in pl_module.parameters())


def everything(trainer, pl_module):
    tensors = dict(pl_module.named_parameters()) | dict(pl_module.named_buffers())
    return {
        "model": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "text": str(pl_module),
        "sizes": {
            name: {key: value for key, value in vars(module).items() if type(value) is int}
            for name, module in pl_module.net.named_modules()
        },
        "strides": {name: tensor.stride() for name, tensor in tensors.items()},
        "optimizers": [
            [copy.deepcopy(optimizer.state.get(parameter)) for parameter in pl_module.parameters()]
            for optimizer in trainer.optimizers
        ],
        "precision": copy.deepcopy(trainer.precision_plugin.state_dict()),
    }


def assert_back(around):
    assert_same(around.before["model"], around.after["model"])
    for key in ("text", "sizes", "strides"):
        assert around.before[key] == around.after[key], key
    torch.testing.assert_close(around.before["optimizers"], around.after["optimizers"], rtol=0, atol=0)
    assert around.before["precision"] == around.after["precision"]


class Any(pl.LightningModule):
    """Trains whatever network towards nothing in particular, and counts its steps."""

    def __init__(self, net):
        super().__init__()
        self.net = net.train()
        self.steps = 0

    def training_step(self, batch, batch_idx):
        self.steps += 1
        return self.net(batch).float().square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)

    def train_dataloader(self):
        return DataLoader([self.example] * 3, batch_size=None)


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "grouped", "normed", "attention", "gated"])
def test_any_network_grows_back(make_trainer, name):
    """Depthwise and grouped convolutions and heads have sizes that shapes do not tell."""
    net, example = make(name, torch.float32)
    module, around = Any(net), Around(example)
    module.example = example

    make_trainer(around, max_epochs=3).fit(module)

    assert_back(around)
    assert module.steps == 9  # a number of the user's that has gone on


def test_memory_format_is_kept(make_trainer):
    net, example = make("vgg", torch.float32)
    module, around = Any(net.to(memory_format=torch.channels_last)), Around(example)
    module.example = example

    make_trainer(around, max_epochs=3).fit(module)

    assert_back(around)


class TwoOptimizers(Classifier):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        first, second = list(self.net[0].parameters()), [*self.net[2].parameters(), *self.net[4].parameters()]
        return torch.optim.SGD(first, 0.1, momentum=0.9), torch.optim.Adam(second)


class Unfreezing(Classifier):
    """Gives the optimizer more parameters while the event could heal."""

    def __init__(self):
        super().__init__()
        self.net[0].requires_grad_(False)

    def on_train_epoch_start(self):
        if self.trainer.current_epoch == 1:
            self.net[0].requires_grad_(True)
            self.optimizers().add_param_group({"params": list(self.net[0].parameters()), "lr": 1e-3})

    def configure_optimizers(self):
        return torch.optim.Adam([*self.net[2].parameters(), *self.net[4].parameters()], 1e-2)


class Scaled(TwoOptimizers):
    """With the scale of mixed precision, which halves at every step that overflows."""

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        scaler = self.trainer.precision_plugin.scaler
        scaler.update(scaler.get_scale() / 2)


@pytest.mark.parametrize("kind", [TwoOptimizers, Unfreezing, Scaled])
def test_optimizers_go_back(make_trainer, kind):
    options = {}
    if kind is Scaled:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        options["plugins"] = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    around, module = Around(torch.ones(2, 8)), kind()

    make_trainer(around, max_epochs=4, **options).fit(module, make_loader(8))

    assert_back(around)
    assert sum(state is not None for state in around.before["optimizers"][0]) > 0
    if kind is Unfreezing:
        assert len(module.optimizers().param_groups) == 2


def test_an_average_that_began_in_between_begins_anew(make_trainer):
    swa = StochasticWeightAveraging(1e-2, swa_epoch_start=2, device=None)

    class Later(Around):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                self.savepoint = Savepoint.take(trainer, pl_module)
            if trainer.current_epoch == 4:
                assert swa.n_averaged > 0
                self.savepoint.restore(trainer, pl_module)
                self.counted = int(swa.n_averaged)

    later = Later(None)

    make_trainer(later, swa, max_epochs=5).fit(Classifier(), make_loader(8))

    assert later.counted == 0
