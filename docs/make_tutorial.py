"""Run the code of ``docs/tutorial.md`` and write what it prints into the page; or write the page as a notebook.

    python docs/make_tutorial.py                         # run it, and write the outputs and the picture
    python docs/make_tutorial.py --notebook FILE.ipynb   # the notebook, without running it; the site offers the same

The page is the only source: a ``python`` block is a cell, a ``text`` block behind it is what the cell prints, and a
picture behind it is what the cell draws. Needs what ``pip install ".[docs,tutorial]"`` installs; takes a minute.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "tutorial.md"

_CODE = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?", re.M | re.S)
_PICTURE = re.compile(r"\s*!\[[^\]]*\]\((?P<file>[^)]+)\)\n")
_LINK = re.compile(r"\[([^\]]+)\]\(([\w/]+)\.md[^)]*\)")
_DOWNLOAD = re.compile(r"<a [^>]*>([^<]*)</a>")


@dataclass(frozen=True)
class Part:
    """A part of the page: Markdown, or code and what it prints.

    Attributes:
        text: Markdown, or the code of a cell.
        is_code: Which of the two.
        output: What the cell prints, empty for nothing.
    """

    text: str
    is_code: bool = False
    output: str = ""


def parts_of(page: str) -> list[Part]:
    """The text and the cells of a page, in order."""
    parts, end = [], 0
    for block in _CODE.finditer(page):
        parts += [Part(page[end : block.start()]), Part(block["code"], True, block["output"] or "")]
        end = block.end()
    return [*parts, Part(page[end:])]


def page_of(parts: list[Part]) -> str:
    """The reverse of :func:`parts_of`."""

    def fences(part: Part) -> Iterator[str]:
        yield f"```python\n{part.text}```\n"
        if part.output:
            yield f"\n```text\n{part.output}```\n"

    return "".join("".join(fences(part)) if part.is_code else part.text for part in parts)


def run(parts: list[Part], folder: Path) -> list[Part]:
    """Run the cells one after another in a folder, and give them what they print."""
    names: dict[str, Any] = {"__name__": "__main__"}
    done, here = [], Path.cwd()
    os.chdir(folder)
    try:
        for part in parts:
            if part.is_code:
                printed = io.StringIO()
                with redirect_stdout(printed):
                    exec(compile(part.text, PAGE.name, "exec", dont_inherit=True), names)
                lines = [line.rstrip() + "\n" for line in printed.getvalue().splitlines()]
                part = replace(part, output="".join(lines))
            done.append(part)
    finally:
        os.chdir(here)
    return done


def notebook_of(parts: list[Part]) -> dict[str, Any]:
    """The page as a notebook, format 4.5, with its outputs."""
    cells: list[dict[str, Any]] = []
    for number, part in enumerate(parts):
        if not part.is_code and not part.text.strip():
            continue
        cell: dict[str, Any] = {"id": f"cell-{number}", "metadata": {}}
        if part.is_code:
            outputs = [{"output_type": "stream", "name": "stdout", "text": part.output}] if part.output else []
            cell |= {"cell_type": "code", "execution_count": None, "source": part.text.rstrip(), "outputs": outputs}
        else:
            text = _PICTURE.sub("\n", part.text)
            if picture := _PICTURE.match(part.text):  # right behind a cell: what it draws
                svg = (DOCS / picture["file"]).read_text(encoding="utf-8")
                data = {"image/svg+xml": svg}
                cells[-1]["outputs"].append({"output_type": "display_data", "data": data, "metadata": {}})
            text = _LINK.sub(r"\1 (docs/\2.md)", _DOWNLOAD.sub(r"\1", text))
            cell |= {"cell_type": "markdown", "source": text.strip()}
        cells.append(cell)
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def write_notebook(path: Path) -> None:
    """Write the notebook of the page as it is."""
    parts = parts_of(PAGE.read_text(encoding="utf-8"))
    path.write_text(json.dumps(notebook_of(parts), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Run the page, or write the notebook."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--notebook", type=Path, metavar="FILE", help="write the notebook instead")
    args = parser.parse_args()
    if args.notebook:
        write_notebook(args.notebook)
        return
    sys.path.insert(0, str(DOCS.parent))
    os.environ["MPLBACKEND"] = "svg"
    from drawing import panels, save
    from matplotlib import pyplot as plt

    panels(1)  # sets how pictures of the site are drawn
    plt.close("all")
    with tempfile.TemporaryDirectory() as folder:
        parts = run(parts_of(PAGE.read_text(encoding="utf-8")), Path(folder))
    PAGE.write_text(page_of(parts), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(DOCS.parent)}")
    save(plt.gcf(), "tutorial.svg")


if __name__ == "__main__":
    main()
