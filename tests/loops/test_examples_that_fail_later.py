"""Steps that run on an example at first and not at a later event: the structure is read anew from the next batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fitting import Classifier, make_loader, make_trainer, mlp, widths
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_coreset import CoresetPruningCallback
from lightning_coreset.training.examples import ExampleSource


class Coupled(Classifier):
    """Two layers that only the loss of training couples; from epoch 1 on a state with a row for each sample."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.a, self.b, self.c, self.d = nn.Linear(8, 32), nn.Linear(8, 32), nn.Linear(32, 3), nn.Linear(32, 3)
        self.last: Tensor | None = None

    def outputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        one, other = torch.relu(self.a(x)), torch.relu(self.b(x))
        return one, other, self.c(one) + self.d(other)

    def training_step(self, batch, batch_idx):
        one, other, logits = self.outputs(batch[0])
        loss = F.cross_entropy(logits, batch[1]) + (one - other).pow(2).mean()
        if self.last is not None:
            loss = loss + F.kl_div(logits.log_softmax(1), self.last, reduction="batchmean")
        if self.current_epoch >= 1:
            self.last = logits.detach().softmax(1)
        return loss

    def forward(self, x):
        return self.outputs(x)[2]


class Validated(Coupled):
    """With a layer that training does not run, for which the step is looked at once more at every event."""

    def __init__(self) -> None:
        super().__init__()
        self.probe = nn.Linear(3, 3)

    def validation_step(self, batch, batch_idx):
        self.log("loss", F.cross_entropy(self.probe(self(batch[0])), batch[1]))


class Recurrent(Classifier):
    """Hidden states go on from batch to batch."""

    def __init__(self) -> None:
        super().__init__(mlp(24, 64, 3))
        self.cell = nn.GRU(8, 24, batch_first=True)
        self.hidden: Tensor | None = None

    def training_step(self, batch, batch_idx):
        out, self.hidden = self.cell(batch[0][:, None], None if self.hidden is None else self.hidden.detach())
        return F.cross_entropy(self.net(out[:, -1]), batch[1])

    def forward(self, x):
        return self.net(self.cell(x[:, None])[0][:, -1])


class InOrder(Classifier):
    """Insists on its batches one after the other."""

    expected = 0

    def training_step(self, batch, batch_idx):
        if batch_idx != self.expected:
            raise RuntimeError("out of order")
        self.expected = (batch_idx + 1) % 4
        return super().training_step(batch, batch_idx)


def pruned(module: Any, **options: Any) -> CoresetPruningCallback:
    callback = CoresetPruningCallback(**({"schedule": {1: 0.2, 2: 0.4}, "verbose": False} | options))
    loaders = [make_loader(8)] * (2 if isinstance(module, Validated) else 1)
    make_trainer(callback, max_epochs=4).fit(module, *loaders)
    return callback


@pytest.mark.parametrize("kind", [Coupled, Validated])
@pytest.mark.parametrize("self_check", [True, False])
def test_layers_stay_coupled_that_only_the_step_couples(kind, self_check):
    module = kind()
    callback = pruned(module, self_check=self_check)
    assert [record.epoch for record in callback.history] == [1, 2]
    assert [[group.name for group in plan.groups] for plan in callback.plans] == [["a"]] * 2
    kept = [plan.groups[0].kept for plan in callback.plans]
    assert module.a.out_features == module.b.out_features == len(kept[-1]) < 32


@pytest.mark.parametrize("kind", [Recurrent, InOrder])
@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_events_come_at_their_time(kind, interval):
    module = kind()
    times = [1, 2] if interval == "epoch" else [5, 10]
    callback = pruned(module, schedule=dict(zip(times, [0.1, 0.2], strict=True)), interval=interval)
    assert [record.epoch if interval == "epoch" else record.step for record in callback.history] == times
    assert widths(module)["net.0"][1] < widths(kind())["net.0"][1]


def test_a_step_that_never_runs_again_is_recorded(monkeypatch):
    """Once an epoch is over it runs on no example: what lies between the modules that it calls is not known then."""

    class Once(Classifier):
        steps = late = False

        def on_train_epoch_end(self):
            self.late = True

        def on_train_batch_start(self, batch, batch_idx):
            self.steps = True

        def on_train_batch_end(self, *_):
            self.steps = False

        def training_step(self, batch, batch_idx):
            if self.late and not self.steps:
                raise RuntimeError("only in training")
            return super().training_step(batch, batch_idx)

    begun, fall_back = [], ExampleSource.fall_back
    monkeypatch.setattr(ExampleSource, "fall_back", lambda self: (begun.append(1), fall_back(self)))
    module = Once(mlp(8, 32, 24, 3))
    with pytest.warns(UserWarning, match="A step could not be run on an example"):
        callback = pruned(module)
    assert begun
    assert all(len(plan.groups) == 2 for plan in callback.plans)


@pytest.mark.parametrize("fails_from", [0, 2])
@pytest.mark.slow
def test_a_validation_step_that_is_lost_is_told(fails_from):
    """Of the layer that only it runs nothing is lost: it still takes what it is given."""

    class Once(Validated):
        inside, late = False, fails_from == 0

        def on_train_epoch_end(self):
            self.late = self.current_epoch + 1 >= fails_from

        def on_validation_batch_start(self, *_):
            self.inside = True

        def on_validation_batch_end(self, *_):
            self.inside = False

        def validation_step(self, batch, batch_idx):
            if self.late and not self.inside:
                raise RuntimeError("only in validation")
            return super().validation_step(batch, batch_idx)

    module = Once()
    with pytest.warns(
        UserWarning, match=r"validation_step.* ran before, but as an example it now raised RuntimeError: only in"
    ):
        callback = pruned(module)
    assert [record.epoch for record in callback.history] == [1, 2]
    assert module.probe.weight.shape == (3, 3)
