"""Pruning works with all other options of a Trainer, without a warning."""

from __future__ import annotations

import copy
import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from breadth import crossed, some_of, thinned
from fitting import (
    Classifier,
    MemoryLogger,
    Validated,
    count_params,
    make_loader,
    make_trainer,
    mlp,
    widths,
)
from lightning.pytorch import callbacks
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.tuner import Tuner
from networks import make
from torch import optim

from lightning_coreset import CoresetPruningCallback

Pruning = partial(CoresetPruningCallback, verbose=False)
ORIGINAL = count_params(Classifier())
CHANNEL = 36 / ORIGINAL  # of the first layer, the largest


def fit(module, *others, loader=None, ckpt_path=None, **options):
    trainer = make_trainer(*others, **({"max_epochs": 6} | options))
    loaders = [make_loader(8) if loader is None else loader] * (1 + isinstance(module, Validated))
    trainer.fit(module, *loaders, ckpt_path=ckpt_path)
    return trainer


def assert_pruned(module, ratio=0.5):
    assert 1 - count_params(module) / ORIGINAL == pytest.approx(ratio, abs=CHANNEL)
    widths(module)  # which checks that the modules know
    assert all(map(math.isfinite, module.losses))


# ---- options; the epoch of the last event, and the steps until the end

OPTIONS = {
    "fast_dev_run": ({"fast_dev_run": True}, 1),
    "fast_dev_run of three batches": ({"fast_dev_run": 3}, 3),
    "overfit_batches": ({"overfit_batches": 2}, 12),
    "overfit_batches, a fraction": ({"overfit_batches": 0.5}, 12),
    "limit_train_batches": ({"limit_train_batches": 3}, 18),
    "limit_train_batches, a fraction": ({"limit_train_batches": 0.5}, 12),
    "limit_val_batches": ({"limit_val_batches": 1}, 24),
    "no validation": ({"limit_val_batches": 0}, 24),
    "val_check_interval": ({"val_check_interval": 2}, 24),
    "val_check_interval, a fraction": ({"val_check_interval": 0.25}, 24),
    "val_check_interval over epochs": ({"val_check_interval": 6, "check_val_every_n_epoch": None}, 24),
    "check_val_every_n_epoch": ({"check_val_every_n_epoch": 4}, 24),
    "max_steps": ({"max_steps": 14}, 14),
    "max_steps without epochs": ({"max_epochs": -1, "max_steps": 14}, 14),
    "min_epochs": ({"min_epochs": 5}, 24),
    "sanity check": ({"num_sanity_val_steps": 2}, 24),
    "sanity check over all data": ({"num_sanity_val_steps": -1}, 24),
    "accumulation": ({"accumulate_grad_batches": 3}, 12),
    "clipping": ({"gradient_clip_val": 0.5}, 24),
    "reloaded loaders": ({"reload_dataloaders_every_n_epochs": 1}, 24),
    "anomaly detection": ({"detect_anomaly": True}, 24),
    "no_grad in validation": ({"inference_mode": False}, 24),
    "profiler": ({"profiler": SimpleProfiler()}, 24),
    "model summary": ({"enable_model_summary": True}, 24),
    "progress bar": ({"enable_progress_bar": True}, 24),
    "barebones": (
        {
            "barebones": True,
            "logger": None,
            "enable_checkpointing": None,
            "enable_progress_bar": None,
            "enable_model_summary": None,
            "log_every_n_steps": None,
            "num_sanity_val_steps": None,
        },
        24,
    ),
    "double precision": ({"precision": "64-true"}, 24),
    "bfloat16": ({"precision": "bf16-true"}, 24),
    "bfloat16 mixed": ({"precision": "bf16-mixed"}, 24),
}


class Quiet(Validated):
    """Logs nothing in a Trainer that has it not."""

    def log(self, *args: Any, **kwargs: Any) -> None:
        if not self.trainer.barebones:
            super().log(*args, **kwargs)


COMMON = (
    *("limit_train_batches, a fraction", "no validation", "val_check_interval, a fraction", "barebones"),
    "bfloat16 mixed",
)


@pytest.mark.parametrize("name", some_of(OPTIONS, *COMMON))
@pytest.mark.filterwarnings("ignore:.*barebones")
def test_options(name):
    options, steps = OPTIONS[name]
    module, callback = Quiet(), Pruning(0.5)

    trainer = fit(module, callback, **options)

    assert_pruned(module)
    assert trainer.global_step == steps
    assert callback.plans[-1].params_after == count_params(module)


@pytest.fixture
def deterministic_afterwards_no_more():
    """The Trainer sets it for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
@pytest.mark.usefixtures("deterministic_afterwards_no_more")
@pytest.mark.slow
def test_deterministic(name):
    network, example = make(name, torch.float32)
    module, callback = Classifier(network.train()), Pruning(0.3)

    fit(module, callback, loader=make_loader(*example.shape[1:]), max_epochs=3, deterministic=True)

    assert callback.plans[-1].params_after == count_params(module) < callback.plans[0].params_original
    assert all(map(math.isfinite, module.losses))


# ---- loggers


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: False,
        lambda folder: [],
        lambda folder: CSVLogger(folder),
        lambda folder: [TensorBoardLogger(folder), CSVLogger(folder), MemoryLogger()],
    ],
    ids=["False", "empty", "one", "several"],
)
def test_loggers(make, tmp_path):
    module = Validated()

    trainer = fit(module, Pruning(0.5), logger=make(tmp_path))

    assert_pruned(module)
    for logger in trainer.loggers:
        if isinstance(logger, MemoryLogger):
            assert logger.of("coreset/params")[-1][1] == count_params(module)
        if isinstance(logger, CSVLogger):
            assert "coreset/params" in (Path(logger.log_dir) / "metrics.csv").read_text().partition("\n")[0]


# ---- callbacks


CALLBACKS = [
    callbacks.LearningRateMonitor,
    callbacks.ModelSummary,
    callbacks.RichModelSummary,
    callbacks.RichProgressBar,
    callbacks.TQDMProgressBar,
    callbacks.Timer,
    partial(callbacks.GradientAccumulationScheduler, {2: 2, 4: 3}),
    partial(callbacks.EarlyStopping, "val_acc", mode="max", patience=9),
]


@pytest.mark.parametrize(("make", "first"), thinned(crossed(CALLBACKS, [True, False]), 3))
def test_callbacks(make, first):
    module, other = Validated(), make()
    bar = isinstance(other, callbacks.ProgressBar)

    fit(
        module,
        *[other, Pruning(0.5)][:: 1 if first else -1],
        logger=MemoryLogger(),
        enable_progress_bar=bar,
        enable_model_summary=isinstance(other, callbacks.ModelSummary),
    )

    assert_pruned(module)


def test_a_model_checkpoint_keeps_files_of_every_size(tmp_path):
    module, callback = Validated(), Pruning(0.5)
    saved = callbacks.ModelCheckpoint(tmp_path, "{epoch}", monitor="val_acc", mode="max", save_top_k=-1)

    trainer = fit(module, callback, saved, enable_checkpointing=True)

    files = [torch.load(tmp_path / f"epoch={epoch}.ckpt", weights_only=True) for epoch in range(6)]
    sizes = [sum(tensor.numel() for tensor in file["state_dict"].values()) for file in files]
    assert sizes[0] == ORIGINAL
    assert sizes[1:5] == [plan.params_after for plan in callback.plans]
    assert sizes[5] == sizes[4]
    for epoch, size in enumerate(sizes):  # any of them, in any order
        trainer.validate(module, make_loader(8), ckpt_path=tmp_path / f"epoch={epoch}.ckpt", verbose=False)
        assert count_params(module) == size


class Backboned(Validated):
    """A backbone that is frozen until ``BackboneFinetuning`` adds it to the optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = self.net[:3], self.net[3:]

    def forward(self, x: Any) -> Any:
        return self.head(self.backbone(x))

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return optim.Adam(trained, lr=1e-2)


@pytest.mark.parametrize(("epoch", "first"), crossed([1, 3, 5], [True, False]))
@pytest.mark.slow
def test_a_backbone_that_is_unfrozen_between_events(epoch, first):
    """Frozen, it is cut along; then its group joins the optimizer with the sizes that it has by then."""

    class Watch(pl.Callback):
        def __init__(self):
            self.trained = []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.before = pl_module.backbone[0].weight.clone()

        def on_train_batch_end(self, trainer, pl_module, *_):
            same = torch.equal(self.before, pl_module.backbone[0].weight)
            self.trained.append(not same)

    module, watch = Backboned(), Watch()
    tuning = callbacks.BackboneFinetuning(epoch, lambda_func=lambda _: 1.0, backbone_initial_lr=1e-2)

    trainer = fit(module, watch, *[tuning, Pruning(0.5)][:: 1 if first else -1])

    assert_pruned(module)
    assert watch.trained == [False] * 4 * epoch + [True] * 4 * (6 - epoch)
    (optimizer,) = trainer.optimizers
    groups = [{id(parameter) for parameter in group["params"]} for group in optimizer.param_groups]
    assert set().union(*groups) == {id(parameter) for parameter in module.parameters()}
    assert sum(map(len, groups)) == 6
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].shape == parameter.shape


# ---- tuning: nothing is pruned in the trial runs


class Tunable(Validated):
    def __init__(self) -> None:
        super().__init__()
        self.lr, self.batch_size = 1e-2, 4

    def train_dataloader(self) -> Any:
        return make_loader(8, batch_size=self.batch_size)

    val_dataloader = train_dataloader

    def configure_optimizers(self) -> Any:
        return optim.Adam(self.parameters(), lr=self.lr)


class Trials(pl.Callback):
    """What trial runs left behind before the first real batch."""

    def on_train_start(self, trainer, pl_module):
        self.params, self.batches = count_params(pl_module), trainer.num_training_batches


FINDERS = {
    "LearningRateFinder": partial(callbacks.LearningRateFinder, num_training_steps=40),
    "BatchSizeFinder": partial(callbacks.BatchSizeFinder, steps_per_trial=2, max_trials=4),
}


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """Finders write their checkpoints to where they run."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("name", "first"), crossed(FINDERS, [True, False]))
@pytest.mark.usefixtures("in_folder")
@pytest.mark.slow
def test_nothing_is_pruned_while_a_finder_runs_and_then_all_is_as_planned(name, first):
    module, trials, callback = Tunable(), Trials(), Pruning(0.5)
    finder = FINDERS[name]()

    trainer = make_trainer(trials, *[finder, callback][:: 1 if first else -1], max_epochs=6)
    trainer.fit(module)

    assert trials.params == ORIGINAL
    assert (module.lr != 1e-2) == (name == "LearningRateFinder")
    assert (module.batch_size > 4) == (name == "BatchSizeFinder")
    assert trials.batches == 64 // module.batch_size
    assert_pruned(module)
    assert [plan.params_original for plan in callback.plans] == [ORIGINAL] * 4
    assert trainer.current_epoch == 6


class FindAgain(callbacks.LearningRateFinder):
    """Looks for a learning rate once more in the middle of training, between two events."""

    def on_fit_start(self, trainer, pl_module):
        pass

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 3:
            before = copy.deepcopy(pl_module.state_dict())
            self.lr_find(trainer, pl_module)
            torch.testing.assert_close(pl_module.state_dict(), before, rtol=0, atol=0)
            self.searched = True


@pytest.mark.usefixtures("in_folder")
def test_a_finder_in_the_middle_of_training_leaves_a_pruned_model_as_it_was():
    module, finder, callback = Tunable(), FindAgain(num_training_steps=40), Pruning(0.5)

    make_trainer(finder, callback, max_epochs=6).fit(module)

    assert finder.searched
    assert len(callback.plans) == 4
    assert_pruned(module)


@pytest.mark.usefixtures("in_folder")
def test_a_tuner_before_fit():
    module, callback = Tunable(), Pruning(0.5)
    trainer = make_trainer(callback, max_epochs=6)

    Tuner(trainer).lr_find(module, num_training=40)
    assert count_params(module) == ORIGINAL
    trainer.fit(module)

    assert_pruned(module)
    assert len(callback.plans) == 4


# ---- several fits, several callbacks


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.slow
def test_a_second_fit_on_a_fresh_model_starts_anew(interval):
    callback = Pruning(schedule={0: 0.2, 1: 0.5}, interval=interval)
    fit(Classifier(), callback, max_epochs=2)
    module = Classifier(mlp(8, 64, 3))

    fit(module, callback, max_epochs=2)

    assert [plan.params_original for plan in callback.plans] == [771] * 2
    assert 1 - count_params(module) / 771 == pytest.approx(0.5, abs=12 / 771)


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_a_fit_that_goes_on_does_only_what_is_left(interval):
    schedule = {1: 0.2, 2: 0.3, 4: 0.5} if interval == "epoch" else {4: 0.2, 8: 0.3, 16: 0.5}
    module, callback = Classifier(), Pruning(schedule=schedule, interval=interval)
    with pytest.warns(UserWarning, match="will not happen"):
        trainer = fit(module, callback, max_epochs=3)
    assert len(callback.plans) == 2

    trainer.fit_loop.max_epochs = 6
    trainer.fit(module, make_loader(8))

    assert_pruned(module)
    assert [plan.requested for plan in callback.plans] == [0.2, 0.3, 0.5]
    assert {plan.params_original for plan in callback.plans} == {ORIGINAL}


PAIR = (
    {"pruning_ratio": 0.2, "only": ["net.0"], "schedule": "linear", "start": 1, "end": 2},
    {"pruning_ratio": 0.3, "only": ["net.2"], "schedule": "linear", "start": 2, "end": 4},
)


def test_two_callbacks_prune_their_own_layers_and_a_checkpoint_holds_both_states(tmp_path):
    def run(ckpt_path=None):
        torch.manual_seed(0)
        module, pair = Classifier(), [Pruning(**arguments) for arguments in PAIR]
        saved = callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        fit(module, *pair, saved, ckpt_path=ckpt_path, enable_checkpointing=True)
        return module, pair

    module, (lower, upper) = run()
    file = torch.load(tmp_path / "epoch=3.ckpt", weights_only=True)
    assert {lower.state_key, upper.state_key} <= file["callbacks"].keys()
    assert [len(file["callbacks"][each.state_key]["plans"]) for each in (lower, upper)] == [2, 2]
    assert widths(module)["net.0"][1] == 32 - sum(plan.channels_removed for plan in lower.plans) < 32
    assert widths(module)["net.2"][1] == 24 - sum(plan.channels_removed for plan in upper.plans) < 24

    with pytest.warns(UserWarning, match="exists and is not empty"):
        again, pair = run(tmp_path / "epoch=3.ckpt")

    torch.testing.assert_close(again.state_dict(), module.state_dict(), rtol=0, atol=0)
    assert [len(each.plans) for each in pair] == [2, 3]


def test_two_alike_callbacks_are_refused():
    with pytest.raises(RuntimeError, match=r"more than one stateful callback of type `CoresetPruningCallback`.*unique"):
        make_trainer(CoresetPruningCallback(0.2), CoresetPruningCallback(0.4))
