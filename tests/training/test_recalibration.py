"""Statistics of BatchNorms, recomputed at an event."""

from __future__ import annotations

import copy
import sys

import lightning.pytorch as pl
import pytest
import torch
from breadth import crossed, some_of
from fitting import Classifier, MemoryLogger, Watcher, assert_same, convnet, hooks_of, make_loader
from scripts import load_script
from torch import nn
from torch.optim.swa_utils import update_bn

from lightning_coreset import CoresetPruningCallback
from lightning_coreset.training.recalibration import Recalibration

SHAPE, BATCHES = (1, 6, 6), 4


class Pruning(CoresetPruningCallback):
    """Keeps the network right after its event."""

    def __init__(self, batches, epoch=1, **options):
        options = {"schedule": {epoch: 0.5}} | options
        super().__init__(recalibrate_batches=batches, verbose=False, self_check=False, **options)

    def on_prune(self, plan, trainer, pl_module):
        self.net = copy.deepcopy(pl_module.net)


class ByHand(Classifier):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class Spoiling(Classifier):
    """Leaves nothing of its batch."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        batch[0].data.zero_()
        return loss


def fit(make_trainer, module, *callbacks, **options):
    trainer = make_trainer(*callbacks, **({"max_epochs": 3} | options))
    trainer.fit(module, make_loader(*SHAPE))


def statistics(net):
    return {name: buffer for name, buffer in net.state_dict().items() if "running" in name or "tracked" in name}


@pytest.mark.parametrize(("module", "batches"), crossed([Classifier, ByHand, Spoiling], [1, 3, 9]))
@pytest.mark.slow
def test_the_numbers_are_those_of_update_bn(make_trainer, module, batches):
    callback = Pruning(batches)

    fit(make_trainer, module(convnet()), callback)

    expected = copy.deepcopy(callback.net)
    update_bn([batch for batch, _ in make_loader(*SHAPE)][:batches], expected)
    assert_same(statistics(callback.net), statistics(expected))
    assert expected[1].num_batches_tracked == min(batches, BATCHES)


def test_an_event_in_the_first_batch_has_only_that(make_trainer):
    callback = Pruning(3, epoch=0)

    fit(make_trainer, Classifier(convnet()), callback)

    assert callback.net[1].num_batches_tracked == 1


def test_the_latest_batches_count(make_trainer):
    """By steps, in the middle of an epoch: two batches of this epoch and one of the last."""
    callback = Pruning(3, epoch=BATCHES + 1, interval="step")

    fit(make_trainer, Classifier(convnet()), callback)

    inputs = [batch for batch, _ in make_loader(*SHAPE)]
    expected = copy.deepcopy(callback.net)
    update_bn([inputs[2], inputs[0], inputs[1]], expected)
    assert_same(statistics(callback.net), statistics(expected))


class Parts(Classifier):
    """One BatchNorm of every kind."""

    def __init__(self):
        super().__init__(convnet())
        self.extra = nn.ModuleDict(
            {
                "still": nn.BatchNorm1d(3),
                "frozen": nn.BatchNorm1d(3),
                "none": nn.BatchNorm1d(3, track_running_stats=False),
                "unused": nn.BatchNorm1d(3),
                "used": nn.BatchNorm1d(3, momentum=0.3),
            }
        )

        self.extra["still"].running_var.fill_(4)

    def on_train_epoch_start(self):
        self.extra["still"].eval()
        self.extra["frozen"].track_running_stats = False

    def training_step(self, batch, batch_idx):
        x, y = batch
        x = self(x)
        for name in ("frozen", "none", "still", "used"):
            x = self.extra[name](x)
        return nn.functional.cross_entropy(x, y)


class Look(pl.Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.module = copy.deepcopy(pl_module.state_dict())


def test_only_those_that_follow_the_batches(make_trainer):
    before, after, module = Look(), Look(), Parts()

    fit(make_trainer, module, before, Pruning(2), after)

    changed = {
        name.split(".")[-2]
        for name, buffer in after.module.items()
        if name.startswith("extra") and not torch.equal(buffer, before.module[name])
    }
    assert changed == {"used"}
    assert after.module["extra.used.num_batches_tracked"] == 2
    assert (after.module["extra.used.running_var"] < 0.5).all()  # the one in eval mode has halved its inputs
    assert module.extra["used"].momentum == 0.3
    assert [norm.training for norm in module.extra.values()] == [False, True, True, True, True]


class Noisy(Classifier):
    """Draws random numbers, logs and accumulates gradients."""

    def __init__(self):
        net = convnet()
        net.insert(6, nn.Dropout(0.5))
        super().__init__(net)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(len(batch[0]))
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("accumulate", some_of([1, 3], 3))
def test_nothing_else_is_disturbed(make_trainer, accumulate):
    """Running statistics have no part in training: all else is the same with and without."""
    runs = []
    for batches in (0, 4):
        torch.manual_seed(0)
        module, watcher, logger = Noisy(), Watcher(), MemoryLogger()
        options = {"logger": logger, "accumulate_grad_batches": accumulate}
        fit(make_trainer, module, Pruning(batches, epoch=5, interval="step"), watcher, max_epochs=6, **options)
        weights = {k: v for k, v in watcher.weights[-1].items() if k not in statistics(module)}
        runs.append((weights, module.losses, module.seen, [row for row in logger.rows if "loss" in row[1]]))
        assert hooks_of(module) == 0

    assert_same(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:]


@pytest.mark.parametrize("module", [Classifier, ByHand])
@pytest.mark.slow
def test_it_is_undone_with_the_event(make_trainer, module):
    class Failing(Pruning):
        def on_prune(self, plan, trainer, pl_module):
            assert not torch.equal(pl_module.net[1].running_mean, torch.zeros(12))
            raise RuntimeError("no")

    before = Look()
    module = module(convnet())

    with pytest.raises(RuntimeError, match="no"):
        fit(make_trainer, module, before, Failing(2, ignore=["net.0"]))

    assert_same(module.state_dict(), before.module)
    assert hooks_of(module) == 0


def test_a_step_that_fails_undoes_the_event(make_trainer):
    class Failing(Classifier):
        def training_step(self, batch, batch_idx):
            if self.net[0].out_channels < 12:
                raise RuntimeError("too narrow")
            return super().training_step(batch, batch_idx)

    before, module = Look(), Failing(convnet())

    with pytest.raises(RuntimeError, match="too narrow"):
        fit(make_trainer, module, before, Pruning(2))

    assert_same(module.state_dict(), before.module)


def test_a_network_without_batchnorms(make_trainer):
    callback = Pruning(2)

    fit(make_trainer, Classifier(nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))), callback)

    assert len(callback.plans) == 1


def test_batches_are_let_go(make_trainer):
    callback = Pruning(2)

    fit(make_trainer, Classifier(convnet()), callback)

    assert len(callback._recalibration._kept) == 0


@pytest.mark.parametrize("batches", [-1, 1.5, True, None])
def test_bad_arguments(batches):
    with pytest.raises(ValueError, match="`recalibrate_batches` to be a non-negative integer but got"):
        Recalibration(batches)


@pytest.mark.slow
def test_the_measurement_of_the_documentation_runs(monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr(sys, "path", [*sys.path])
    script = load_script("examples/benchmarks/recalibration.py", "recalibration_benchmark")

    left, recomputed = (script.train("magnitude", 0.3, batches, seed=0, epochs=3) for batches in (0, 4))

    assert recomputed.before == left.before
    assert recomputed.after > left.after
