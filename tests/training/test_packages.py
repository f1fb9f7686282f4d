"""A Trainer of the other package gets a clear error at the first hook, whatever it is asked to do."""

from __future__ import annotations

import copy

import pytest
import torch
from fitting import assert_same, make_loader, mlp
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_coreset import CoresetPruningCallback
from lightning_coreset.checkpoint import is_resizable

other = pytest.importorskip("pytorch_lightning")


class Foreigner(other.LightningModule):
    """A module of the package ``pytorch_lightning``."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 32, 3)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class Subclassed(other.Trainer):
    """What a user's own project may have."""


@pytest.mark.parametrize("kind", [other.Trainer, Subclassed])
@pytest.mark.parametrize(("function", "loaders"), [("fit", 2), ("validate", 1)])
def test_the_error_names_both_packages_and_the_way_out(kind: type, function: str, loaders: int) -> None:
    module = Foreigner()
    before = copy.deepcopy(module.state_dict())
    trainer = kind(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[CoresetPruningCallback()],
    )
    with pytest.raises(MisconfigurationException, match="package lightning but got one of pytorch_lightning") as error:
        getattr(trainer, function)(module, *[make_loader(8)] * loaders)
    assert "Replace `import pytorch_lightning as pl` by `import lightning.pytorch as pl`" in str(error.value)
    assert_same(module.state_dict(), before)
    assert not is_resizable(module)
