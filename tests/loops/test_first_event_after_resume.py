"""The first event after a resume comes at the hook where it would have come, and reads the same structure."""

from __future__ import annotations

import copy
from typing import NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from breadth import crossed
from fitting import Classifier, assert_same, count_params, make_loader, make_trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from torch import nn

from lightning_coreset import CoresetPruningCallback

EVENTS = {1: 0.2, 4: 0.5}

pytestmark = pytest.mark.filterwarnings("ignore:.*exists and is not empty", "ignore:The dirpath has changed")


class Plain(Classifier):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))


class ByHand(Plain):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
        optimizer.step()


class OnlyValidated(Plain):
    """Has a head that only validation runs, and that reads what is pruned."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(24, 2)

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("head", self.head(self.net[:4](batch[0])).square().mean())


class Sees(pl.Callback):
    """Keeps what hooks of other callbacks see when epochs begin, before and after the module's own."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.seen.append((trainer.current_epoch, count_params(pl_module)))


def run(folder, kind, *others, resume=None, saves=True, **options):
    torch.manual_seed(0)
    options = {"schedule": EVENTS, "verbose": False, "eval_batches": 0, "save_examples": saves} | options
    callback, sees, module = CoresetPruningCallback(**options), Sees(), kind()
    saving = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}")
    trainer = make_trainer(callback, sees, *others, saving, max_epochs=6, enable_checkpointing=True)
    torch.manual_seed(1)
    trainer.fit(module, make_loader(8, samples=32), make_loader(8, samples=16), ckpt_path=resume)
    return module, callback, sees.seen


def compare(tmp_path, kind, at, *others, **options):
    module, callback, seen = run(tmp_path / "whole", kind, *(one() for one in others), **options)
    path = tmp_path / "whole" / f"epoch={at}.ckpt"
    again, resumed, later = run(tmp_path / "resumed", kind, *(one() for one in others), resume=path, **options)

    assert later == seen[at + 1 :]
    assert_same(again.state_dict(), module.state_dict())
    assert [str(plan) for plan in resumed.plans] == [str(plan) for plan in callback.plans]
    assert resumed.state_dict() == callback.state_dict()
    return torch.load(path, weights_only=True)["callbacks"][callback.state_key]


@pytest.mark.parametrize(("kind", "at"), crossed([Plain, ByHand, OnlyValidated], [0, 3]))
@pytest.mark.slow
def test_the_hook_is_that_of_the_uninterrupted_run(tmp_path, kind, at):
    state = compare(tmp_path, kind, at)

    assert state["examples"]
    if kind is OnlyValidated:
        assert any("validation_step" in one["run"] for one in state["examples"])


@pytest.mark.slow
def test_weight_averaging_sees_the_same_model(tmp_path):
    averaging = lambda: StochasticWeightAveraging(1e-3, swa_epoch_start=3, device=None)  # noqa: E731

    compare(tmp_path, Plain, 3, averaging)


@pytest.mark.slow
def test_certificates_repeat(tmp_path):
    compare(tmp_path, Plain, 3, certify=True)


def test_checkpoints_hold_samples_only_until_the_last_event(tmp_path):
    _, callback, _ = run(tmp_path, Plain)

    def examples(epoch):
        state = torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True)["callbacks"][callback.state_key]
        return state.get("examples", [])

    assert [bool(examples(epoch)) for epoch in range(6)] == [True, True, True, True, False, False]
    inputs, targets = examples(0)[0]["inputs"]
    assert len(inputs) == len(targets) == 8


@pytest.mark.slow
def test_nothing_of_a_batch_is_saved_if_that_is_not_wanted(tmp_path):
    whole, callback, seen = run(tmp_path / "whole", Plain, saves=False)
    path = tmp_path / "whole" / "epoch=3.ckpt"
    again, _, later = run(tmp_path / "resumed", Plain, saves=False, resume=path)

    assert "examples" not in torch.load(path, weights_only=True)["callbacks"][callback.state_key]
    assert later[0] == (4, seen[3][1])  # the event comes at the first batch
    assert count_params(again) == count_params(whole)
    with pytest.raises(ValueError, match="save_examples"):
        CoresetPruningCallback(save_examples="no")


class Batch(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class Wrapped(Plain):
    """Its batches are of a class that a checkpoint cannot hold safely."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return Batch(*batch)


class Wide(Plain):
    """Its batches are too large."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return [*batch, torch.zeros(len(batch[0]), 40_000)]

    def training_step(self, batch, batch_idx):
        return super().training_step(batch[:2], batch_idx)


@pytest.mark.parametrize("kind", [Wrapped, Wide])
@pytest.mark.slow
def test_other_batches_are_not_saved(tmp_path, kind):
    whole, callback, _ = run(tmp_path / "whole", kind)
    path = tmp_path / "whole" / "epoch=3.ckpt"
    again, _, _ = run(tmp_path / "resumed", kind, resume=path)

    assert "examples" not in torch.load(path, weights_only=True)["callbacks"][callback.state_key]
    assert count_params(again) == count_params(whole)


def test_examples_that_are_damaged_are_an_error(tmp_path):
    _, callback, _ = run(tmp_path, Plain)
    state = torch.load(tmp_path / "epoch=3.ckpt", weights_only=True)["callbacks"][callback.state_key]

    for name, wrong in (("run", 3), ("modes", ["other"]), ("origin", 9), ("moment", {}), ("batch_size", "8")):
        changed = copy.deepcopy(state)
        changed["examples"][0][name] = wrong
        with pytest.raises(ValueError, match="Expected the state of a CoresetPruningCallback"):
            CoresetPruningCallback(schedule=EVENTS).load_state_dict(changed)
