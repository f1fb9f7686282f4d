"""pytorch-forecasting: LightningModules whose hyperparameters are objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("pytorch_forecasting")
import pandas as pd
import torch
from client_heads import check_heads, first_call
from client_trials import QUIET, Trial, check
from lightning.pytorch import Trainer
from pytorch_forecasting import DecoderMLP, DeepAR, NBeats, NHiTS, TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.data import GroupNormalizer
from pytorch_forecasting.metrics import (
    MultivariateNormalDistributionLoss,
    NegativeBinomialDistributionLoss,
    NormalDistributionLoss,
)
from pytorch_forecasting.metrics.distributions import ImplicitQuantileNetworkDistributionLoss
from pytorch_forecasting.models.tide import TiDEModel
from pytorch_forecasting.models.timexer import TimeXer

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

RANDOM = np.random.default_rng(0)
TIMES = np.arange(60)
DATA = pd.concat(
    [
        pd.DataFrame(
            {
                "t": TIMES,
                "g": str(i),
                "c": RANDOM.choice(["a", "b"], 60),
                "x": RANDOM.standard_normal(60),
                "y": (np.sin(TIMES / 4 + i) + 2).astype(np.float32),
            }
        )
        for i in range(4)
    ],
    ignore_index=True,
)
ALONE = {"time_varying_unknown_reals": ["y"]}
ALL = {
    **ALONE,
    "time_varying_known_reals": ["x"],
    "static_categoricals": ["g"],
    "time_varying_known_categoricals": ["c"],
}
PATCHES = {"context_length": 16, "prediction_length": 4, "n_heads": 2, "d_ff": 64, "patch_length": 4}

MODELS: dict[str, tuple[Any, dict[str, Any], dict[str, Any], str]] = {
    "TFT": (TemporalFusionTransformer, ALL, {"hidden_size": 16, "hidden_continuous_size": 8}, ""),
    "N-HiTS": (NHiTS, ALONE, {"hidden_size": 32}, ""),
    "N-BEATS": (NBeats, ALONE, {"widths": [32, 32]}, ""),
    "DeepAR": (DeepAR, ALL, {"hidden_size": 16}, ""),
    "DecoderMLP": (DecoderMLP, ALL, {"hidden_size": 32}, "include_residual"),
    "TiDE": (TiDEModel, ALL, {"hidden_size": 32}, ""),
    "TimeXer": (TimeXer, ALL, {"hidden_size": 32, **PATCHES}, ""),
}


def loaders(columns: dict[str, Any], frame: pd.DataFrame = DATA, **more: Any) -> tuple[TimeSeriesDataSet, Any, Any]:
    lengths = {"max_encoder_length": 16, "max_prediction_length": 4}
    data = TimeSeriesDataSet(frame, time_idx="t", target="y", group_ids=["g"], **lengths, **columns, **more)
    return data, *(data.to_dataloader(train=train, batch_size=32, num_workers=0) for train in (True, False))


@pytest.mark.parametrize("name", MODELS)
def test_pytorch_forecasting(name, tmp_path, record_property):
    kind, columns, options, refuses = MODELS[name]
    data, loader, held_out = loaders(columns)
    inputs, _ = next(iter(held_out))

    def fit(callback: Any) -> Any:
        trainer = Trainer(
            max_epochs=5, limit_train_batches=4, callbacks=[callback], enable_checkpointing=False, **QUIET
        )
        model = kind.from_dataset(data, **options)
        trainer.fit(model, loader)
        return model, trainer

    def predict(trained: Any) -> torch.Tensor:
        model = trained[0] if isinstance(trained, tuple) else trained
        torch.manual_seed(0)
        with torch.no_grad():
            return model.eval()(inputs)["prediction"]

    trial = Trial(
        "pytorch-forecasting",
        name,
        fit=fit,
        network=lambda trained: trained[0],
        predict=predict,
        save=lambda trained, path: trained[1].save_checkpoint(path / "last.ckpt"),
        load=lambda path: kind.load_from_checkpoint(path / "last.ckpt", weights_only=False),
        refuses=refuses,
    )
    check(trial, tmp_path, record_property)


COUNTS = DATA.assign(y=(5 * DATA["y"]).round())
POSITIVE = {"target_normalizer": GroupNormalizer(groups=["g"], center=False)}
HEADS: dict[str, tuple[Any, pd.DataFrame, dict[str, Any]]] = {
    "normal": (NormalDistributionLoss, DATA, {}),
    "normal of rank 3": (lambda: MultivariateNormalDistributionLoss(rank=3), DATA, {}),
    "negative binomial": (NegativeBinomialDistributionLoss, COUNTS, POSITIVE),
    "implicit quantiles": (ImplicitQuantileNetworkDistributionLoss, DATA, {}),
}


@pytest.mark.parametrize("name", HEADS)
def test_parameters_of_distributions(name):
    loss, frame, options = HEADS[name]
    data, loader, _ = loaders(ALL, frame, **options)

    def fit() -> None:
        trainer = Trainer(max_epochs=1, enable_checkpointing=False, **QUIET)
        trainer.fit(DeepAR.from_dataset(data, hidden_size=16, loss=loss()), loader)

    check_heads(*first_call(fit), "distribution_projector", ["loss"] if name == "implicit quantiles" else ())
