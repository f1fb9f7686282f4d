"""Steps that join the same layers in another way than the first one did: what any of them couples goes together."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from breadth import some_of
from fitting import Classifier, make_loader, make_trainer, mlp
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_coreset import CoresetPruningCallback, PruningPlan
from lightning_coreset.training.examples.loss_graph import LossGraphs

EVENT = 2


class Rewired(pl.LightningModule):
    """Two encoders of one width and two heads; `crossed` steps give each head what the other encoder makes."""

    def __init__(self, when: str) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = mlp(8, 32, 16), mlp(8, 32, 16), mlp(16, 24, 3), mlp(16, 24, 3)
        self.when = when

    def outputs(self, x: Tensor, *, crossed: bool) -> Tensor:
        one, other = torch.relu(self.a(x)), torch.relu(self.b(x))
        return torch.cat([self.c(other), self.d(one)] if crossed else [self.c(one), self.d(other)], 1)

    def loss(self, batch: Any, *, crossed: bool) -> Tensor:
        return self.outputs(batch[0], crossed=crossed).log_softmax(1).gather(1, batch[1][:, None]).mean().neg()

    def is_crossed(self, batch_idx: int) -> bool:
        return {
            "in odd batches": batch_idx % 2 == 1,
            "in the last batch": batch_idx == 3,
            "in epoch 1": self.current_epoch == 1,
            "from epoch 2 on": self.current_epoch >= EVENT,
        }.get(self.when, False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch, crossed=self.is_crossed(batch_idx))

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        crossed = self.when == "in validation" or (self.when == "by the second loader" and dataloader_idx == 1)
        self.log("val", self.loss(batch, crossed=crossed))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test", self.loss(batch, crossed=self.when == "in a test"))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.05)


class Looks(CoresetPruningCallback):
    """Compares the pruned module with the one before the event in which removed channels are zero, in both ways."""

    errors: dict[bool, float]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.before = copy.deepcopy(pl_module)
        super().on_train_epoch_start(trainer, pl_module)

    def on_prune(self, plan: PruningPlan, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        parameters, x = dict(self.before.named_parameters()), torch.randn(5, 8)
        with torch.no_grad():
            for change in plan.changes:
                for dim, kept in change.kept.items():
                    gone = torch.ones(parameters[change.name].shape[dim], dtype=torch.bool)
                    gone[kept] = False
                    parameters[change.name].index_fill_(dim, gone.nonzero().flatten(), 0)
            self.errors = {
                crossed: float(
                    (pl_module.outputs(x, crossed=crossed) - self.before.outputs(x, crossed=crossed)).abs().max()
                )
                for crossed in (False, True)
            }


def pruned(module: pl.LightningModule, *, loaders: int = 1, **options: Any) -> Looks:
    callback = Looks(0.4, method="random", schedule="one_shot", start=EVENT, end=EVENT, verbose=False, **options)
    validation = [make_loader(8)] * loaders if loaders > 1 else make_loader(8)
    trainer = make_trainer(callback, max_epochs=4)
    trainer.fit(module, make_loader(8), validation)
    trainer.test(module, make_loader(8), verbose=False)
    return callback


@pytest.mark.parametrize(
    "when",
    some_of(
        [
            *("in odd batches", "in the last batch", "in epoch 1", "from epoch 2 on"),
            *("in validation", "by the second loader", "in a test"),
        ],
        *("in odd batches", "from epoch 2 on", "by the second loader"),
    ),
)
@pytest.mark.parametrize("self_check", some_of([True, False], True))
def test_what_any_step_couples_loses_the_same(when, self_check):
    module = Rewired(when)
    callback = pruned(module, loaders=2 if when == "by the second loader" else 1, self_check=self_check)
    kept = {group.name: group.kept for group in callback.plans[0].groups}
    assert len(kept) >= 3
    assert callback.errors == pytest.approx({False: 0, True: 0}, abs=1e-5)
    assert module.a[2].out_features == module.b[2].out_features


def test_what_no_step_couples_is_free():
    callback = pruned(Rewired("never"))
    kept = {group.name: group.kept for group in callback.plans[0].groups}
    assert kept["a.2"] != kept["b.2"]
    assert callback.errors[False] == pytest.approx(0, abs=1e-5)
    assert callback.errors[True] > 1e-3


@pytest.mark.parametrize("when", ["training", "validation"])
def test_a_layer_that_is_left_out_at_times(when):
    class Skips(Classifier):
        def __init__(self) -> None:
            super().__init__(mlp(8, 24, 24, 3))

        def outputs(self, x: Tensor, *, skip: bool) -> Tensor:
            hidden = self.net[:2](x)
            return self.net[4:](hidden if skip else self.net[2:4](hidden))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.outputs(batch[0], skip=when == "training" and batch_idx == 2), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val", F.cross_entropy(self.outputs(batch[0], skip=when == "validation"), batch[1]))

    module = Skips()
    callback = CoresetPruningCallback(
        {"net.*": 0.5}, schedule="one_shot", start=EVENT, include_residual=True, verbose=False
    )
    make_trainer(callback, max_epochs=4).fit(module, make_loader(8), make_loader(8))
    [group] = callback.plans[0].groups
    assert {module.net[0].out_features, module.net[2].out_features} == {len(group.kept)} == {12}


def test_a_term_of_the_loss_that_sets_in_later_holds_what_it_compares():
    class Hinted(Classifier):
        def __init__(self) -> None:
            super().__init__(mlp(8, 24, 24, 3))
            self.register_buffer("hint", torch.randn(16, 24))

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            hidden = self.net[:2](batch[0])
            loss = F.cross_entropy(self.net[2:](hidden), batch[1])
            return loss + F.mse_loss(hidden, self.hint[: len(hidden)]) if self.current_epoch >= 1 else loss

    module = Hinted()
    callback = CoresetPruningCallback(0.3, schedule="one_shot", start=EVENT, verbose=False)
    make_trainer(callback, max_epochs=4).fit(module, make_loader(8))
    assert module.net[0].out_features == 24
    assert module.net[2].out_features < 24


# ---- the graph of a loss


def graphs(module: nn.Module) -> LossGraphs:
    found = LossGraphs()
    found.start(module)
    return found


def test_the_same_step_makes_no_new_links():
    net, x = mlp(8, 16, 3), torch.randn(4, 8)
    seen = graphs(net)
    assert seen.is_empty
    assert [bool(seen.note([net(x).sum()])) for _ in range(3)] == [True, False, False]
    assert not seen.note([net(x).sum() / 4])  # as the Trainer divides it
    assert seen.has_all([net(torch.randn(7, 8)).sum()])


def test_longer_loops_make_no_new_links():
    cell, x = nn.GRUCell(8, 16), torch.randn(4, 8)

    def loss(steps: int) -> Tensor:
        hidden = torch.zeros(4, 16)
        for _ in range(steps):
            hidden = cell(x, hidden)
        return hidden.sum()

    seen = graphs(cell)
    seen.note([loss(3)])
    assert seen.has_all([loss(9)])


def test_strides_make_no_new_links():
    """As in attention: with one head or one sample, ``reshape`` need not copy, and einsum needs no new strides."""
    net = mlp(8, 16, 16)

    def loss(x: Tensor) -> Tensor:
        return net(x).transpose(1, 2).contiguous().view(len(x), -1).square().sum()

    def same(x: Tensor) -> Tensor:
        return net(x).transpose(1, 2).reshape(len(x), -1).square().sum()

    seen = graphs(net)
    seen.note([loss(torch.randn(4, 5, 8))])
    assert seen.has_all([loss(torch.randn(4, 1, 8)), same(torch.randn(4, 5, 8)), same(torch.randn(4, 1, 8))])


LINEAR = nn.ModuleDict({name: nn.Linear(8, 8) for name in "abcd"})
OTHERWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "crossed": lambda x: LINEAR["c"](LINEAR["b"](x).relu()) + LINEAR["d"](LINEAR["a"](x).relu()),
    "left out": lambda x: LINEAR["c"](x) + LINEAR["d"](LINEAR["b"](x).relu()),
    "one more term": lambda x: straight(x) + (LINEAR["a"](x) - LINEAR["b"](x)).square(),
    "one term of its own": lambda x: straight(x) + LINEAR["a"](x).square(),
    "another activation": lambda x: LINEAR["c"](LINEAR["a"](x).tanh()) + LINEAR["d"](LINEAR["b"](x).relu()),
    "in another order": lambda x: joined(x, "dc"),
    "one after the other": lambda x: LINEAR["c"](LINEAR["d"](LINEAR["b"](LINEAR["a"](x)).relu()).relu()),
}


def joined(x: Tensor, order: str) -> Tensor:
    parts = {"c": LINEAR["c"](LINEAR["a"](x).relu()), "d": LINEAR["d"](LINEAR["b"](x).relu())}
    return torch.cat([parts[name] for name in order], 1)


def straight(x: Tensor) -> Tensor:
    return LINEAR["c"](LINEAR["a"](x).relu()) + LINEAR["d"](LINEAR["b"](x).relu())


@pytest.mark.parametrize("name", OTHERWISE)
def test_other_ways_make_new_links(name):
    seen, x = graphs(LINEAR), torch.randn(4, 8)
    seen.note([straight(x).sum(), joined(x, "cd").sum()])
    assert seen.note([OTHERWISE[name](x).sum()])
    assert not seen.note([OTHERWISE[name](x).sum()])


class ByState(Rewired):
    """Crosses its branches by something that a repeated step does not see as it was, or not on a few samples."""

    def __init__(self, when: str) -> None:
        super().__init__(when)
        self.steps, self.flag = 0, False

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.flag = batch_idx in (1, 2)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.steps += 1
        crossed = {
            "by a counter": self.steps == 3,
            "by a flag": self.flag,
            "by the size of the batch": len(batch[0]) > 8 and batch_idx == 2,
        }
        return self.loss(batch, crossed=crossed[self.when])


@pytest.mark.parametrize("when", ["by a counter", "by a flag"])
def test_what_a_step_joins_that_cannot_be_repeated_is_held(when):
    module = ByState(when)
    with pytest.warns(UserWarning, match="joined layers otherwise than when it was run once more"):
        callback = pruned(module)
    assert callback.errors == pytest.approx({False: 0, True: 0}, abs=1e-5)
    assert "cannot be repeated" in callback.plans[0].skipped["a.2"]


def test_the_whole_batch_is_taken_where_a_few_samples_take_another_way():
    callback = pruned(ByState("by the size of the batch"))
    assert callback.errors == pytest.approx({False: 0, True: 0}, abs=1e-5)
    assert callback.plans[0].groups
