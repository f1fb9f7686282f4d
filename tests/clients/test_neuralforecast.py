"""neuralforecast: it trains a copy of the model, and writes plain tensors as safetensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("neuralforecast")
import pandas as pd
from client_trials import QUIET, Trial, check
from neuralforecast import NeuralForecast
from neuralforecast.models import LSTM, MLP, NHITS, TCN, PatchTST, TiDE, iTransformer

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


@pytest.mark.parametrize("name", MODELS)
def test_neuralforecast(name, tmp_path, record_property):
    kind, options, refuses = MODELS[name]

    def fit(callback: CoresetPruningCallback) -> NeuralForecast:
        sizes = {"h": 8, "input_size": 24, "batch_size": 8, "windows_batch_size": 32}
        model = kind(**sizes, max_steps=30, **QUIET, enable_checkpointing=False, callbacks=[callback], **options)
        forecast = NeuralForecast([model], freq="D")
        forecast.fit(DATA)
        return forecast

    trial = Trial(
        "neuralforecast",
        name,
        fit=fit,
        network=lambda forecast: forecast.models[0],
        predict=lambda forecast: forecast.predict(DATA).iloc[:, 2].to_numpy(),
        save=lambda forecast, path: save(forecast, str(path)),
        load=lambda path: NeuralForecast.load(str(path)),
        callback=pruning,
        refuses=refuses,
        notes='`make_resizable(model, record="tensor")` before `save`',
    )
    check(trial, tmp_path, record_property)
