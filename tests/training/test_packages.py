"""The callback works under Trainers of both packages, ``lightning`` and ``pytorch_lightning``, and does the same."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import fitting
import lightning.pytorch as pl
import pytest
import torch
from fitting import assert_same, make_loader
from pages import ROOT
from processes import HANG, finish, start

from lightning_coreset import CoresetPruningCallback, PrunedCheckpointMixin, load_pruned
from lightning_coreset.training.packages import is_overridden, kinds

other = pytest.importorskip("pytorch_lightning")

NAMES = {"lightning.pytorch": "pytorch_lightning", "lightning.fabric": "lightning_fabric"}
ERRORS = "lightning.fabric.utilities.exceptions"
"""This package raises the errors of ``lightning`` under both."""


def translated(text: str) -> str:
    """The text of a test module, for the other package."""
    kept = "KEPT"
    text = text.replace(ERRORS, kept)
    for name, translation in NAMES.items():
        text = text.replace(name, translation)
    return text.replace("import lightning as L", "import pytorch_lightning as L").replace(kept, ERRORS)


@pytest.fixture(scope="module")
def twin():
    """``fitting`` for the other package."""
    source = translated(Path(fitting.__file__).read_text(encoding="utf-8"))
    module = type(fitting)("fitting_of_the_other_package")
    exec(compile(source, fitting.__file__, "exec"), vars(module))
    return module


def test_a_callback_of_both_packages():
    callback = CoresetPruningCallback()
    assert isinstance(callback, pl.Callback)
    assert isinstance(callback, other.Callback)
    assert pickle.loads(pickle.dumps(CoresetPruningCallback)) is CoresetPruningCallback


@pytest.mark.slow
def test_both_trainers_do_the_same(twin, tmp_path):
    seen = []
    for fits, package in ((fitting, pl), (twin, other)):
        torch.manual_seed(0)
        pruning = CoresetPruningCallback(0.5, schedule={1: 0.3, 2: 0.5}, max_drop=0.5, verbose=False)
        watcher = fits.Watcher()
        saving = package.callbacks.ModelCheckpoint(tmp_path / package.__name__, save_last=True)
        trainer = fits.make_trainer(pruning, watcher, saving, max_epochs=4, enable_checkpointing=True)
        module = fits.Validated()
        assert isinstance(module, package.LightningModule)
        trainer.fit(module, make_loader(8), make_loader(8))
        assert [record.epoch for record in pruning.history] == [1, 2]
        seen.append((watcher.weights, pruning.history.to_dicts()))
    for one, same in zip(seen[0][0], seen[1][0], strict=True):
        assert_same(one, same)
    assert seen[0][1] == seen[1][1]


def test_checkpoints_of_the_other_package(twin, tmp_path):
    class Mixed(PrunedCheckpointMixin, twin.Classifier):
        pass

    def trainer(epochs: int):
        events = {epoch: ratio for epoch, ratio in {1: 0.3, 2: 0.5}.items() if epoch < epochs}
        return twin.make_trainer(CoresetPruningCallback(schedule=events, verbose=False), max_epochs=epochs)

    first, whole, resumed = (Mixed() for _ in range(3))
    for module in (whole, resumed):
        module.load_state_dict(first.state_dict())
    (begun := trainer(2)).fit(first, make_loader(8))
    begun.save_checkpoint(tmp_path / "first.ckpt")
    trainer(4).fit(whole, make_loader(8))
    trainer(4).fit(resumed, make_loader(8), ckpt_path=tmp_path / "first.ckpt")
    assert_same(resumed.state_dict(), whole.state_dict())
    for loaded in (
        load_pruned(twin.Classifier, tmp_path / "first.ckpt"),
        Mixed.load_from_checkpoint(tmp_path / "first.ckpt"),
    ):
        assert_same(loaded.state_dict(), first.state_dict())


def test_methods_are_looked_up_in_their_own_package(twin):
    for module in (fitting.Validated(), twin.Validated()):
        assert is_overridden("validation_step", module)
        assert not is_overridden("predict_step", module)
    assert len(kinds("strategies.DDPStrategy")) == 2


@pytest.mark.slow
def test_without_the_other_package():
    """It is imported where it is installed only, and a broken one is as good as none."""
    code = (
        "import sys; sys.modules['pytorch_lightning'] = None\n"
        "import lightning.pytorch as pl\n"
        "from lightning_coreset import CoresetPruningCallback\n"
        "assert isinstance(CoresetPruningCallback(), pl.Callback)\n"
        "from lightning_coreset.training.packages import kinds\n"
        "assert len(kinds('Callback')) == 1\n"
    )
    finish(start("-c", code, cwd=ROOT))


TRANSLATED = (
    *("test_callback.py", "test_checkpoint.py", "test_resume.py", "test_cli.py", "test_dry_run.py", "loops"),
    *(f"training/test_{name}.py" for name in "guard averaged_models event features strategies ddp spawn".split()),
    *(f"training/report/test_{name}.py" for name in ("outlets", "tensorboard", "scalars")),
)


@pytest.mark.slow
def test_the_tests_pass_for_the_other_package(tmp_path):
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name in ("docs", "examples", "lightning_coreset"):
        (tmp_path / name).symlink_to(ROOT / name)
    for path in (tmp_path / "tests").rglob("*.py"):
        path.write_text(translated(path.read_text(encoding="utf-8")), encoding="utf-8")
    paths = [f"tests/{name}" for name in TRANSLATED]
    finish(start("-m", "pytest", "-q", "-p", "no:cacheprovider", *paths, cwd=tmp_path), seconds=HANG)


@pytest.mark.slow
@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_messages_of_the_trainer_keep_the_logger_of_the_package_that_the_project_imported(package):
    """Whoever wants no messages of Lightning sets the level of that logger; importing both moves them to the other."""
    code = (
        f"import logging, {package} as pl\n"
        "import lightning_coreset\n"
        f"logging.getLogger('{package}').setLevel(logging.WARNING)\n"
        "pl.Trainer(accelerator='cpu', logger=False, enable_checkpointing=False)\n"
    )
    (output,) = finish(start("-c", code, cwd=ROOT))
    assert output == ""
