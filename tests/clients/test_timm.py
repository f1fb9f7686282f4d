"""timm: backbones in a LightningModule, loaded by timm's `load_checkpoint`, which makes a plain dict of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

timm = pytest.importorskip("timm")
import lightning.pytorch as pl
import torch
from client_trials import QUIET, Trial, check
from timm.models import load_checkpoint
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_coreset import CoresetPruningCallback, make_resizable

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

IMAGES, TARGETS = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 4)}

MODELS: dict[str, dict[str, Any]] = {
    "resnet10t": {},
    "test_convnext": {},
    "test_efficientnet": {},
    "vit_tiny_patch16_224": VIT,
    "swin_tiny_patch4_window7_224": SWIN,
}


class Classifier(pl.LightningModule):
    def __init__(self, build: Callable[[], nn.Module], *, averages: bool = False) -> None:
        super().__init__()
        self.net = make_resizable(build(), record="tensor")  # timm saves and loads the net alone
        self.ema = ModelEmaV3(self.net, decay=0.9) if averages else None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def on_train_batch_end(self, *args: Any) -> None:
        if self.ema is not None:
            self.ema.update(self.net)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.01)


def fit(module: Classifier, callback: CoresetPruningCallback) -> Classifier:
    loader = DataLoader(TensorDataset(IMAGES, TARGETS), batch_size=8)
    pl.Trainer(max_epochs=5, callbacks=[callback], enable_checkpointing=False, **QUIET).fit(module, loader)
    return module


@pytest.mark.parametrize("name", MODELS)
def test_timm(name, tmp_path, record_property):
    def build() -> nn.Module:
        return timm.create_model(name, num_classes=3, **MODELS[name])

    def load(path: Any) -> Classifier:
        module = Classifier(build)
        load_checkpoint(module.net, str(path / "net.pt"))
        return module

    def predict(module: Classifier) -> Tensor:
        with torch.no_grad():
            return module.eval().net(IMAGES[:2])

    trial = Trial(
        "timm",
        name,
        fit=lambda callback: fit(Classifier(build), callback),
        network=lambda module: module.net,
        predict=predict,
        save=lambda module, path: torch.save({"state_dict": module.net.state_dict()}, path / "net.pt"),
        load=load,
        loads="by itself",
        notes='`make_resizable(net, record="tensor")` in `__init__`',
    )
    check(trial, tmp_path, record_property)


def test_averages_follow():
    def build() -> nn.Module:
        return timm.create_model("test_efficientnet", num_classes=3)

    module = fit(Classifier(build, averages=True), CoresetPruningCallback(0.5, verbose=False))
    assert module.ema is not None
    averaged = module.ema.module.state_dict()
    assert {name: tensor.shape for name, tensor in module.net.state_dict().items()} == {
        name: tensor.shape for name, tensor in averaged.items()
    }
