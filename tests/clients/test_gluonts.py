"""gluonts: the network lies in a predictor that is written to a folder and built anew from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gluonts")
pytest.importorskip("gluonts.torch")
import pandas as pd
import torch
from client_trials import QUIET, Trial, check, refused
from gluonts.dataset.common import ListDataset
from gluonts.model.predictor import Predictor
from gluonts.torch import (
    DeepAREstimator,
    DLinearEstimator,
    PatchTSTEstimator,
    SimpleFeedForwardEstimator,
    TemporalFusionTransformerEstimator,
    TiDEEstimator,
)

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

TIMES = np.arange(150)
DATA = ListDataset(
    [{"start": pd.Period("2020-01-01", "D"), "target": np.sin(TIMES / 5 + i) + 2} for i in range(3)], freq="D"
)
PATCHES = {"patch_len": 8, "context_length": 32, "d_model": 16, "nhead": 2, "dim_feedforward": 32}

MODELS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "SimpleFeedForward": (SimpleFeedForwardEstimator, {"hidden_dimensions": [32, 32]}, ""),
    "PatchTST": (PatchTSTEstimator, PATCHES, ""),
    "DeepAR": (DeepAREstimator, {"freq": "D", "hidden_size": 16}, ""),
    "TFT": (TemporalFusionTransformerEstimator, {"freq": "D", "hidden_dim": 16, "variable_dim": 16}, ""),
    "TiDE": (TiDEEstimator, {"freq": "D"}, "include_residual"),
}


def fit(kind: Any, callback: Any, **options: Any) -> Any:
    trainer = {**QUIET, "max_epochs": 5, "callbacks": [callback], "default_root_dir": options.pop("folder", None)}
    return kind(prediction_length=8, num_batches_per_epoch=8, batch_size=16, trainer_kwargs=trainer, **options).train(
        DATA
    )


def predict(predictor: Any) -> np.ndarray:
    torch.manual_seed(0)
    np.random.seed(0)
    forecast = next(iter(predictor.predict(DATA)))
    return np.asarray(forecast.quantile(0.5))


@pytest.mark.parametrize("name", MODELS)
def test_gluonts(name, tmp_path, record_property):
    kind, options, refuses = MODELS[name]
    folder: Path = tmp_path / "saved"
    folder.mkdir()
    trial = Trial(
        "gluonts",
        name,
        fit=lambda callback: fit(kind, callback, folder=str(tmp_path), **options),
        network=lambda predictor: predictor.prediction_net,
        predict=predict,
        save=lambda predictor, path: predictor.serialize(path),
        load=lambda path: Predictor.deserialize(path),
        refuses=refuses,
    )
    check(trial, folder, record_property)


def test_a_model_without_hidden_channels(tmp_path):
    refused(lambda callback: fit(DLinearEstimator, callback, folder=str(tmp_path)), "no layer has any")
