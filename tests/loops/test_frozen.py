"""Parts of a module that nothing trains and that are no copies: they stay whole unless they are asked for."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fitting import Classifier, assert_same, count_params, make_loader, make_trainer, mlp, widths
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_coreset import CoresetPruningCallback

Pruning = partial(
    CoresetPruningCallback, pruning_ratio=0.4, schedule="one_shot", start=1, verbose=False, eval_batches=0
)


class Distilled(Classifier):
    """A student and a teacher of the same architecture."""

    def __init__(self) -> None:
        super().__init__(mlp(8, 16, 12, 3))
        self.teacher = mlp(8, 16, 12, 3).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self.net(batch[0]), self.teacher(batch[0]))


def fit(module: pl.LightningModule, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    trainer = make_trainer(*callbacks, **{"max_epochs": 2, **options})
    trainer.fit(module, make_loader(8))
    return trainer


def test_a_frozen_teacher_stays_whole_and_does_not_count(caplog):
    module = Distilled()
    before = copy.deepcopy(module.teacher.state_dict())
    callback = Pruning()

    with caplog.at_level("INFO"):
        fit(module, callback)

    (plan,) = callback.plans
    assert_same(module.teacher.state_dict(), before)
    assert {group.name for group in plan.groups} == {"net.0", "net.2"}
    assert "is frozen" in plan.skipped["teacher.0"]
    assert plan.params_after == count_params(module.net)
    assert plan.macs_before == 8 * 16 + 16 * 12 + 12 * 3
    assert plan.reached == pytest.approx(0.4, abs=0.03)
    said = [record.message for record in caplog.records if "Nothing trains" in record.message]
    assert len(said) == 1
    assert f"teacher ({count_params(module.teacher)} parameters)" in said[0]
    assert "only=['teacher.*']" in said[0]
    assert said[0].endswith("If it takes its weights from what it is built like, say copies={'teacher': 'net'}.")


def test_a_frozen_teacher_is_pruned_if_it_is_asked_for():
    module = Distilled()
    callback = Pruning(only=["teacher.*"])

    fit(module, callback)

    (plan,) = callback.plans
    assert {group.name for group in plan.groups} == {"teacher.0", "teacher.2"}
    assert widths(module.teacher)["0"][1] < 16
    assert plan.params_original == 2 * count_params(module.net)  # both are counted


def test_a_layer_that_reads_pruned_channels_counts_though_it_is_frozen():
    module = Classifier(mlp(8, 16, 12, 3))
    module.net[2].requires_grad_(False)
    callback = Pruning(pruning_ratio=0.2)

    fit(module, callback)

    (plan,) = callback.plans
    assert [group.name for group in plan.groups] == ["net.0"]
    assert plan.params_after == count_params(module)


class Adapted(nn.Module):
    """A frozen Linear with a trained adapter of low rank beside it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs).requires_grad_(False)
        self.down, self.up = nn.Linear(inputs, 2, bias=False), nn.Linear(2, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def test_a_frozen_weight_with_a_trained_adapter_is_pruned():
    module = Classifier(nn.Sequential(Adapted(8, 16), nn.ReLU(), Adapted(16, 12), nn.ReLU(), Adapted(12, 3)))
    callback = Pruning(pruning_ratio=0.2, include_residual=True)

    fit(module, callback)

    (plan,) = callback.plans
    assert {group.name for group in plan.groups} >= {"net.0.base", "net.2.base"}
    assert plan.params_after == count_params(module)
    assert module.net[0].base.out_features < 16


def test_a_frozen_batchnorm_or_bias_holds_nothing():
    net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    net[1].requires_grad_(False)
    net[3].bias.requires_grad_(False)
    module, callback = Classifier(net), Pruning()

    fit(module, callback)

    (plan,) = callback.plans
    assert {group.name for group in plan.groups} == {"net.0", "net.3"}
    assert plan.params_after == count_params(module)


class Gan(pl.LightningModule):
    """Two networks, each of which is switched off while the other one steps."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = mlp(8, 16, 8), mlp(8, 16, 1)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for number, optimizer in enumerate(self.optimizers()):
            self.discriminator.requires_grad_(number == 1)
            self.generator.requires_grad_(number == 0)
            score = self.discriminator(self.generator(batch[0])).mean()
            optimizer.zero_grad()
            self.manual_backward(-score if number == 0 else score - self.discriminator(batch[0]).mean())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(net.parameters(), 1e-3) for net in (self.generator, self.discriminator)]


def test_what_is_switched_off_for_a_moment_is_not_frozen():
    callback = Pruning(pruning_ratio=0.2)

    fit(Gan(), callback)

    assert {group.name for group in callback.plans[0].groups} == {"generator.0", "discriminator.0"}


class ByHand(Classifier):
    """Steps by hand, without any optimizer that the Trainer knows."""

    def __init__(self) -> None:
        super().__init__(mlp(8, 16, 12, 3))
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.sub_(0.1 * parameter.grad)
                parameter.grad = None

    def configure_optimizers(self) -> None:
        return None


@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
def test_without_optimizers_all_is_trained():
    callback = Pruning(pruning_ratio=0.2)

    fit(ByHand(), callback)

    assert {group.name for group in callback.plans[0].groups} == {"net.0", "net.2"}


class PartlyByHand(ByHand):
    """Steps one part by hand."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net[4].parameters(), 0.1)


def test_what_moves_is_trained():
    callback = Pruning(pruning_ratio=0.2)

    fit(PartlyByHand(), callback)

    assert {group.name for group in callback.plans[0].groups} == {"net.0", "net.2"}


class Transfer(Classifier):
    """A backbone that a callback freezes until later, and a head."""

    def __init__(self) -> None:
        super().__init__(nn.Identity())
        self.backbone = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU())
        self.net = nn.Sequential(self.backbone, nn.Linear(12, 3))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([one for one in self.parameters() if one.requires_grad], 0.1)


class Own(BaseFinetuning):
    """A user's own."""

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        self.freeze(pl_module.backbone[:2], train_bn=False)

    def finetune_function(self, pl_module: pl.LightningModule, epoch: int, optimizer: Any) -> None:
        pass


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("finetuning", [BackboneFinetuning(9), Own()])
def test_what_is_frozen_until_later_is_pruned(finetuning, first):
    module, callback = Transfer(), Pruning(pruning_ratio=0.2)
    flags = {}

    def see() -> dict[str, Any]:
        return {name: (one.training, vars(one).get("track_running_stats")) for name, one in module.named_modules()}

    class Check(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            flags.setdefault("before", see())
            flags["after"] = see()

    order = [finetuning, callback] if first else [callback, finetuning]
    fit(module, *order, Check())

    assert len(callback.plans[0].groups) == 2
    assert flags["before"] == flags["after"]
    assert not module.backbone[0].weight.requires_grad
