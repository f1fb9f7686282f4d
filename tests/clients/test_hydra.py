"""Hydra: the callback from a config, whose lists and dicts are OmegaConf's ListConfig and DictConfig."""

from __future__ import annotations

import pytest

pytest.importorskip("hydra")
import torch
from fitting import Classifier, make_loader, make_trainer, mlp
from hydra.utils import instantiate
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, ListConfig, OmegaConf

from lightning_coreset import CoresetPruningCallback, load_pruned

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings("ignore")]

CONFIG = """
_target_: lightning_coreset.CoresetPruningCallback
verbose: false
"""


def built(text: str) -> CoresetPruningCallback:
    return instantiate(OmegaConf.create(CONFIG + text))


@pytest.mark.parametrize(
    ("text", "widths"),
    [
        ("pruning_ratio: 0.5\nunit: channels\nignore: [net.0]\nschedule: one_shot\nstart: 1", (32, 12)),
        ("pruning_ratio: {net.0: 0.5, net.2: 0.25}\nunit: channels\nschedule: one_shot\nstart: 1", (16, 18)),
        ("schedule: {1: 0.25, 2: 0.5}\nunit: channels\nonly: [net.0, 'net.2']", None),
        (
            "schedule: {_target_: lightning_coreset.PruningSchedule, curve: linear, start: 1, end: 2}\nunit: channels",
            None,
        ),
    ],
    ids=["ListConfig", "DictConfig", "schedule", "PruningSchedule"],
)
def test_arguments_from_a_config(text, widths, tmp_path):
    callback = built(text)
    assert isinstance(OmegaConf.create("a: [1]").a, ListConfig)
    assert isinstance(OmegaConf.create("a: {b: 1}").a, DictConfig)
    trainer, module = (
        make_trainer(callback, max_epochs=4, logger=TensorBoardLogger(tmp_path)),
        Classifier(mlp(8, 32, 24, 3)),
    )
    trainer.fit(module, make_loader(8))
    found = (module.net[0].out_features, module.net[2].out_features)
    assert found == widths if widths else sum(found) == 28
    trainer.save_checkpoint(tmp_path / "last.ckpt")  # plain data, whatever the arguments were
    loaded = load_pruned(Classifier, tmp_path / "last.ckpt", net=mlp(8, 32, 24, 3))
    x = torch.randn(5, 8)
    assert torch.equal(loaded.eval()(x), module.eval()(x))


def test_what_is_wrong_in_a_config_is_said_in_words():
    with pytest.raises(Exception, match=r"Expected pruning_ratio to be .* but got 1\.5"):
        built("pruning_ratio: 1.5")
    with pytest.raises(Exception, match="Expected ignore to be a sequence of rules"):
        built("ignore: net.0")
