"""docs/tensorboard.md: its code runs, its table of tags is complete, and its picture is there."""

import re
from functools import partial
from types import SimpleNamespace

import pytest
from fitting import MemoryLogger, Validated, make_loader
from pages import ROOT, blocks_of

from lightning_coreset import CoresetPruningCallback

PAGE = (ROOT / "docs" / "tensorboard.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", blocks_of("tensorboard.md"), ids=lambda block: block.section)
def test_code_runs(block, make_trainer, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)

    def trainer(max_epochs, callbacks, logger=False):
        return make_trainer(*callbacks, max_epochs=5, logger=logger)

    names = {
        "CoresetPruningCallback": partial(CoresetPruningCallback, check=False)
        if "class" not in block.code
        else CoresetPruningCallback,
        "L": SimpleNamespace(Trainer=trainer),
        "model": Validated(),
        "train_loader": make_loader(8),
        "val_loader": make_loader(8),
    }
    exec(block.code, names)

    out = capsys.readouterr().out
    assert re.search(r"net\.0 +32 -> \d+|\d+ channels removed", out)


def test_every_tag_is_documented(make_trainer):
    logger, pruning = MemoryLogger(), CoresetPruningCallback(certify=True, verbose=False, check=False)
    make_trainer(pruning, max_epochs=3, logger=logger).fit(Validated(), make_loader(8), make_loader(8))

    logged = {tag for _, row in logger.rows for tag in row if tag.startswith("coreset")}
    documented = set(re.findall(r"`(coreset\w*/[\w<>]+)`", PAGE))

    assert {re.sub(r"(coreset_\w+)/.*", r"\1/<group>", tag) for tag in logged} <= documented
    pages = {"coreset/channels_left", "coreset/accuracy_against_sparsity", "coreset/plan", "coreset/not_pruned"}
    assert documented - {re.sub(r"(coreset_\w+)/.*", r"\1/<group>", tag) for tag in logged} == pages | {
        "coreset/<argument>"
    }


def test_the_picture_is_there_and_small():
    (picture,) = re.findall(r"!\[.+\]\((.+)\)", PAGE)

    assert 10_000 < (ROOT / "docs" / picture).stat().st_size < 300_000
