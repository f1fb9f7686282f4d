"""scvi-tools: the network lies in a training plan, and is built from data and arguments within `load`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("scvi")
import anndata
import pandas as pd
import scvi
from client_trials import QUIET, Trial, check

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

UNUSED = "*px_r_decoder"
"""What scvi-tools builds but runs for ``dispersion="gene-cell"`` only."""

MODELS: dict[str, tuple[Any, dict[str, Any], dict[str, Any], str]] = {
    "SCVI": (scvi.model.SCVI, {}, {"n_hidden": 32, "n_latent": 4, "n_layers": 2}, ""),
    "SCANVI": (
        scvi.model.SCANVI,
        {"labels_key": "label", "unlabeled_category": "unknown"},
        {"n_hidden": 32, "n_latent": 4},
        "",
    ),
    "LinearSCVI": (scvi.model.LinearSCVI, {}, {"n_hidden": 32}, ""),
    "PEAKVI": (scvi.model.PEAKVI, {}, {"n_hidden": 32, "use_layer_norm": "none"}, ""),
}


def cells(*, binary: bool) -> anndata.AnnData:
    random = np.random.default_rng(0)
    counts = random.poisson(2, (256, 40)).astype(np.float32)
    data = anndata.AnnData((counts > 1).astype(np.float32) if binary else counts)
    data.obs["batch"] = pd.Categorical(random.choice(["a", "b"], 256))
    data.obs["label"] = pd.Categorical(random.choice(["x", "y", "unknown"], 256))
    return data


@pytest.mark.parametrize("name", MODELS)
def test_scvi(name, tmp_path, record_property):
    kind, columns, options, refuses = MODELS[name]

    def fit(callback: Any) -> Any:
        data = cells(binary=name == "PEAKVI")
        kind.setup_anndata(data, batch_key="batch", **columns)
        model = kind(data, **options)
        model.train(max_epochs=5, batch_size=64, callbacks=[callback], **QUIET)
        return model

    has_unused = name in ("SCVI", "SCANVI")
    trial = Trial(
        "scvi-tools",
        name,
        fit=fit,
        network=lambda model: model.module,
        predict=lambda model: model.get_latent_representation(),
        save=lambda model, path: model.save(str(path / "model"), save_anndata=True),
        load=lambda path: kind.load(str(path / "model"), accelerator="cpu"),
        refuses=refuses,
        notes=f'`never_run=["{UNUSED}"]`' if has_unused else "",
        options=(("never_run", [UNUSED]),) if has_unused else (),
    )
    check(trial, tmp_path, record_property)
