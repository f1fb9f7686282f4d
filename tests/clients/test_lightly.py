"""lightly: self-supervised networks with heads, and copies that follow by momentum."""

from __future__ import annotations

from typing import Any

import pytest

lightly = pytest.importorskip("lightly")
import lightning.pytorch as pl
import torch
from client_trials import QUIET, Trial, check
from lightly.loss import DINOLoss, NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    DINOProjectionHead,
    MoCoProjectionHead,
    SimCLRProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
)
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_coreset import CoresetPruningCallback

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

IMAGES = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def backbone() -> nn.Sequential:
    layers = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class SelfSupervised(pl.LightningModule):
    """Two views of each image, as images with noise."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = backbone()
        self.build()

    def make_head(self) -> nn.Module:
        raise NotImplementedError

    def build(self) -> None:
        """Make the heads and the loss."""

    def loss(self, one: Tensor, other: Tensor) -> Tensor:
        raise NotImplementedError

    def copy(self) -> None:
        self.copied_backbone, self.copied_head = backbone(), self.make_head()
        self.copied_backbone.load_state_dict(self.backbone.state_dict())
        self.copied_head.load_state_dict(self.head.state_dict())
        deactivate_requires_grad(self.copied_backbone)
        deactivate_requires_grad(self.copied_head)

    def follow(self) -> None:
        update_momentum(self.backbone, self.copied_backbone, m=0.9)
        update_momentum(self.head, self.copied_head, m=0.9)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch[0] + 0.1, batch[0] - 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD((one for one in self.parameters() if one.requires_grad), lr=0.01)


class SimCLR(SelfSupervised):
    def build(self) -> None:
        self.head, self.criterion = SimCLRProjectionHead(32, 64, 16), NTXentLoss()

    def loss(self, one: Tensor, other: Tensor) -> Tensor:
        return self.criterion(self.head(self.backbone(one)), self.head(self.backbone(other)))


class SimSiam(SelfSupervised):
    def build(self) -> None:
        self.head, self.predict_head = SimSiamProjectionHead(32, 64, 16), SimSiamPredictionHead(16, 8, 16)
        self.criterion = NegativeCosineSimilarity()

    def loss(self, one: Tensor, other: Tensor) -> Tensor:
        z, w = (self.head(self.backbone(view)) for view in (one, other))
        return (self.criterion(w.detach(), self.predict_head(z)) + self.criterion(z.detach(), self.predict_head(w))) / 2


class MoCo(SelfSupervised):
    def make_head(self) -> nn.Module:
        return MoCoProjectionHead(32, 64, 16)

    def build(self) -> None:
        self.head, self.criterion = self.make_head(), NTXentLoss(memory_bank_size=(64, 16))
        self.copy()

    def loss(self, one: Tensor, other: Tensor) -> Tensor:
        self.follow()
        with torch.no_grad():
            key = self.copied_head(self.copied_backbone(other))
        return self.criterion(self.head(self.backbone(one)), key)


class BYOL(SelfSupervised):
    def make_head(self) -> nn.Module:
        return BYOLProjectionHead(32, 64, 16)

    def build(self) -> None:
        self.head, self.predict_head = self.make_head(), BYOLPredictionHead(16, 64, 16)
        self.criterion = NegativeCosineSimilarity()
        self.copy()

    def loss(self, one: Tensor, other: Tensor) -> Tensor:
        self.follow()
        with torch.no_grad():
            target = self.copied_head(self.copied_backbone(other))
        return self.criterion(self.predict_head(self.head(self.backbone(one))), target)


class DINO(SelfSupervised):
    def make_head(self) -> nn.Module:
        return DINOProjectionHead(32, 64, 16, 32, freeze_last_layer=1)

    def build(self) -> None:
        self.head = self.make_head()
        self.criterion = DINOLoss(output_dim=32)
        self.copy()

    def loss(self, one: Tensor, other: Tensor) -> Tensor:
        self.follow()
        with torch.no_grad():
            teacher = [self.copied_head(self.copied_backbone(view)) for view in (one, other)]
        student = [self.head(self.backbone(view)) for view in (one, other)]
        return self.criterion(teacher, student, epoch=self.current_epoch)


@pytest.mark.parametrize("kind", [SimCLR, SimSiam, MoCo, BYOL, DINO])
def test_lightly(kind, tmp_path, record_property):
    def fit(callback: CoresetPruningCallback) -> Any:
        module = kind()
        trainer = pl.Trainer(max_epochs=5, callbacks=[callback], enable_checkpointing=False, **QUIET)
        trainer.fit(module, DataLoader(TensorDataset(IMAGES), batch_size=8))
        if hasattr(module, "copied_head"):
            shapes = [[one.shape for one in part.parameters()] for part in (module.head, module.copied_head)]
            assert shapes[0] == shapes[1]
        return module, trainer

    def predict(trained: Any) -> Tensor:
        module = trained[0] if isinstance(trained, tuple) else trained
        with torch.no_grad():
            return module.eval()(IMAGES[:2])

    trial = Trial(
        "lightly",
        kind.__name__,
        fit=fit,
        network=lambda trained: trained[0],
        predict=predict,
        save=lambda trained, path: trained[1].save_checkpoint(path / "last.ckpt"),
        load=lambda path: kind.load_from_checkpoint(path / "last.ckpt"),
    )
    check(trial, tmp_path, record_property)
