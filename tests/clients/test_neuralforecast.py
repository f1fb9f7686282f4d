"""neuralforecast: it trains a copy of the model, and writes plain tensors as safetensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("neuralforecast")
import pandas as pd
from client_heads import check_heads, first_call
from client_trials import QUIET, Trial, check
from neuralforecast import NeuralForecast
from neuralforecast.losses.pytorch import GMM, NBMM, DistributionLoss, IQLoss, MQLoss
from neuralforecast.models import LSTM, MLP, NHITS, TCN, PatchTST, TiDE, iTransformer
from pytorch_lightning import Callback

from lightning_coreset import CoresetPruningCallback, make_resizable

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

TIMES = np.arange(120)
DATA = pd.concat(
    [
        pd.DataFrame({"unique_id": str(i), "ds": pd.date_range("2020", periods=120), "y": np.sin(TIMES / 4 + i) + 2.0})
        for i in range(3)
    ],
    ignore_index=True,
)

MODELS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "NHITS": (NHITS, {"mlp_units": [[32, 32]] * 3}, ""),
    "PatchTST": (
        PatchTST,
        {"hidden_size": 32, "linear_hidden_size": 64, "n_heads": 4, "patch_len": 8, "encoder_layers": 2},
        "include_residual",
    ),
    "iTransformer": (iTransformer, {"n_series": 3, "hidden_size": 32, "d_ff": 64, "n_heads": 4, "e_layers": 1}, ""),
    "LSTM": (LSTM, {"encoder_hidden_size": 16, "decoder_hidden_size": 16}, ""),
    "MLP": (MLP, {"hidden_size": 32}, ""),
    "TCN": (TCN, {"encoder_hidden_size": 16, "decoder_hidden_size": 16}, ""),
    "TiDE": (TiDE, {"hidden_size": 32, "decoder_output_dim": 8, "temporal_decoder_dim": 16}, ""),
}


def pruning(forecast: NeuralForecast) -> CoresetPruningCallback:
    callbacks = forecast.models[0].trainer_kwargs["callbacks"]
    return next(one for one in callbacks if isinstance(one, CoresetPruningCallback))


def save(forecast: NeuralForecast, path: str) -> None:
    make_resizable(forecast.models[0], record="tensor")  # safetensors keeps tensors alone
    forecast.save(path, save_dataset=True, overwrite=True)


def fit(kind: Any, callback: Any, **options: Any) -> NeuralForecast:
    sizes = {"h": 8, "input_size": 24, "batch_size": 8, "windows_batch_size": 32}
    model = kind(**sizes, max_steps=30, **QUIET, enable_checkpointing=False, callbacks=[callback], **options)
    forecast = NeuralForecast([model], freq="D")
    forecast.fit(DATA)
    return forecast


@pytest.mark.parametrize("name", MODELS)
def test_neuralforecast(name, tmp_path, record_property):
    kind, options, refuses = MODELS[name]
    trial = Trial(
        "neuralforecast",
        name,
        fit=lambda callback: fit(kind, callback, **options),
        network=lambda forecast: forecast.models[0],
        predict=lambda forecast: forecast.predict(DATA).iloc[:, 2].to_numpy(),
        save=lambda forecast, path: save(forecast, str(path)),
        load=lambda path: NeuralForecast.load(str(path)),
        callback=pruning,
        refuses=refuses,
        notes='`make_resizable(model, record="tensor")` before `save`',
    )
    check(trial, tmp_path, record_property)


HEADS: dict[str, Any] = {
    "Student's t": lambda: DistributionLoss("StudentT"),
    "negative binomial": lambda: DistributionLoss("NegativeBinomial"),
    "quantiles": lambda: MQLoss(level=[80]),
    "implicit quantiles": IQLoss,
    "mixture of normals": lambda: GMM(n_components=3),
    "mixture of counts": lambda: NBMM(n_components=2),
}


@pytest.mark.parametrize("name", HEADS)
def test_parameters_of_distributions(name):
    model, inputs = first_call(lambda: fit(MLP, Callback(), hidden_size=32, loss=HEADS[name]()))
    check_heads(model, inputs, "out", ["loss"] if name == "implicit quantiles" else ())
