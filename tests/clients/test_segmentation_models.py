"""segmentation_models_pytorch: `save_pretrained` to safetensors, and a `load_state_dict` that drops other sizes."""

from __future__ import annotations

from typing import Any

import pytest

smp = pytest.importorskip("segmentation_models_pytorch")
import lightning.pytorch as pl
import torch
from client_trials import QUIET, Trial, check
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_coreset import CoresetPruningCallback, make_resizable

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

IMAGES = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
MASKS = (IMAGES[:, 0] > 0).long()


class Segments(pl.LightningModule):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        model = kind("resnet18", encoder_weights=None, classes=2)
        self.model = make_resizable(model, record="tensor")  # it is saved alone, as safetensors
        self.loss = smp.losses.DiceLoss("multiclass")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


@pytest.mark.parametrize("name", ["Unet", "FPN", "DeepLabV3Plus"])
def test_segmentation_models(name, tmp_path, record_property):
    def fit(callback: CoresetPruningCallback) -> Any:
        module = Segments(getattr(smp, name))
        trainer = pl.Trainer(max_epochs=2, callbacks=[callback], enable_checkpointing=False, **QUIET)
        trainer.fit(module, DataLoader(TensorDataset(IMAGES, MASKS), batch_size=4))
        return module.model

    def predict(model: Any) -> Tensor:
        with torch.no_grad():
            return model.eval()(IMAGES[:2])

    trial = Trial(
        "segmentation_models_pytorch",
        name,
        fit=fit,
        network=lambda model: model,
        predict=predict,
        save=lambda model, path: model.save_pretrained(path),
        load=lambda path: smp.from_pretrained(path),
        notes='`make_resizable(model, record="tensor")` in `__init__`',
        options=(("schedule", {1: 0.5}),),
    )
    check(trial, tmp_path, record_property)
