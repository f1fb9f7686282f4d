"""anomalib: frozen backbones beside trained parts, and batches that are dataclasses."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import pytest

pytest.importorskip("anomalib")
with warnings.catch_warnings():  # what it imports under old names is its own matter
    warnings.simplefilter("ignore")
    importlib.import_module("anomalib.models")
import lightning.pytorch as pl
import torch
from anomalib.data import ImageBatch
from anomalib.models import Fastflow, Ganomaly, ReverseDistillation
from client_trials import QUIET, Trial, check
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_coreset import CoresetPruningCallback

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

IMAGES = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
PLAIN = {"post_processor": False, "evaluator": False, "visualizer": False}

MODELS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "Fastflow": (Fastflow, {"backbone": "resnet18", "pre_trained": False, "flow_steps": 2}, ""),
    "ReverseDistillation": (ReverseDistillation, {"backbone": "resnet18", "pre_trained": False}, ""),
    "Ganomaly": (Ganomaly, {"batch_size": 4, "n_features": 16, "latent_vec_size": 16}, ""),
}

UNUSED = {"ReverseDistillation": ["*bottleneck.conv4", "*bottleneck.bn4"]}
"""What anomalib builds and no step runs."""


class Loader(DataLoader):
    def __init__(self) -> None:
        super().__init__(list(IMAGES), batch_size=4, collate_fn=lambda images: ImageBatch(image=torch.stack(images)))


@pytest.mark.parametrize("name", MODELS)
def test_anomalib(name, tmp_path, record_property):
    kind, options, refuses = MODELS[name]

    def resizes() -> Any:
        return kind.configure_pre_processor(image_size=(64, 64))

    def fit(callback: CoresetPruningCallback) -> Any:
        module = kind(**options, **PLAIN, pre_processor=resizes())
        trainer = pl.Trainer(max_epochs=2, callbacks=[callback], enable_checkpointing=False, **QUIET)
        trainer.fit(module, Loader())
        return module, trainer

    def predict(trained: Any) -> Tensor:
        module = trained[0] if isinstance(trained, tuple) else trained
        with torch.no_grad():
            return module.eval().model(IMAGES[:2]).pred_score

    trial = Trial(
        "anomalib",
        name,
        fit=fit,
        network=lambda trained: trained[0],
        predict=predict,
        save=lambda trained, path: trained[1].save_checkpoint(path / "last.ckpt"),
        load=lambda path: kind.load_from_checkpoint(path / "last.ckpt", weights_only=False, pre_processor=resizes()),
        refuses=refuses,
        notes=f"`never_run={UNUSED[name]}`" if name in UNUSED else "",
        options=(("schedule", {1: 0.5}), ("never_run", UNUSED.get(name, []))),
    )
    check(trial, tmp_path, record_property)
