"""docs/tutorial.md: its code runs, as a script and as a notebook, and prints what the page shows.

Numbers depend on versions and machines, so that only what stands around them is compared.
"""

from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path

import pytest
from pages import ROOT
from processes import finish, start
from scripts import load_script

PAGE = ROOT / "docs" / "tutorial.md"


maker = load_script("docs/make_tutorial.py")
PARTS = maker.parts_of(PAGE.read_text(encoding="utf-8"))


def shape(output: str) -> list[str]:
    """The lines of an output without numbers, without the widths of columns, and equal neighbours once."""
    lines = [re.sub(r"-?\d[\d,.]*%?", "#", line).replace("taken back", "") for line in output.splitlines()]
    return [line for line, _ in groupby(" ".join(line.replace("---", "").split()) for line in lines)]


def shown(cells: list) -> list[list[str]]:
    return [shape(output) for output in cells]


def test_the_page_is_its_parts_and_the_notebook_has_its_code(tmp_path: Path) -> None:
    assert maker.page_of(PARTS) == PAGE.read_text(encoding="utf-8")

    maker.write_notebook(tmp_path / "tutorial.ipynb")
    cells = json.loads((tmp_path / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell["source"] + "\n" for cell in cells if cell["cell_type"] == "code"]
    assert code == [part.text for part in PARTS if part.is_code]
    assert len(code) > 10
    text = "\n".join(cell["source"] for cell in cells if cell["cell_type"] == "markdown")
    assert not re.search(r"```|<a |\]\(\w", text)  # no links between pages, which a notebook elsewhere has not
    pictures = [output for cell in cells for output in cell.get("outputs", []) if "data" in output]
    assert len(pictures) == 1


@pytest.mark.slow
def test_the_page_shows_what_its_code_prints(tmp_path: Path) -> None:
    for needed in ("matplotlib", "onnxruntime", "onnxscript", "sklearn"):
        pytest.importorskip(needed, reason="the tutorial uses it")
    # In a process of its own, since it fills a notebook's namespace, filters warnings and sets threads.
    code = (
        "import json, sys; sys.path[:0] = sys.argv[1:3]; import make_tutorial as maker; from pathlib import Path\n"
        "parts = maker.run(maker.parts_of(maker.PAGE.read_text()), Path.cwd())\n"
        "print('OUTPUTS', json.dumps([part.output for part in parts if part.is_code]))\n"
    )
    (output,) = finish(start("-c", code, ROOT, ROOT / "docs", cwd=tmp_path))
    outputs = json.loads(output.partition("OUTPUTS ")[2])

    assert shown(outputs) == shown([part.output for part in PARTS if part.is_code]), (
        "docs/tutorial.md is out of date: python docs/make_tutorial.py writes what its code prints"
    )


@pytest.mark.slow
def test_the_notebook_runs_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for needed in ("ipykernel", "matplotlib", "onnxruntime", "onnxscript", "sklearn"):
        pytest.importorskip(needed, reason="the tutorial uses it")
    nbclient = pytest.importorskip("nbclient", reason="it runs notebooks")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    maker.write_notebook(tmp_path / "tutorial.ipynb")
    notebook = nbformat.read(tmp_path / "tutorial.ipynb", as_version=4)
    nbformat.validate(notebook)

    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()

    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    printed = ["".join(o.text for o in cell.outputs if o.get("name") == "stdout") for cell in cells]
    assert shown(printed) == shown([part.output for part in PARTS if part.is_code])
    drawn = [cell for cell in cells if any("image/png" in o.get("data", {}) for o in cell.outputs)]
    assert len(drawn) == 1
