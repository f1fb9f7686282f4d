"""The Python blocks of the pages in docs/ run as they are, one after another."""

import lightning.pytorch as pl
import pytest
from fitting import Validated, make_loader
from pages import blocks_of

from lightning_coreset import CoresetPruningCallback


def run(page, tmp_path, monkeypatch, **given):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__", **given}

    for block in blocks_of(page):
        if block.language == "python":
            exec(compile(block.code, page, "exec", dont_inherit=True), names)


PAGES = """
api/structure.md arguments.md extending.md guide.md how_it_works.md methods.md probes.md schedules.md
sensitivity_scan.md targets.md why.md
"""


@pytest.mark.parametrize("page", PAGES.split())
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    run(page, tmp_path, monkeypatch)


def test_the_code_of_the_installation_page_runs(tmp_path, monkeypatch):
    pytest.importorskip("pytorch_lightning", reason="the page shows how to use it")
    run("installation.md", tmp_path, monkeypatch)


@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
@pytest.mark.slow  # tests/training/report/test_page.py runs these blocks, too
def test_the_code_of_a_page_that_assumes_a_model_runs(tmp_path, monkeypatch):
    loader = make_loader(8)
    given = {"L": pl, "CoresetPruningCallback": CoresetPruningCallback, "model": Validated()}

    run("tensorboard.md", tmp_path, monkeypatch, **given, train_loader=loader, val_loader=loader)
