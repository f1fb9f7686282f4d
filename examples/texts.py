"""Texts to classify: docstrings of installed libraries, or a data set of your own.

``docstrings()`` needs no download: it reads the source files of installed libraries, and the label of a docstring is
its library. ``dataset()`` loads anything that the package ``datasets`` can load.
"""

from __future__ import annotations

import ast
import random
import warnings
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

LIBRARIES = ("numpy", "scipy", "sklearn", "torch")
SHORTEST = 80  # characters; shorter docstrings say too little to be classified
FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
Split = tuple[list[str], list[int]]


class Texts(NamedTuple):
    """Texts with labels from 0 to ``classes`` - 1."""

    train: Split
    test: Split
    classes: int


def docstrings(count: int) -> Texts:
    """Docstrings of the installed numpy, scipy, scikit-learn and torch.

    Args:
        count: Number of docstrings per library. One in five is for testing, from files not used for training.
    """
    texts = Texts(([], []), ([], []), len(LIBRARIES))
    for label, library in enumerate(LIBRARIES):
        files = sorted(_folder(library).rglob("*.py"))
        random.Random(0).shuffle(files)
        border = len(files) // 5
        for split, some, wanted in (
            (texts.test, files[:border], count // 5),
            (texts.train, files[border:], count - count // 5),
        ):
            found = list(islice(_long_docstrings(some), wanted))
            split[0].extend(found)
            split[1].extend([label] * len(found))
    return texts


def dataset(name: str, limit: int | None = None) -> Texts:
    """A data set with the columns ``text`` and ``label``; without a test split, a fifth is used for testing.

    Args:
        name: A name on the Hub, a folder written by ``save_to_disk``, or a csv, json or parquet file.
        limit: The largest number of texts per split.
    """
    try:
        import datasets  # type: ignore[import-not-found]
    except ImportError:
        raise SystemExit("--dataset needs the package datasets: pip install datasets") from None
    path = Path(name)
    if (path / "dataset_dict.json").exists() or (path / "state.json").exists():
        parts = datasets.load_from_disk(name)
    elif path.suffix in FORMATS:
        parts = datasets.load_dataset(FORMATS[path.suffix], data_files=name)
    else:
        parts = datasets.load_dataset(name)
    if isinstance(parts, dict) and "test" not in parts:
        parts = parts["train"]
    if not isinstance(parts, dict):
        parts = parts.train_test_split(test_size=0.2, seed=0)
    labels = {label: number for number, label in enumerate(sorted(set(parts["train"]["label"])))}
    return Texts(*(_split(parts[part].shuffle(seed=0), labels, limit) for part in ("train", "test")), len(labels))


def _folder(library: str) -> Path:
    spec = find_spec(library)  # imports nothing
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"The texts are docstrings of {', '.join(LIBRARIES)}, but {library} is not installed.")
    return Path(spec.submodule_search_locations[0])


def _long_docstrings(files: Iterable[Path]) -> Iterator[str]:
    """Yield each docstring once."""
    seen = set()
    for file in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # for example an invalid escape
                tree = ast.parse(file.read_text(encoding="utf-8"))
        except SyntaxError:  # written for another version of Python
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                text = ast.get_docstring(node) or ""
                if len(text) >= SHORTEST and text not in seen:
                    seen.add(text)
                    yield text


def _split(part: Any, labels: dict[Any, int], limit: int | None) -> Split:
    part = part.select(range(min(limit or len(part), len(part))))
    return list(part["text"]), [labels[label] for label in part["label"]]
