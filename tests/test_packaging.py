"""The wheel is complete, imports only what it declares, and the README's code runs.

The other tests test the source tree (``pythonpath`` in pyproject.toml); the wheel is built and imported here.
"""

from __future__ import annotations

import ast
import os
import re
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import processes
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_coreset

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_coreset"
RUNTIME = {"torch", "lightning", "torchmetrics", "tensorboard"}
# For the pictures drawn for TensorBoard; and what is used if it is there.
DRAWING = {"numpy", "PIL"}
OPTIONAL = {"console.py": {"rich"}, "history.py": {"pandas"}}
CLIENTS = ("clients-adapters", "clients-forecasting", "clients-graphs", "clients-science", "clients-vision")
EXTRAS = {
    "benchmarks",
    "cli",
    "clients",
    "clients-adapters",
    "clients-forecasting",
    "clients-graphs",
    "clients-science",
    "clients-vision",
    "dev",
    "docs",
    "examples",
    "huggingface",
    "test",
    "tutorial",
}
MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    processes.finish(processes.start("-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT))
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_wheel_holds_the_whole_package_and_nothing_beside_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    assert files == {path.relative_to(ROOT).as_posix() for path in [*PACKAGE.rglob("*.py"), PACKAGE / "py.typed"]}
    assert len(licences) == 1


@pytest.mark.slow
def test_every_module_imports_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    code = """
import importlib, pkgutil, sys
import lightning_coreset
names = [m.name for m in pkgutil.walk_packages(lightning_coreset.__path__, "lightning_coreset.")]
for module in [lightning_coreset, *map(importlib.import_module, names)]:
    assert module.__file__.startswith(sys.argv[1]), module.__file__
"""
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    processes.finish(processes.start("-c", code, wheel, cwd=tmp_path, env=environment))


def test_metadata_names_the_runtime_dependencies_and_the_extras(metadata: Message) -> None:
    required = [text for text in metadata.get_all("Requires-Dist", []) if "extra ==" not in text]
    assert {re.split(r"[^\w-]", text)[0] for text in required} == RUNTIME | {"numpy", "pillow"}
    assert set(metadata.get_all("Provides-Extra", [])) == EXTRAS
    assert metadata["Name"] == "lightning-coreset"
    assert metadata["Version"] == lightning_coreset.__version__
    assert metadata.get_all("Project-URL") == ["Paper, https://arxiv.org/abs/2008.08316"]
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"


def test_the_installation_page_names_every_extra() -> None:
    page = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    assert {extra for extra in EXTRAS if f"`{extra}`" in page} == EXTRAS


def imported(path: Path) -> set[str]:
    """Return the top-level names that a source file imports, wherever in the file it does so."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in names}


def test_citation_names_the_version() -> None:
    assert f"\nversion: {lightning_coreset.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


# import-linter can forbid an outside package by its name, but it cannot allow only the ones listed: that is here.
def test_modules_import_only_what_their_package_may() -> None:
    for path in MODULES:
        package = path.relative_to(PACKAGE).parts[0]
        allowed = RUNTIME if package in {"training", "callback.py"} else {"torch"}
        if package == "huggingface":  # only inside of functions that are given models of it
            allowed = allowed | {"transformers"}
        if path.parts[-2:] == ("latency", "progress.py"):  # inside of a function that does without
            allowed = allowed | {"tqdm"}
        if package == "checkpoint":  # only inside of functions that are given its files
            allowed = allowed | {"safetensors"}
        if "report" in path.relative_to(PACKAGE).parts:
            allowed = allowed | OPTIONAL.get(path.name, DRAWING)
        assert imported(path) - set(sys.stdlib_module_names) - {"lightning_coreset"} <= allowed, path


def readme_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize("block", readme_blocks(), ids=lambda block: block.splitlines()[0])
def test_readme_code_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the Trainer writes its logs to the working directory
    code = compile(block, "README.md", "exec")
    exec(code, {"__name__": "readme", **what_the_reader_has()})


def what_the_reader_has() -> dict[str, object]:
    """Return the names that the README's code takes for granted: a model and data to train it on."""
    import lightning as L

    class LitModel(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).float().mean())

        test_step = validation_step

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    data = TensorDataset(torch.randn(64, 8), torch.randint(0, 3, (64,)))
    loader = DataLoader(data, batch_size=32)
    model = LitModel()
    loaders = dict.fromkeys(("train_loader", "val_loader", "test_loader"), loader)
    return {"model": model, **loaders, "network": model.net, "x": data[:4][0]}
