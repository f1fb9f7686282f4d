"""Optimizers, learning-rate schedulers and gradients through a real fit with events.

The oracle: units that are switched off at both ends change nothing, so that the step after their removal has to be the
one that the unpruned network takes on all that stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from breadth import thinned
from fitting import Classifier, Watcher, assert_same, count_params, make_loader, make_trainer, mlp
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler as schedulers

from lightning_coreset import CoresetPruningCallback, PruningPlan

Pruning = partial(CoresetPruningCallback, verbose=False)
DEAD = [0, 3, 4, 7, 9, 10, 13, 14]
ALIVE = sorted(set(range(16)) - set(DEAD))
SURVIVORS = {"net.0.weight": (0, ALIVE), "net.0.bias": (0, ALIVE), "net.2.weight": (1, ALIVE)}


def fit(module: pl.LightningModule, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    trainer = make_trainer(*callbacks, **({"max_epochs": 2} | options))
    trainer.fit(module, make_loader(8))
    return trainer


class Deaden(pl.Callback):
    """Before epoch 1, switches hidden units off at both ends: without them the network is the same."""

    @torch.no_grad()
    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if trainer.current_epoch == 1:
            for tensor in (pl_module.net[0].weight, pl_module.net[0].bias, pl_module.net[2].weight.T):
                tensor[DEAD] = 0


class Chosen(Classifier):
    """Trained by the optimizer of the test's choice."""

    def __init__(self, make: Callable[[Iterator[nn.Parameter]], Any]) -> None:
        super().__init__(mlp(8, 16, 3))
        self.make = make

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


def run(make: Callable, *callbacks: pl.Callback, kind: type = Chosen, **options: Any) -> list[dict[str, Tensor]]:
    """Weights after every step of two epochs."""
    torch.manual_seed(0)
    watcher = Watcher()
    fit(kind(make), Deaden(), *callbacks, watcher, **({"precision": "64-true"} | options))
    return watcher.weights


def on_survivors(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The part of the unpruned network's weights that stays."""
    taken = {
        name: value.index_select(dim, torch.tensor(kept))
        for name, (dim, kept) in SURVIVORS.items()
        for value in [weights[name]]
    }
    return weights | taken


def dense_and_pruned(make: Callable, **options: Any) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Both runs; up to the event they are the same, bit for bit."""
    pruning = Pruning(0.5, schedule="one_shot", start=1, unit="channels", method="magnitude")
    dense, pruned = run(make, **options), run(make, pruning, **options)
    assert pruning.plans[0].groups[0].kept == tuple(ALIVE)
    for before, same in zip(dense[:4], pruned[:4], strict=True):
        assert_same(before, same)
    assert pruned[4]["net.0.weight"].shape == (8, 8)
    return dense, pruned


# ---- optimizers

ELEMENTWISE = {
    "SGD": partial(optim.SGD, lr=0.05, weight_decay=0.1),
    "momentum": partial(optim.SGD, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": partial(optim.Adam, lr=0.01, foreach=False),
    "foreach Adam": partial(optim.Adam, lr=0.01, foreach=True),
    "fused Adam": partial(optim.Adam, lr=0.01, fused=True),
    "amsgrad": partial(optim.Adam, lr=0.01, amsgrad=True),
    "AdamW": partial(optim.AdamW, lr=0.01),
    "NAdam": partial(optim.NAdam, lr=0.01),
    "RAdam": partial(optim.RAdam, lr=0.01),
    "Adamax": partial(optim.Adamax, lr=0.01),
    "Adagrad": partial(optim.Adagrad, lr=0.05),
    "Adadelta": partial(optim.Adadelta, lr=0.5),
    "RMSprop": partial(optim.RMSprop, lr=0.01, centered=True, momentum=0.5),
    "Rprop": partial(optim.Rprop, lr=0.01),
    "ASGD": partial(optim.ASGD, lr=0.05, t0=2),
}


@pytest.mark.parametrize("make", thinned(ELEMENTWISE, 3))
def test_the_next_step_is_the_dense_one_on_the_survivors(make):
    dense, pruned = dense_and_pruned(make)

    torch.testing.assert_close(pruned[4], on_survivors(dense[4]), rtol=0, atol=1e-12)
    assert not torch.equal(dense[4]["net.2.bias"], dense[3]["net.2.bias"])


def test_adafactor_goes_on_close_to_the_dense_steps():
    # Its factored variances are means over rows and columns, which are of fewer elements now.
    dense, pruned = dense_and_pruned(partial(optim.Adafactor, lr=1e-2))

    torch.testing.assert_close(pruned[4], on_survivors(dense[4]), rtol=0, atol=2e-3)


@pytest.mark.skipif(not hasattr(optim, "Muon"), reason="Muon came with torch 2.9")
def test_muon_goes_on_beside_another_optimizer_for_the_biases():
    class Mixed(Chosen):
        def __init__(self, make):
            super().__init__(make)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for each in self.optimizers():
                each.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            for each in self.optimizers():
                each.step()

        def configure_optimizers(self):
            matrices = [p for p in self.parameters() if p.ndim == 2]
            return optim.Muon(matrices, lr=0.02), optim.AdamW([p for p in self.parameters() if p.ndim < 2], lr=0.01)

    module = Mixed(None)
    trainer = fit(module, Pruning(), max_epochs=4)

    assert count_params(module) == pytest.approx(0.5 * 195, abs=12)
    for optimizer in trainer.optimizers:
        for parameter, state in optimizer.state.items():
            assert {v.shape for v in state.values() if v.ndim == parameter.ndim} == {parameter.shape}
    assert sum(module.losses[-4:]) < sum(module.losses[:4])


def test_lbfgs_is_reset_with_a_warning():
    module = Chosen(partial(optim.LBFGS, lr=0.05, max_iter=2))

    with pytest.warns(UserWarning, match="state of LBFGS could not be pruned for net.0.weight, net.2.weight"):
        fit(module, Pruning(0.4, schedule="one_shot", start=1))

    assert all(map(math.isfinite, module.losses))
    assert module.losses[-1] < module.losses[0]


class Odd(optim.Adam):
    """Keeps something for one parameter that nobody can cut along."""

    def step(self, closure=None):
        loss = super().step(closure)
        first = self.param_groups[0]["params"][0]
        self.state[first]["preconditioner"] = torch.eye(1 + len(first))
        return loss


def test_state_that_cannot_be_pruned_is_reset_for_that_parameter_with_one_warning():
    module = Chosen(partial(Odd, lr=0.01))
    steps: list[list[float]] = []

    class After(Pruning.func):
        def on_prune(self, plan, trainer, pl_module):
            state = trainer.optimizers[0].state
            steps.append([state[p]["step"].item() if p in state else 0 for p in pl_module.parameters()])

    with pytest.warns(UserWarning, match="state of Odd") as caught:
        fit(module, After(0.4, schedule="one_shot", start=1, verbose=False))

    assert [str(each.message).partition(":")[0] for each in caught if "could not be pruned" in str(each.message)] == [
        "The state of Odd could not be pruned for net.0.weight"
    ]
    assert steps == [[0, 4, 4, 4]]
    assert all(map(math.isfinite, module.losses))


# ---- what is done with gradients

GRADIENTS = {
    "clipped by norm": {"gradient_clip_val": 0.1},
    "clipped by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "accumulated": {"accumulate_grad_batches": 2},
    "accumulated, with a rest": {"accumulate_grad_batches": 3},
    "single precision": {"precision": "32-true"},
}


@pytest.mark.parametrize("options", GRADIENTS.values(), ids=GRADIENTS)
def test_gradients_are_those_of_the_survivors(options):
    dense, pruned = dense_and_pruned(partial(optim.Adam, lr=0.01), **options)

    step = 3 + options.get("accumulate_grad_batches", 1)
    tolerance = 1e-6 if "precision" in options else 1e-12
    torch.testing.assert_close(pruned[step], on_survivors(dense[step]), rtol=0, atol=tolerance)
    assert not torch.equal(dense[step]["net.2.bias"], dense[3]["net.2.bias"])


class Accumulating(Chosen):
    """Steps after every third batch: of four in an epoch, some accumulate over its end, where events are."""

    def __init__(self, make):
        super().__init__(make)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx) / 3)
        if len(self.losses) % 3 == 0:
            self.optimizers().step()
            self.optimizers().zero_grad()


@pytest.mark.parametrize("name", ["momentum", "Adam"])
def test_an_event_may_come_in_the_middle_of_an_accumulation(name):
    dense, pruned = dense_and_pruned(ELEMENTWISE[name], kind=Accumulating)

    # The first step after the event is on the gradients of batches 3 (before the event), 4 and 5.
    torch.testing.assert_close(pruned[5], on_survivors(dense[5]), rtol=0, atol=1e-12)
    assert not torch.equal(dense[5]["net.2.bias"], dense[3]["net.2.bias"])


class Twice(Chosen):
    """Manual optimization: one optimizer for each layer, which step in turn."""

    def __init__(self, make):
        super().__init__(make)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for each in self.optimizers():
            loss = super().training_step(batch, batch_idx)
            each.zero_grad()
            self.manual_backward(loss)
            each.step()

    def configure_optimizers(self):
        return [self.make(self.net[0].parameters()), self.make(self.net[2].parameters())]


def test_the_state_of_each_optimizer_is_pruned():
    dense, pruned = dense_and_pruned(ELEMENTWISE["Adam"], kind=Twice)

    torch.testing.assert_close(pruned[4], on_survivors(dense[4]), rtol=0, atol=1e-12)


# Half precision rounds sums of fewer terms in another order: not equal, but as close as its 8 (11) bits tell.
@pytest.mark.parametrize(
    ("precision", "bits"),
    [("bf16-mixed", 8), ("bf16-true", 8), (partial(MixedPrecision, "16-mixed", "cpu"), 11)],
    ids=["bf16-mixed", "bf16-true", "16-mixed"],
)
def test_half_precision_goes_on(precision, bits):
    options = {"precision": precision} if isinstance(precision, str) else {"precision": None, "plugins": precision()}

    dense, pruned = dense_and_pruned(partial(optim.SGD, lr=0.05, momentum=0.9), **options)

    torch.testing.assert_close(pruned[4], on_survivors(dense[4]), rtol=2**-bits, atol=2**-bits)
    assert not torch.equal(dense[4]["net.2.bias"], dense[3]["net.2.bias"])


# ---- learning rates


class Scheduled(Classifier):
    """With a scheduler that steps by ``interval``, and one rate for each layer."""

    def __init__(self, make, interval):
        super().__init__()
        self.make, self.interval = make, interval

    def training_step(self, batch, batch_idx):
        self.log("clock", 1.0, on_epoch=True)  # never gets better: the plateau does not depend on the weights
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        groups = [{"params": layer.parameters(), "lr": 0.1 / (1 + i)} for i, layer in enumerate(self.net[::2])]
        optimizer = optim.SGD(groups, 0.1, momentum=0.9)
        scheduler = {"scheduler": self.make(optimizer), "interval": self.interval, "monitor": "clock"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def warm_up(optimizer):
    parts = [schedulers.LinearLR(optimizer, total_iters=6), schedulers.CosineAnnealingLR(optimizer, 18)]
    return schedulers.SequentialLR(optimizer, parts, milestones=[6])


SCHEDULERS = {
    "StepLR": (partial(schedulers.StepLR, step_size=2, gamma=0.3), "epoch"),
    "MultiStepLR": (partial(schedulers.MultiStepLR, milestones=[5, 11], gamma=0.3), "step"),
    "ExponentialLR": (partial(schedulers.ExponentialLR, gamma=0.9), "epoch"),
    "CosineAnnealingLR": (partial(schedulers.CosineAnnealingLR, T_max=24), "step"),
    "CosineAnnealingWarmRestarts": (partial(schedulers.CosineAnnealingWarmRestarts, T_0=5), "step"),
    "OneCycleLR": (partial(schedulers.OneCycleLR, max_lr=0.1, total_steps=25), "step"),
    "LinearLR": (partial(schedulers.LinearLR, total_iters=9), "step"),
    "SequentialLR": (warm_up, "step"),
    "ReduceLROnPlateau": (partial(schedulers.ReduceLROnPlateau, patience=0, factor=0.5), "epoch"),
}


@pytest.mark.parametrize(("make", "interval"), thinned(SCHEDULERS, 3))
@pytest.mark.slow
def test_learning_rates_are_those_of_the_unpruned_run(make, interval):
    dense, pruned = Watcher(), Watcher()
    fit(Scheduled(make, interval), dense, max_epochs=6)

    fit(module := Scheduled(make, interval), pruned, Pruning(), max_epochs=6)

    assert count_params(module) < 600
    assert pruned.rates == dense.rates
    assert len(set(map(tuple, dense.rates))) > 2


# ---- parameters


def test_parameters_and_their_groups_stay_the_same_objects():
    class Grouped(Classifier):
        def configure_optimizers(self):
            groups = [
                {"params": self.net[0].parameters(), "lr": 0.05, "weight_decay": 0.1},
                {"params": [*self.net[2].parameters(), *self.net[4].parameters()]},
            ]
            return optim.Adam(groups, lr=0.01)

    module = Grouped()
    parameters = list(module.parameters())

    trainer = fit(module, Pruning(), max_epochs=6)

    assert all(one is other for one, other in zip(module.parameters(), parameters, strict=True))
    (optimizer,) = trainer.optimizers
    first, second = optimizer.param_groups
    assert [id(parameter) for parameter in first["params"] + second["params"]] == list(map(id, parameters))
    assert (first["lr"], first["weight_decay"], second["lr"], second["weight_decay"]) == (0.05, 0.1, 0.01, 0)
    assert len(optimizer.state) == 6
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
        assert state["step"] == 24


@pytest.mark.parametrize("method", ["magnitude", "reconstruction"])
@pytest.mark.parametrize("layer", [0, 2])
def test_a_frozen_layer_changes_by_its_events_alone(layer, method):
    """It is cut along; and reweighted where the plan says so, for it cannot heal by itself."""
    module, watcher = Classifier(), Watcher()
    module.net[layer].requires_grad_(False)
    name = f"net.{layer}.weight"
    before = module.net[layer].weight.clone()
    events: list[PruningPlan] = []

    class Keep(Pruning.func):
        def on_prune(self, plan, trainer, pl_module):
            events.append(plan)

    fit(module, Keep(0.4, schedule="one_shot", start=1, method=method, verbose=False, only=["net.*"]), watcher)

    (change,) = [change for change in events[0].changes if change.name == name]
    assert change.new_shape != change.old_shape
    expected = before
    for dim, kept in change.kept.items():
        expected = expected.index_select(dim, kept)
    if change.value is not None:
        assert (layer, method) == (2, "reconstruction")
        expected = change.value.float()
    assert torch.equal(module.net[layer].weight, expected)
    frozen = [parameter.requires_grad for parameter in module.parameters()]
    assert frozen == [index // 2 != layer // 2 for index in range(6)]
    assert module.net[layer].weight.grad is None
    assert not torch.equal(watcher.weights[3]["net.4.weight"][:, :1], watcher.weights[7]["net.4.weight"][:, :1])
