"""The latest validation batches are kept, with any loaders, and few others are copied."""

from __future__ import annotations

import pytest
import torch
from breadth import crossed
from fitting import Classifier, mlp
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_coreset import CoresetPruningCallback
from lightning_coreset.nested import map_tensors
from lightning_coreset.training.metrics import logged, recorder

KEPT = 3
Y = torch.tensor([0, 1, 2])


def numbered(first, batches):
    """Batches with different numbers."""
    x = torch.arange(first, first + batches).repeat_interleave(3)[:, None].expand(-1, 8)
    return TensorDataset(x.float(), Y.repeat(batches))


class Endless(IterableDataset):
    """Does not know its length."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        return iter(self.dataset)


def loader(first, batches, endless=False):
    dataset = numbered(first, batches)
    return DataLoader(Endless(dataset) if endless else dataset, batch_size=3)


def together(mode):
    """Every batch is one of each loader."""
    return CombinedLoader([loader(0, 9), DataLoader(torch.zeros(5))], mode)


LOADERS = {
    "one": lambda: loader(0, 9),
    "short": lambda: loader(0, 2),
    "endless": lambda: loader(0, 9, endless=True),
    "two": lambda: [loader(0, 9), loader(100, 9)],
    "long-short": lambda: [loader(0, 9), loader(100, 2)],
    "short-long": lambda: [loader(0, 2), loader(100, 9)],
    "three-short": lambda: [loader(0, 1), loader(100, 1), loader(200, 1), loader(300, 1)],
    "endless-short": lambda: [loader(0, 9, endless=True), loader(100, 2)],
    "short-endless": lambda: [loader(0, 6), loader(100, 2, endless=True)],
    "min-size": lambda: together("min_size"),
    "max-size": lambda: together("max_size_cycle"),
}
TRAINERS = {
    "plain": {},
    "sanity": {"num_sanity_val_steps": 2},
    "whole-sanity": {"num_sanity_val_steps": -1},
    "limited": {"limit_val_batches": 4},
    "hardly limited": {"limit_val_batches": 50},
    "often": {"val_check_interval": 0.5},
    "single": {"fast_dev_run": True},
    "reloading": {"reload_dataloaders_every_n_epochs": 1},
}


class Validated(Classifier):
    """Keeps what the batches of all validation steps are."""

    def __init__(self):
        super().__init__(mlp(8, 8, 3))
        self.seen = []

    def show(self, batch):
        x = inputs(batch)
        self.seen.append(number(x))
        self.net(x)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.show(batch)

    def on_validation_epoch_end(self):
        self.log("score", 0.0)

    def on_validation_end(self):
        """The callback has had its turn before."""
        self.check(self.trainer.callbacks[0])

    def check(self, callback):
        assert kept(callback) == self.seen[-KEPT:]


class Fetching(Validated):
    """Fetches its batches itself."""

    def validation_step(self, dataloader_iter):
        batch, _, _ = next(dataloader_iter)
        self.show(batch)


class Idle(Validated):
    """Some of its steps call no network: those of one loader, and others."""

    def __init__(self, idle):
        super().__init__()
        self.idle = idle

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        if not self.idle(batch_idx, dataloader_idx):
            self.show(batch)


def kept(callback):
    monitor = callback._monitor
    if monitor._logged is None:
        return [number(args[0]) for args, _, _ in monitor._probe._kept]
    return [number(inputs(batch)) for batch, _, _ in monitor._logged._kept]


def copies_made_by(monkeypatch, *modules):
    """A list that grows by what these modules copy."""
    copies = []

    def counting(function, tree):
        if function is torch.clone:
            copies.append(tree)
        return map_tensors(function, tree)

    for module in modules:
        monkeypatch.setattr(module, "map_tensors", counting)
    return copies


def inputs(batch):
    first, *_ = batch
    return first if isinstance(first, torch.Tensor) else first[0]  # of loaders whose batches come together


def number(x):
    return float(x[0, 0])


def pruning(monitor=None):
    return CoresetPruningCallback(monitor=monitor, eval_batches=KEPT, schedule={0: 0.1}, verbose=False)


def fit(make_trainer, model, loaders, monitor=None, callback=None, **options):
    callback = callback or pruning(monitor)
    trainer = make_trainer(callback, **({"max_epochs": 3} | options))
    trainer.fit(model, loader(0, 4), loaders)
    return model


@pytest.mark.parametrize(("loaders", "options", "monitor"), crossed(LOADERS, TRAINERS, [None, "score"]))
@pytest.mark.filterwarnings("ignore:.*`IterableDataset`", "ignore:.*removed no channel")
def test_the_latest_batches_are_kept(make_trainer, loaders, options, monitor):
    assert len(fit(make_trainer, Validated(), LOADERS[loaders](), monitor, **TRAINERS[options]).seen) > 0


@pytest.mark.filterwarnings("ignore:.*dataloader_iter")
def test_a_step_that_fetches_its_batch_itself(make_trainer):
    assert len(fit(make_trainer, Fetching(), loader(0, 9)).seen) == 27


@pytest.mark.parametrize(
    "idle",
    [lambda batch, loader: loader == 1, lambda batch, loader: batch % 2, lambda batch, loader: batch > 1],
    ids=["a loader", "every other", "all but the first"],
)
@pytest.mark.slow
def test_steps_that_call_no_network(make_trainer, idle):
    fit(make_trainer, Idle(idle), [loader(0, 9), loader(100, 9)])


@pytest.mark.parametrize(
    ("monitor", "expected"),
    [(None, 90 + 2 * (KEPT + 1)), ("score", 3 * (KEPT + 1))],
    ids=["all of the first validation, which shows what steps do", "score"],
)
@pytest.mark.slow
def test_other_batches_are_not_copied(make_trainer, monkeypatch, monitor, expected):
    copies = copies_made_by(monkeypatch, recorder, logged)

    fit(make_trainer, Validated(), loader(0, 90), monitor)

    assert len(copies) == expected


def test_a_step_that_calls_no_network_for_the_first_time(make_trainer):
    model = Idle(lambda batch, loader: model.current_epoch == 1 and batch in (2, 7, 8))

    fit(make_trainer, model, loader(0, 9))

    assert len(model.seen) == 3 * 9 - 3


@pytest.mark.parametrize("monitor", [None, "loss"])
@pytest.mark.slow
def test_training_batches_where_there_is_no_validation(make_trainer, monitor):
    class Trained(Validated):
        def training_step(self, batch, batch_idx):
            self.seen.append(number(batch[0]))
            return super().training_step(batch, batch_idx)

        def on_train_epoch_end(self):
            self.check(self.trainer.callbacks[0])

    callback = pruning(monitor)
    fit(make_trainer, Validated(), loader(0, 90), callback=callback)  # its indices say nothing about what follows

    assert len(fit(make_trainer, Trained(), loader(0, 9), callback=callback, limit_val_batches=0).seen) == 12


def test_several_networks_in_a_row_are_not_called_again(make_trainer, monkeypatch):
    """So their inputs are not copied, once that is known."""

    class Chained(Validated):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = self.net[:2], self.net[2]

        def check(self, callback):
            assert kept(callback) == []

        def show(self, batch):
            self.head(self.encoder(batch[0]))

    copies = copies_made_by(monkeypatch, recorder)

    fit(make_trainer, Chained(), loader(0, 9))

    assert len(copies) == 2  # in the first step
