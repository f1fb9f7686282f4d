"""``nn.MultiheadAttention`` that loses heads and width while it is trained."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fitting import Classifier, Validated, assert_same, make_loader, make_trainer
from lightning.pytorch import callbacks
from torch import Tensor, nn

from lightning_coreset import CoresetPruningCallback, load_pruned
from lightning_coreset.module_specs import NarrowAttention
from lightning_coreset.training.averaged_models import averaged_copies
from lightning_coreset.training.rollback import Savepoint

Pruning = partial(CoresetPruningCallback, verbose=False, include_residual=True)
pytestmark = pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint", "ignore:enable_nested_tensor")


class Encoder(nn.Module):
    """Eight numbers as four tokens, torch's encoder, and a classifier on its mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.places = nn.Linear(2, 16), nn.Parameter(torch.randn(4, 16))
        layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16), enable_nested_tensor=False)
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.encoder(self.first(x.view(-1, 4, 2)) + self.places).mean(1))


class Attentive(Validated):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(Encoder())

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def attentions(module: nn.Module) -> list[nn.Module]:
    return [one for one in module.modules() if isinstance(one, nn.MultiheadAttention)]


def fit(module: pl.LightningModule, *own: Any, **options: Any) -> pl.Trainer:
    ckpt_path = options.pop("ckpt_path", None)
    trainer = make_trainer(*own, **({"max_epochs": 4} | options))
    trainer.fit(module, make_loader(8), make_loader(8), ckpt_path=ckpt_path)
    return trainer


@pytest.mark.slow
def test_events_slice_the_optimizer_and_training_goes_on():
    module, pruning = Attentive(), Pruning(schedule={1: 0.3, 2: 0.5})
    trainer = fit(module, pruning)

    assert len(pruning.plans) == 2
    assert all(isinstance(one, NarrowAttention) for one in attentions(module))
    assert any(one.num_heads < 4 for one in attentions(module))
    (optimizer,) = trainer.optimizers
    for parameter in module.parameters():
        state = optimizer.state[parameter]
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
    assert trainer.callback_metrics["val_acc"] > 0.9
    assert module.losses[-1] < module.losses[0]


def test_checkpoints_resume_and_load_into_fresh_models(tmp_path: Path):
    x, outputs = torch.randn(5, 8), []

    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 1:
                outputs.append(pl_module.net(x))
                trainer.save_checkpoint(tmp_path / "1.ckpt")

    whole, resumed = Attentive(), Attentive()
    fit(whole, Save(), Pruning(schedule={1: 0.3, 3: 0.5}))
    loaded = load_pruned(Attentive, tmp_path / "1.ckpt")
    fit(resumed, Pruning(schedule={1: 0.3, 3: 0.5}), ckpt_path=tmp_path / "1.ckpt")

    assert [type(one) for one in attentions(loaded)] == [NarrowAttention] * 2
    assert torch.equal(loaded.net(x), outputs[0])
    assert_same(dict(resumed.state_dict()), dict(whole.state_dict()))
    assert [type(one) for one in attentions(resumed)] == [NarrowAttention] * 2


@pytest.mark.slow
def test_a_rollback_makes_it_torchs_again():
    class Back(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == 0:
                self.text, self.savepoint = str(pl_module), Savepoint.take(trainer, pl_module)
            if trainer.current_epoch == 3:
                assert [type(one) for one in attentions(pl_module)] == [NarrowAttention] * 2
                self.savepoint.restore(trainer, pl_module)
                assert str(pl_module) == self.text

    module = Attentive()
    fit(module, Back(), Pruning(schedule={1: 0.5}))
    assert [type(one) for one in attentions(module)] == [nn.MultiheadAttention] * 2


@pytest.mark.skipif(not hasattr(callbacks, "EMAWeightAveraging"), reason="came with Lightning 2.6")
@pytest.mark.slow
def test_averaged_copies_follow():
    module, averaging = Attentive(), callbacks.EMAWeightAveraging(decay=0.5)
    copies: list[nn.Module] = []

    class Watch(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            copies.extend(averaged_copies(trainer))

    fit(module, Watch(), averaging, Pruning(schedule={1: 0.5}))

    (copied,) = copies
    assert [type(one) for one in attentions(copied)] == [NarrowAttention] * 2
    assert [one.num_heads for one in attentions(copied)] == [one.num_heads for one in attentions(module)]
    assert copied(torch.randn(2, 8)).shape == (2, 3)
    assert [type(one) for one in attentions(module)] == [NarrowAttention] * 2


@pytest.mark.slow
def test_the_training_step_is_enough():
    """Without example inputs, and with a guard that measures accuracy."""
    module, pruning = Attentive(), Pruning(schedule={1: 0.5}, max_drop=0.5)
    fit(module, pruning)
    assert isinstance(module, Classifier)
    assert pruning.plans[0].reached > 0.4
