"""docs/tensorboard.md: its code runs, its table of tags is complete, and its picture is there."""

import re
from functools import partial
from types import SimpleNamespace

import pytest
from breadth import thinned
from fitting import MemoryLogger, Validated, make_loader
from pages import ROOT, blocks_of

from lightning_coreset import CoresetPruningCallback

PAGE = (ROOT / "docs" / "tensorboard.md").read_text(encoding="utf-8")


CODE = [block for block in blocks_of("tensorboard.md") if block.language == "python"]
TERMINAL = "In the terminal"


@pytest.mark.parametrize("block", thinned({one.section: one for one in CODE if one.section != TERMINAL}, 4))
@pytest.mark.slow
def test_code_runs(block, make_trainer, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)

    def trainer(max_epochs, callbacks, logger=False):
        return make_trainer(*callbacks, max_epochs=5, logger=logger)

    names = {
        "CoresetPruningCallback": partial(CoresetPruningCallback, self_check=False)
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


@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
@pytest.mark.slow
def test_what_is_printed_is_what_the_page_says(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (code,) = [block.code for block in CODE if block.section == TERMINAL]
    (text,) = [block.code for block in blocks_of("tensorboard.md") if block.language == "text"]

    exec(code, {"__name__": "__main__"})

    out = [line.strip() for line in re.split(r"[\r\n]", capsys.readouterr().out)]
    said = [masked(line) for line in text.splitlines() if line]
    assert [line for line in map(masked, out) if line in said] == said


def masked(line: str) -> str:
    """A line without the numbers that differ from run to run: accuracies, errors of groups and times."""
    line = re.sub(r"\b\d\.\d{4}\b|[\d.]+ s\b|\(\d+%\)$", "#", line)
    return " ".join(re.sub(r"(\(\d+\)|blocks\.11\.0)(.*)  [\d.]+%$", r"\1\2 #", line).split())


@pytest.mark.slow
def test_every_tag_is_documented(make_trainer):
    logger, pruning = MemoryLogger(), CoresetPruningCallback(certify=True, verbose=False, self_check=False)
    make_trainer(pruning, max_epochs=3, logger=logger).fit(Validated(), make_loader(8), make_loader(8))

    logged = {tag for _, row in logger.rows for tag in row if tag.startswith("coreset")}
    documented = set(re.findall(r"`(coreset\w*/[\w<>]+)`", PAGE))

    assert {re.sub(r"(coreset_\w+)/.*", r"\1/<group>", tag) for tag in logged} <= documented
    pages = {"coreset/channels_left", "coreset/accuracy_against_sparsity", "coreset/plan", "coreset/not_pruned"}
    pages |= {"coreset/latency_ms", "coreset/latency_measured_ms"}  # with another unit
    assert documented - {re.sub(r"(coreset_\w+)/.*", r"\1/<group>", tag) for tag in logged} == pages | {
        "coreset/<argument>"
    }


def test_the_picture_is_there_and_small():
    (picture,) = re.findall(r"!\[.+\]\((.+)\)", PAGE)

    assert 10_000 < (ROOT / "docs" / picture).stat().st_size < 300_000
