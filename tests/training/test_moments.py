"""Moments measured in a training run: on probes, or on the batches that passed by."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fitting import Classifier, convnet, make_loader, make_trainer, mlp
from torch.nn.functional import cross_entropy

from lightning_coreset import CoresetPruningCallback, Reconstruction

EVENTS = {1: 0.3, 2: 0.5}


def fit(module, method, *shape: int, callbacks=(), **options: Any) -> CoresetPruningCallback:
    torch.manual_seed(0)
    pruning = CoresetPruningCallback(schedule=EVENTS, method=method, verbose=False)
    trainer = make_trainer(pruning, *callbacks, max_epochs=3, **options)
    trainer.fit(module, make_loader(*shape))
    return pruning


def methods(pruning) -> set[str]:
    return {
        group.method for plan in pruning.plans for group in plan.groups if group.channels_after < group.channels_before
    }


def test_by_default_a_network_with_batch_norms_is_measured_on_probes():
    pruning = fit(Classifier(convnet()), Reconstruction(), 1, 6, 6)
    assert methods(pruning) == {"reconstruction (probes)"}
    assert len(pruning.plans) == 2


@pytest.mark.parametrize(("net", "shape"), [(convnet, (1, 6, 6)), (lambda: mlp(8, 32, 24, 3), (8,))])
def test_batches_that_passed_by_are_measured(net, shape):
    pruning = fit(Classifier(net()), Reconstruction(moments="batches", samples=32), *shape)
    assert methods(pruning) == {"reconstruction (batches)"}
    assert pruning._planner.moments._kept == []  # of a run that is over


def test_only_as_many_batches_are_kept_as_are_asked_for():
    module = Classifier(mlp(8, 32, 24, 3))
    kept = []

    class Look(CoresetPruningCallback):
        def on_train_epoch_end(self, trainer, pl_module):
            super().on_train_epoch_end(trainer, pl_module)
            kept.append([len(batch[0]) for batch in self._planner.moments._kept])

    pruning = Look(schedule=EVENTS, method=Reconstruction(moments="batches", samples=20), verbose=False)
    make_trainer(pruning, max_epochs=3).fit(module, make_loader(8))
    assert kept == [[16, 16]] * 3


def test_batches_are_kept_as_they_were():
    """Something behind the event may change a batch in place."""

    class Spoils(Classifier):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            batch[0].fill_(float("nan"))

    pruning = fit(Spoils(mlp(8, 32, 24, 3)), Reconstruction(moments="batches", samples=32), 8)
    assert methods(pruning) == {"reconstruction (batches)"}


def test_training_goes_on_as_if_nothing_had_been_measured():
    """Random numbers of the steps behind an event, metrics that were logged, modes and statistics."""
    drawn: dict[str, list] = {}
    for moments in ("closed_form", "synthetic", "batches"):
        seen: list = []

        class Draws(Classifier):
            def training_step(self, batch: Any, batch_idx: int, seen: list = seen):
                assert self.training
                loss = cross_entropy(self(batch[0]), batch[1])
                if torch.is_grad_enabled():
                    seen.append(torch.rand(1).item())
                return loss

        module = Draws(convnet())
        fit(module, Reconstruction(moments=moments, samples=32), 1, 6, 6)
        assert module.net[1].num_batches_tracked == 12
        drawn[moments] = seen
    assert drawn["closed_form"] == drawn["synthetic"] == drawn["batches"]


def test_manual_optimization_has_no_batches_and_says_so():
    class ByHand(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(cross_entropy(self.net(batch[0]), batch[1]))
            optimizer.step()

    with pytest.warns(UserWarning, match="Moments are not measured on batches"):
        pruning = fit(ByHand(), Reconstruction(moments="batches"), 8)
    assert pruning.plans
    assert "reconstruction (batches)" not in methods(pruning)


class Saver(pl.Callback):
    """Saves a checkpoint behind the first epoch."""

    def __init__(self, path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("moments", ["synthetic", "batches"])
def test_a_resumed_run_measures_as_the_one_that_was_not_stopped(tmp_path, moments):
    weights = []
    start = Classifier(convnet()).state_dict()
    for path in (None, tmp_path / "saved.ckpt"):
        module = Classifier(convnet())
        module.load_state_dict(start)
        method = Reconstruction(moments=moments, samples=32)
        pruning = CoresetPruningCallback(schedule=EVENTS, method=method, verbose=False)
        trainer = make_trainer(pruning, Saver(tmp_path / "saved.ckpt"), max_epochs=3)
        trainer.fit(module, make_loader(1, 6, 6), ckpt_path=path)
        weights.append(module.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
