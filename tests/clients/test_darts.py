"""darts: it pickles the model with its Trainer's arguments, and builds the network anew within `load`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("darts")
import torch
from client_heads import check_heads, first_call
from client_trials import QUIET, Trial, check, refused
from darts import TimeSeries
from darts.models import (
    BlockRNNModel,
    DLinearModel,
    NBEATSModel,
    NHiTSModel,
    TCNModel,
    TFTModel,
    TiDEModel,
    TransformerModel,
    TSMixerModel,
)
from darts.models.forecasting.torch_forecasting_model import TorchForecastingModel
from darts.utils.likelihood_models.torch import (
    GaussianLikelihood,
    NegativeBinomialLikelihood,
    QuantileRegression,
)
from pytorch_lightning import Callback

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

SERIES = TimeSeries.from_values(np.sin(np.arange(200, dtype=np.float32) / 5))
STACKS = {"num_stacks": 2, "num_blocks": 1, "layer_widths": 32}
CERTAIN = {"likelihood": None, "loss_fn": torch.nn.MSELoss()}  # by default it predicts a random sample
LAYERS = {"nhead": 4, "dim_feedforward": 64, "num_encoder_layers": 1, "num_decoder_layers": 1}

MODELS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "TCN": (TCNModel, {"num_filters": 8}, ""),
    "N-BEATS": (NBEATSModel, STACKS, ""),
    "N-HiTS": (NHiTSModel, STACKS, ""),
    "TiDE": (TiDEModel, {"hidden_size": 32}, ""),
    "Transformer": (TransformerModel, {"d_model": 16, **LAYERS}, ""),
    "TFT": (TFTModel, {"hidden_size": 16, "add_relative_index": True, **CERTAIN}, ""),
    "LSTM": (BlockRNNModel, {"model": "LSTM", "hidden_dim": 16}, ""),
    "TSMixer": (TSMixerModel, {"hidden_size": 16, "ff_size": 32}, "norm"),
}


def fit(kind: Any, callback: Any, **options: Any) -> Any:
    model = kind(
        *(24, 12),
        n_epochs=5,
        batch_size=32,
        random_state=0,
        pl_trainer_kwargs={**QUIET, "callbacks": [callback]},
        **options,
    )
    return model.fit(SERIES, verbose=False)


@pytest.mark.parametrize("name", MODELS)
def test_darts(name, tmp_path, record_property):
    kind, options, refuses = MODELS[name]
    trial = Trial(
        "darts",
        name,
        fit=lambda callback: fit(kind, callback, **options),
        network=lambda model: model.model,
        predict=lambda model: model.predict(12, verbose=False).values(),
        save=lambda model, path: model.save(str(path / "model.pt")),
        load=lambda path: TorchForecastingModel.load(str(path / "model.pt"), trusted=True),
        refuses=refuses,
        notes="`trusted=True`, as with any callback",
    )
    check(trial, tmp_path, record_property)


def test_a_model_without_hidden_channels():
    refused(lambda callback: fit(DLinearModel, callback), "no layer has any")


HEADS: dict[str, tuple[Any, dict[str, Any], Any, str]] = {
    "GRU, normal": (BlockRNNModel, {"model": "GRU", "hidden_dim": 16}, GaussianLikelihood, "fc.*"),
    "LSTM, counts": (BlockRNNModel, {"model": "LSTM", "hidden_dim": 16}, NegativeBinomialLikelihood, "fc.*"),
    "TiDE, quantiles": (TiDEModel, {"hidden_size": 32}, QuantileRegression, "temporal_decoder.dense.2"),
}


@pytest.mark.parametrize("name", HEADS)
def test_parameters_of_distributions(name):
    kind, options, likelihood, heads = HEADS[name]
    model, inputs = first_call(lambda: fit(kind, Callback(), likelihood=likelihood(), **options))
    check_heads(model, inputs, heads)
