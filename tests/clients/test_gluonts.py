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
from client_heads import SeenError, check_heads
from client_trials import QUIET, Trial, check
from gluonts.dataset.common import ListDataset
from gluonts.itertools import select
from gluonts.model.predictor import Predictor
from gluonts.torch import (
    DeepAREstimator,
    DLinearEstimator,
    PatchTSTEstimator,
    SimpleFeedForwardEstimator,
    TemporalFusionTransformerEstimator,
    TiDEEstimator,
)
from gluonts.torch.distributions import (
    ImplicitQuantileNetworkOutput,
    NegativeBinomialOutput,
    NormalOutput,
    QuantileOutput,
    SplicedBinnedParetoOutput,
    StudentTOutput,
)
from lightning.pytorch import Callback
from torch import nn

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

TIMES = np.arange(150)
DATA = ListDataset(
    [{"start": pd.Period("2020-01-01", "D"), "target": np.sin(TIMES / 5 + i) + 2} for i in range(3)], freq="D"
)
BINS = SplicedBinnedParetoOutput(-3, 3, 7, 0.05)
COUNTS = ListDataset([{**entry, "target": np.round(5 * entry["target"])} for entry in DATA], freq="D")
PATCHES = {"patch_len": 8, "context_length": 32, "d_model": 16, "nhead": 2, "dim_feedforward": 32}

MODELS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "SimpleFeedForward": (SimpleFeedForwardEstimator, {"hidden_dimensions": [32, 32]}, ""),
    "PatchTST": (PatchTSTEstimator, PATCHES, ""),
    "DeepAR": (DeepAREstimator, {"freq": "D", "hidden_size": 16}, ""),
    "TFT": (TemporalFusionTransformerEstimator, {"freq": "D", "hidden_dim": 16, "variable_dim": 16}, ""),
    "TiDE": (TiDEEstimator, {"freq": "D"}, "include_residual"),
    "DLinear": (DLinearEstimator, {}, ""),
}


def fit(kind: Any, callback: Any, *, data: Any = DATA, **options: Any) -> Any:
    trainer = {**QUIET, "max_epochs": 5, "callbacks": [callback], "default_root_dir": options.pop("folder", None)}
    return kind(prediction_length=8, num_batches_per_epoch=8, batch_size=16, trainer_kwargs=trainer, **options).train(
        data
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


class SeeFirstBatch(Callback):
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        raise SeenError(pl_module, batch)


class Loss(nn.Module):
    """A network of gluonts as its training step uses it: by ``loss``, not by ``forward``."""

    def __init__(self, network: nn.Module, keys: Any) -> None:
        super().__init__()
        self.network, self.keys = network, keys

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        future = {name: batch[name] for name in ("future_target", "future_observed_values")}
        return self.network.loss(**select(self.keys, batch), **future)


HEADS: dict[str, tuple[Any, dict[str, Any]]] = {
    "SimpleFeedForward, Student's t": (SimpleFeedForwardEstimator, {"distr_output": StudentTOutput()}),
    "SimpleFeedForward, quantiles": (SimpleFeedForwardEstimator, {"distr_output": QuantileOutput([0.1, 0.5, 0.9])}),
    "SimpleFeedForward, bins": (SimpleFeedForwardEstimator, {"distr_output": BINS}),
    "DeepAR, negative binomial": (DeepAREstimator, {"freq": "D", "distr_output": NegativeBinomialOutput()}),
    "DeepAR, implicit quantiles": (DeepAREstimator, {"freq": "D", "distr_output": ImplicitQuantileNetworkOutput()}),
    "PatchTST, normal": (PatchTSTEstimator, {**PATCHES, "distr_output": NormalOutput()}),
    "DLinear, Student's t": (DLinearEstimator, {"distr_output": StudentTOutput()}),
}


@pytest.mark.parametrize("name", HEADS)
def test_parameters_of_distributions(name, tmp_path):
    kind, options = HEADS[name]
    with pytest.raises(SeenError) as seen:
        fit(kind, SeeFirstBatch(), data=COUNTS if "binomial" in name else DATA, folder=str(tmp_path), **options)
    module, batch = seen.value.args
    check_heads(Loss(module.model, module.inputs), (batch,), "*.proj.*")
