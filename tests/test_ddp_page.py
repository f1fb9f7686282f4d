"""docs/ddp.md and its example: two processes end with the same pruned network, and say so once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fitting import mlp
from pages import ROOT, blocks_of
from training.launching import TORCHRUN, finish, start

PYTHON = [block for block in blocks_of("ddp.md") if block.language == "python"]
SPAWNED = next(block for block in PYTHON if "spawned" in block.section)


@pytest.mark.slow
@pytest.mark.parametrize("command", [TORCHRUN, ()], ids=["torchrun", "by Lightning"])
def test_two_processes_end_with_the_same_pruned_network(command: tuple[str, ...], tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the example trains on scikit-learn's digits")
    (output,) = finish(start(tmp_path, *command, ROOT / "examples" / "ddp.py", "--epochs=4"))

    ranks = re.findall(r"^rank (\d): ([\d,]+) of ([\d,]+) parameters, weights (\w+)$", output, re.MULTILINE)
    assert [rank for rank, *_ in ranks] == ["0", "1"]
    assert ranks[0][1:] == ranks[1][1:]
    after, before = (int(number.replace(",", "")) for number in ranks[0][1:3])
    assert 0.4 * before < after < 0.55 * before
    accuracy = re.findall(r"^validation accuracy ([\d.]+)%$", output, re.MULTILINE)
    assert len(accuracy) == 1
    assert float(accuracy[0]) > 85
    assert output.count("accuracy before") == 1  # the head of the table of events


def test_the_code_of_the_page_runs() -> None:
    names = {"__name__": "page", "model": mlp(16, 32, 3)}
    for block in PYTHON:
        exec(block.code, names)

    assert names["strategy"]._timeout.total_seconds() == 3600
    assert names["plan"].channels_removed > 0


@pytest.mark.slow
def test_the_pruned_network_comes_back_from_the_processes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SPAWNED.code, encoding="utf-8")

    (output,) = finish(start(tmp_path, script))

    width = re.search(r"Linear\(in_features=16, out_features=(\d+), bias=True\)", output)
    assert width is not None
    assert int(width[1]) == 32
