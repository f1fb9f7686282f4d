"""chemprop: graph networks whose batches are objects of its own, and which it saves with their hyperparameters."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("chemprop")
import torch
from chemprop import data, models, nn
from client_trials import QUIET, Trial, check
from lightning.pytorch import Trainer

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

SMILES = ["C" * i + end for i in range(1, 9) for end in ("", "O", "N", "Cl", "C(=O)O", "c1ccccc1")]
WIDTHS = {"input_dim": 32, "hidden_dim": 32}

MODELS: dict[str, Any] = {
    "MPNN": lambda: models.MPNN(
        nn.BondMessagePassing(d_h=32, depth=3), nn.MeanAggregation(), nn.RegressionFFN(**WIDTHS), batch_norm=True
    ),
    "MPNN, on atoms": lambda: models.MPNN(
        nn.AtomMessagePassing(d_h=32, depth=3), nn.SumAggregation(), nn.MveFFN(**WIDTHS)
    ),
    "MPNN, attentive": lambda: models.MPNN(
        nn.BondMessagePassing(d_h=32, depth=3),
        nn.AttentiveAggregation(output_size=32),
        nn.RegressionFFN(**WIDTHS, n_layers=2),
    ),
}


@pytest.mark.parametrize("way", ["checkpoint", "save_model"])
@pytest.mark.parametrize("name", MODELS)
def test_chemprop(name, way, tmp_path, record_property):
    points = [data.MoleculeDatapoint.from_smi(smiles, [float(len(smiles))]) for smiles in SMILES]
    loader = data.build_dataloader(data.MoleculeDataset(points), batch_size=16, shuffle=False)
    batch = next(iter(loader))

    def fit(callback: Any) -> Any:
        trainer = Trainer(max_epochs=5, callbacks=[callback], enable_checkpointing=False, **QUIET)
        model = MODELS[name]()
        trainer.fit(model, loader)
        return model, trainer

    def predict(trained: Any) -> torch.Tensor:
        model = trained[0] if isinstance(trained, tuple) else trained
        with torch.no_grad():
            return model.eval()(batch.bmg, batch.V_d, batch.X_d)

    saves = {
        "checkpoint": (
            lambda trained, path: trained[1].save_checkpoint(path / "m.ckpt"),
            lambda path: models.MPNN.load_from_checkpoint(path / "m.ckpt"),
        ),
        "save_model": (
            lambda trained, path: models.save_model(path / "m.pt", trained[0]),
            lambda path: models.load_model(path / "m.pt"),
        ),
    }
    save, load = saves[way]
    trial = Trial("chemprop", name, fit, lambda trained: trained[0], predict, save, load, notes=f"`{save_name(way)}`")
    check(trial, tmp_path, record_property)


def save_name(way: str) -> str:
    return {"checkpoint": "MPNN.load_from_checkpoint", "save_model": "models.load_model"}[way]
