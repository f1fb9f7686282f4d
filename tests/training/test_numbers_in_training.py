"""Numbers that a network remembers, in a training run: at every event, in checkpoints, after a rollback."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from fitting import Classifier, Watcher, assert_same, make_loader
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

from lightning_coreset import CoresetPruningCallback
from lightning_coreset.training.progress import Progress

pytestmark = pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")


@dataclass
class Config:
    width: int = 32
    classes: int = 3


class Net(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.parts = config, [12, 12]
        self.a, self.b, self.c = nn.Linear(8, config.width), nn.Linear(config.width, 24), nn.Linear(24, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).view(len(x), self.config.width).relu()
        first, second = self.b(x).relu().split(self.parts, 1)
        return self.c(torch.cat([second, first], 1))


CONFIG = Config()


def module() -> Classifier:
    torch.manual_seed(0)
    return Classifier(Net(CONFIG))


def numbers(pl_module: pl.LightningModule) -> tuple[int, list[int]]:
    net = pl_module.net
    width, parts = net.config.width, list(net.parts)
    assert (net.a.out_features, net.b.out_features) == (width, sum(parts))
    assert Config() == CONFIG, "the user's own config was changed"
    return width, parts


class Seen(pl.Callback):
    def __init__(self) -> None:
        self.numbers: list[tuple[int, list[int]]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.numbers.append(numbers(pl_module))


EVENTS = {1: 0.3, 3: 0.6}


def pruning(**options: object) -> CoresetPruningCallback:
    return CoresetPruningCallback(**{"schedule": EVENTS, "verbose": False} | options)


@pytest.mark.slow
def test_every_event_changes_them(make_trainer):
    seen, callback = Seen(), pruning()
    make_trainer(callback, seen, max_epochs=4).fit(module(), make_loader(8))
    before, first, _, second = seen.numbers
    assert before == (32, [12, 12])
    assert 32 > first[0] > second[0]
    assert 12 > first[1][0] == first[1][1] > second[1][0] == second[1][1]
    for plan in callback.plans:
        assert {change.name for change in plan.attributes} == {"config.width", "parts[0]", "parts[1]"}


class Pieces(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sizes = [8, 16]
        self.a, self.b, self.c = nn.Linear(8, 24), nn.Linear(8, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.a(x).relu().split(self.sizes, 1)
        return self.b(first) + self.c(second)


@pytest.mark.slow
def test_unequal_pieces_change_at_every_event(make_trainer):
    seen: list[list[int]] = []

    class Sizes(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen.append(pl_module.net.sizes)

    make_trainer(pruning(), Sizes(), max_epochs=4).fit(Classifier(Pieces()), make_loader(8))
    assert seen[0] == [8, 16]
    assert all(before > after for before, after in zip(seen[0], seen[1], strict=True))
    assert all(before > after for before, after in zip(seen[1], seen[3], strict=True))


def test_the_switch(make_trainer):
    with (
        pytest.warns(UserWarning, match="since a trial on a copy failed"),
        pytest.raises(ValueError, match="written as a number"),
    ):
        make_trainer(pruning(change_attributes=False), max_epochs=4).fit(module(), make_loader(8))


class Saver(pl.Callback):
    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.directory / f"{trainer.current_epoch}.ckpt")


@pytest.mark.slow
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(make_trainer, tmp_path):
    loader, watcher = make_loader(8), Watcher()
    whole = module()
    make_trainer(pruning(), Saver(tmp_path), watcher, max_epochs=5).fit(whole, loader)
    resumed, again, callback = module(), Watcher(), pruning()
    make_trainer(callback, again, max_epochs=5).fit(resumed, loader, ckpt_path=tmp_path / "1.ckpt")
    assert numbers(resumed) == numbers(whole)
    assert_same(resumed.state_dict(), whole.state_dict())
    assert len(callback.plans) == 2


@pytest.mark.parametrize("averaging", [False, True])
@pytest.mark.slow
def test_a_rollback_takes_them_back(make_trainer, averaging):
    class Scored(Classifier):
        def validation_step(self, batch, batch_idx) -> None:
            self.log("score", 1.0 if self.net.a.out_features == 32 else 0.0)

    model, seen = Scored(Net(CONFIG)), Seen()
    callback = pruning(schedule={1: 0.5}, monitor="score", max_drop=0.1, recover_epochs=1)
    averages = [WeightAveraging()] if averaging else []
    with pytest.warns(UserWarning, match="is taken back"):
        make_trainer(callback, seen, *averages, max_epochs=4).fit(model, make_loader(8), make_loader(8))
    assert len({width for width, _ in seen.numbers}) == 2
    assert numbers(model) == (32, [12, 12])


@pytest.mark.slow
def test_an_event_that_fails_leaves_them(make_trainer):
    class Failing(CoresetPruningCallback):
        def on_prune(self, *_: object) -> None:
            raise RuntimeError("in the middle")

    model = module()
    with pytest.raises(RuntimeError, match="in the middle"):
        make_trainer(Failing(schedule={1: 0.5}, verbose=False), max_epochs=2).fit(model, make_loader(8))
    assert model.net.config is CONFIG
    assert numbers(model) == (32, [12, 12])


def test_a_dry_run_finds_them(make_trainer):
    model = module()
    trainer = make_trainer(max_epochs=4)
    plans = pruning(example_inputs=torch.randn(2, 8)).dry_run(trainer, model).plans
    assert [{change.name for change in plan.attributes} for plan in plans.values()] == [
        {"config.width", "parts[0]", "parts[1]"}
    ] * 2
    assert model.net.config is CONFIG


@pytest.mark.slow
def test_progress_keeps_them_for_the_next_events(make_trainer):
    callback = pruning()
    make_trainer(callback, max_epochs=4).fit(module(), make_loader(8))
    state = copy.deepcopy(callback.state_dict())
    found = Progress.from_dict({key: state[key] for key in (*VERSION_0_1, "completions")}).completions
    counts = {name: completion.counts for name, completion in found.items()}
    assert {name: {(count.module, count.name, count.per_class) for count in each} for name, each in counts.items()} == {
        "net.a": {("net", "config.width", 1)},
        "net.b": {("net", "parts[0]", 1), ("net", "parts[1]", 1)},
    }
    assert Progress.from_dict({key: state[key] for key in VERSION_0_1}).completions == {}


VERSION_0_1 = ("plans", "done", "original", "final_sizes", "unsound", "history")
