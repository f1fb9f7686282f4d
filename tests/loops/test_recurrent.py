"""Recurrent networks in training: they are pruned, resumed, and keep states from batch to batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fitting import Classifier, assert_same, make_loader, make_trainer, mlp
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_coreset import CoresetPruningCallback, load_pruned

SCHEDULE = {1: 0.2, 2: 0.4}


class Tagger(Classifier):
    """Two recurrent layers between a Linear and the classes."""

    def __init__(self) -> None:
        super().__init__(mlp(32, 24, 3))
        self.first, self.cell = nn.Linear(8, 12), nn.LSTM(12, 16, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.cell(self.first(x).relu())[0].mean(1))


class Stateful(Tagger):
    """Hidden states go on from batch to batch, as in truncated backpropagation through time."""

    def __init__(self) -> None:
        super().__init__()
        self.state: Any = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        out, state = self.cell(self.first(batch[0]).relu(), self.state)
        self.state = tuple(each.detach() for each in state)
        return nn.functional.cross_entropy(self.net(out.mean(1)), batch[1])


def pruning(**options: Any) -> CoresetPruningCallback:
    return CoresetPruningCallback(**({"schedule": SCHEDULE, "verbose": False, "ignore": ["net.*"]} | options))


@pytest.mark.slow
def test_units_go_and_training_goes_on() -> None:
    module, callback = Tagger(), pruning()
    trainer = make_trainer(callback, max_epochs=4)
    trainer.fit(module, make_loader(5, 8))
    assert len(callback.plans) == 2
    assert module.cell.hidden_size < 16
    (optimizer,) = trainer.optimizers
    for name, parameter in module.named_parameters():
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape, name


@pytest.mark.slow
def test_units_stay_whose_states_go_on_from_batch_to_batch() -> None:
    module = Stateful()
    make_trainer(pruning(schedule={1: 0.05}, ignore=[]), max_epochs=3).fit(module, make_loader(5, 8))
    assert module.cell.hidden_size == 16
    assert module.first.out_features < 12


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.slow
def test_a_checkpoint_of_a_recurrent_network_loads_and_resumes(tmp_path: Any) -> None:
    torch.manual_seed(0)
    whole, resumed = Tagger(), Tagger()
    resumed.load_state_dict(whole.state_dict())
    saving = [ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True) for _ in range(2)]
    make_trainer(pruning(), saving[0], max_epochs=4, enable_checkpointing=True).fit(whole, make_loader(5, 8))

    file = tmp_path / "epoch=1.ckpt"
    assert whole.cell.hidden_size < load_pruned(Tagger, file).cell.hidden_size < 16
    trainer = make_trainer(pruning(), saving[1], max_epochs=4, enable_checkpointing=True)
    trainer.fit(resumed, make_loader(5, 8), ckpt_path=file)
    assert_same(resumed.state_dict(), whole.state_dict())
