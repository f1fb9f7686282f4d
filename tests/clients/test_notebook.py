"""In a notebook, with every progress bar: rich's raises a RecursionError there for several lines in one write.

Run by ``pytest -m clients tests/clients/test_notebook.py`` with the extra ``clients``.
"""

from __future__ import annotations

import os

import pytest
from pages import ROOT

SETUP = """
import lightning.pytorch as pl
from fitting import Validated, make_loader, make_trainer
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning_coreset import CoresetPruningCallback

def fit(*bars):
    pruning = CoresetPruningCallback(schedule={1: 0.2, 2: 0.5})
    trainer = make_trainer(pruning, *bars, max_epochs=3, enable_progress_bar=True)
    trainer.fit(Validated(), make_loader(8), make_loader(8))
    print("events:", len(pruning.history))
"""


@pytest.mark.clients
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("bar", ["", "RichProgressBar()", "TQDMProgressBar()"])
def test_events_in_a_notebook(bar, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("rich")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    cells = [nbformat.v4.new_code_cell(code) for code in (SETUP, f"fit({bar})")]

    nbclient.NotebookClient(nbformat.v4.new_notebook(cells=cells), timeout=300).execute()

    outputs = cells[1].outputs  # rich displays what it prints
    text = "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)
    assert "events: 2" in text
    assert "Could not" not in text
    assert text.count("Pruned at epoch") == 2  # in a notebook an event is one line
    assert "Pruning is over" in text
