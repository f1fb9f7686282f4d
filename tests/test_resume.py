"""Training that is killed and taken up again ends as if nothing had happened, bit for bit."""

from __future__ import annotations

import csv
import inspect
import json
import os
import signal
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import processes
import pytest
import torch
from breadth import some_of, thinned
from fitting import assert_same, count_params
from lightning.pytorch.callbacks import ModelCheckpoint
from resume_script import EPOCHS, EVENTS, STEPS, Killed, Model, loaders, train
from torch import Tensor, nn
from torch.nn import functional

from lightning_coreset import CoresetPruningCallback, PrunedCheckpointMixin, load_pruned

SCRIPT = Path(__file__).with_name("resume_script.py")
STEPWISE = {"every_n_train_steps": 1}
# The accuracy right after an event is measured on batches seen before it, which a run that was just resumed has not.
EVENTS_BY = {
    "epoch": EVENTS | {"eval_batches": 0},
    "step": EVENTS | {"eval_batches": 0, "interval": "step", "schedule": {6: 0.2, 13: 0.35, 16: 0.5}},
}
EVERY_EPOCH = {"save_top_k": -1, "filename": "{epoch}", "auto_insert_metric_name": False}

SLOWLY = partial(pytest.param, marks=pytest.mark.slow)

# Lightning's own: told where checkpoints are of the middle of an epoch, and in a folder that is there already.
pytestmark = pytest.mark.filterwarnings(
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",
    "ignore:.*exists and is not empty",
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that nobody killed, one for each way to train; the folder of each."""
    runs: dict[str, Path] = {}

    def run(**arguments: Any) -> Path:
        key = json.dumps(arguments)
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp("whole")
            train(runs[key], name="whole", **arguments)
        return runs[key]

    return run


def content(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def rows(file: Path, since: int) -> list[dict[str, str]]:
    with file.open() as lines:
        found = [{name: value for name, value in row.items() if value} for row in csv.DictReader(lines)]
    return [row for row in found if int(row["step"]) >= since]


def assert_ends_alike(whole: Path, resumed: Path, since: int) -> None:
    """Weights, optimizers, learning rates, events and plans, where training is, and all that was logged since."""
    one, other = content(whole / "end.ckpt"), content(resumed / "end.ckpt")
    assert_same(one["state_dict"], other["state_dict"])
    assert one["state_dict"]._metadata == other["state_dict"]._metadata
    for name in ("optimizer_states", "lr_schedulers", "epoch", "global_step"):
        torch.testing.assert_close(other[name], one[name], rtol=0, atol=0)
    assert state_of_pruning(one) == state_of_pruning(other)
    assert rows(whole / "metrics.csv", since) == rows(resumed / "metrics.csv", since)


def state_of_pruning(checkpoint: dict[str, Any]) -> dict[str, Any]:
    states = checkpoint["callbacks"].items()
    return {key: state for key, state in states if key.startswith(CoresetPruningCallback.__name__)}


def check(whole: Any, directory: Path, at: int, saved: int, **arguments: Any) -> None:
    """Kill before the step ``at``, resume from what was saved at the step ``saved``, compare with the whole run."""
    with pytest.raises(Killed):
        train(directory, name="killed", kill=at, **arguments)
    resume_and_compare(whole, directory, saved, **arguments)


def resume_and_compare(whole: Any, directory: Path, saved: int, *, fit: Any = None, **arguments: Any) -> None:
    last = directory / "checkpoints" / "last.ckpt"
    assert content(last)["global_step"] == saved
    train(directory, name="resumed", resume=str(last), **arguments, **(fit or {}))
    assert_ends_alike(whole(**arguments) / "whole", directory / "resumed", saved)


# ---- at any epoch, at any step


@pytest.mark.parametrize(
    ("at", "saved", "saving"),
    [SLOWLY(10, 8, {}), (10, 10, STEPWISE), SLOWLY(8, 8, STEPWISE)],
    ids=["from the end of an epoch", "from the middle of an epoch", "from the last step of an epoch"],
)
def test_lightning_alone_resumes_bit_for_bit(whole, tmp_path, at, saved, saving):
    """What all else rests on."""
    check(whole, tmp_path, at, saved, saving=saving)


@pytest.mark.slow
def test_pruned_runs_are_pruned(whole):
    """Steps 8, 16 and 20 are the first of the epochs with an event."""
    folder = whole(pruning=EVENTS) / "whole"
    events = [int(row["step"]) for row in rows(folder / "metrics.csv", 0) if "coreset/requested" in row]
    assert {8, 16, 20} <= set(events)
    assert content(folder / "end.ckpt")["state_dict"]["net.0.bias"].shape < (8,)


@pytest.mark.parametrize(
    ("at", "saved"),
    [SLOWLY(6, 4), SLOWLY(11, 8), (15, 12), SLOWLY(19, 16), SLOWLY(26, 24)],
    ids=["before the first event", "before an event", "between events", "before the next event", "after the last"],
)
def test_from_the_end_of_an_epoch(whole, tmp_path, at, saved):
    check(whole, tmp_path, at, saved, pruning=EVENTS)


@pytest.mark.parametrize(
    "at",
    [
        SLOWLY(3, id="before the first event"),
        SLOWLY(9, id="right after an event"),
        pytest.param(14, id="between"),
        SLOWLY(22, id="after the last"),
        SLOWLY(31, id="at the very end"),
    ],
)
def test_from_the_middle_of_an_epoch(whole, tmp_path, at):
    check(whole, tmp_path, at, at, pruning=EVENTS, saving=STEPWISE)


@pytest.mark.parametrize(("at", "interval"), thinned(product([16, 8, 20], ["epoch", "step"]), 6))
@pytest.mark.slow
def test_from_the_last_step_of_an_epoch(whole, tmp_path, at, interval):
    """The next step has an event. Lightning leaves out the validation in between, so here is none."""
    check(whole, tmp_path, at, at, pruning=EVENTS_BY[interval], saving=STEPWISE, validate=False)


@pytest.mark.parametrize("at", [5, 6, 7, 13, 15, 17])
@pytest.mark.slow
def test_events_by_steps(whole, tmp_path, at):
    check(whole, tmp_path, at, at, pruning=EVENTS_BY["step"], saving=STEPWISE)


@pytest.mark.slow
@pytest.mark.parametrize("at", range(1, EPOCHS * STEPS))
@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_from_any_step(whole, tmp_path, at, interval):
    check(whole, tmp_path, at, at, pruning=EVENTS_BY[interval], saving=STEPWISE, validate=at % STEPS > 0)


@pytest.mark.parametrize(
    "options",
    [
        {"order": "bottom_up"},
        {"method": "sensitivity"},
        {"method": "random"},
        {"schedule": "cubic"},
        {"unit": "macs"},
    ],
    ids=str,
)
@pytest.mark.slow
def test_ways_to_prune(whole, tmp_path, options):
    """Random choices are seeded by the event, not by the run."""
    check(whole, tmp_path, 15, 12, pruning=EVENTS | options)


@pytest.mark.slow
def test_twice(whole, tmp_path):
    """Killed, resumed, killed again."""
    arguments = {"pruning": EVENTS, "saving": STEPWISE}
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    for at in (7, 18):
        with pytest.raises(Killed):
            train(tmp_path, name="killed", kill=at, resume=None if at == 7 else last, **arguments)
    resume_and_compare(whole, tmp_path, 18, **arguments)


@pytest.mark.parametrize("weights_only", [True, None])
@pytest.mark.slow
def test_with_and_without_unpickling(whole, tmp_path, weights_only):
    if "weights_only" not in inspect.signature(pl.Trainer.fit).parameters:
        pytest.skip("this version of Lightning does not ask")
    with pytest.raises(Killed):
        train(tmp_path, name="killed", kill=19, pruning=EVENTS)
    resume_and_compare(whole, tmp_path, 16, pruning=EVENTS, fit={"weights_only": weights_only})


# ---- by a signal that nobody can catch


def kill_a_process(directory: Path, **arguments: Any) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (SCRIPT.parents[1], SCRIPT.parent)))}
    process = processes.start(SCRIPT, directory, json.dumps({"name": "killed", **arguments}), env=environment)
    processes.finish(process, returncode=-signal.SIGKILL)


@pytest.mark.parametrize(
    ("kill", "saved", "saving"),
    [
        SLOWLY({"kill": 6}, 4, {}, id="before the first event"),
        SLOWLY({"kill": 9}, 9, STEPWISE, id="right after an event, in its epoch"),
        SLOWLY({"kill_in_event": 4}, 16, {}, id="in an event"),
        SLOWLY({"kill": 14}, 12, {}, id="between events"),
        SLOWLY({"kill": 26}, 24, {}, id="after the last"),
        SLOWLY({"kill": 27}, 27, STEPWISE, id="after the last, in an epoch"),
    ],
)
def test_a_killed_process(whole, tmp_path, kill, saved, saving):
    arguments = {"pruning": EVENTS, "saving": saving}
    kill_a_process(tmp_path, **kill, **arguments)
    resume_and_compare(whole, tmp_path, saved, **arguments)


# ---- from checkpoints of every size


@pytest.fixture(scope="module")
def epochs(whole):
    """Checkpoints of every epoch, which have four sizes."""
    folder = whole(pruning=EVENTS, saving=EVERY_EPOCH)
    files = [folder / "checkpoints" / f"{epoch}.ckpt" for epoch in range(EPOCHS)]
    sizes = [len(content(file)["state_dict"]["net.7.bias"]) for file in files]
    assert sizes[0] == sizes[1] > sizes[2] == sizes[3] > sizes[4] > sizes[5] == sizes[7]
    return files


def loss_of(model: Model, file: Path, trainer: pl.Trainer) -> float:
    (metrics,) = trainer.test(model, loaders()["val_dataloaders"], ckpt_path=str(file), verbose=False)
    return metrics["val_loss"]


def quiet(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    silent = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(**silent, **options, callbacks=list(callbacks))


def validated(folder: Path) -> list[float]:
    """The validation loss of every epoch."""
    return [float(row["val_loss"]) for row in rows(folder / "metrics.csv", 0) if "val_loss" in row]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used")
@pytest.mark.slow
def test_every_size_is_tested_with_any_model_at_hand(epochs):
    """Up and down; what comes out is what validation found when the checkpoint was made."""
    expected = validated(epochs[0].parents[1] / "whole")
    model, trainer = Model(), quiet(CoresetPruningCallback(**EVENTS), enable_checkpointing=False)
    for epoch in (7, 0, 4, 2, 5, 1, 3, 6):
        assert loss_of(model, epochs[epoch], trainer) == pytest.approx(expected[epoch], rel=1e-6)
        assert len(model.net[7].bias) == model.net[7].out_features


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("epoch", some_of([0, 3, 4], 3))
def test_training_goes_on_from_a_checkpoint_of_any_size(epochs, tmp_path, epoch):
    train(tmp_path, name="resumed", resume=str(epochs[epoch]), pruning=EVENTS, saving=EVERY_EPOCH)
    assert_ends_alike(epochs[0].parents[1] / "whole", tmp_path / "resumed", (epoch + 1) * STEPS)


@pytest.mark.slow
def test_the_best_checkpoint_is_tested_and_training_goes_on(tmp_path):
    """The best of any size is larger than the model at the end: the first of all, by a score that only ever falls."""
    model = Model()
    best = ModelCheckpoint(tmp_path, monitor="epoch", mode="min", save_top_k=2)
    callback = CoresetPruningCallback(**EVENTS, best_checkpoint="any")

    class Epoch(pl.Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            pl_module.log("epoch", float(trainer.current_epoch))

    trainer = quiet(Epoch(), callback, best, max_epochs=EPOCHS, num_sanity_val_steps=0)
    with pytest.warns(UserWarning, match=r"has 0\.00% pruned where 50\.00% was requested"):
        trainer.fit(model, **loaders())
    small, original = count_params(model), count_params(Model())
    assert small < original

    with pytest.warns(UserWarning, match=r"A model that has 0\.00% pruned .* was loaded"):
        trainer.test(model, loaders()["val_dataloaders"], ckpt_path="best", verbose=False)
    assert count_params(model) == original

    again = quiet(callback, max_epochs=EPOCHS, enable_checkpointing=False)
    again.fit(model, **loaders())
    assert count_params(model) == small


@pytest.mark.slow
def test_weights_alone(whole, epochs):
    """``save_weights_only`` keeps the structure, too."""
    folder = whole(pruning=EVENTS, saving=EVERY_EPOCH | {"save_weights_only": True}) / "checkpoints"
    for epoch in (0, 3, 7):
        checkpoint = content(folder / f"{epoch}.ckpt")
        assert "optimizer_states" not in checkpoint
        assert_same(checkpoint["state_dict"], content(epochs[epoch])["state_dict"])
        assert_same(load_pruned(Model, folder / f"{epoch}.ckpt").state_dict(), checkpoint["state_dict"])


class Mixed(PrunedCheckpointMixin, Model):
    pass


@pytest.mark.parametrize("epoch", [0, 3, 7])
@pytest.mark.slow
def test_without_a_trainer(epochs, epoch):
    state = content(epochs[epoch])["state_dict"]
    for model in (load_pruned(Model, epochs[epoch]), Mixed.load_from_checkpoint(epochs[epoch])):
        assert_same(model.state_dict(), state)
        assert model.net[7].out_features == len(state["net.7.bias"])


# ---- with averages


class Heads(Model):
    """Has heads, whose number no shape tells."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(1, 2), SelfAttention())


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 6
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)).mean(1)


@pytest.mark.filterwarnings("ignore:.*WeightAveraging callback, but loading a checkpoint outside the 'fit' stage")
@pytest.mark.parametrize("first", ["pruning", "averaging"])
@pytest.mark.slow
def test_averages_of_models_with_heads(tmp_path, first):
    """Lightning saves averages as a plain dict of tensors."""
    averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")

    def fit(resume: Path | None = None) -> tuple[Heads, pl.Trainer]:
        callbacks = [CoresetPruningCallback(**EVENTS, unit="channels"), averaging.WeightAveraging()]
        model = Heads()
        saving = ModelCheckpoint(tmp_path, **EVERY_EPOCH)
        trainer = quiet(*(callbacks if first == "pruning" else reversed(callbacks)), saving, max_epochs=EPOCHS)
        trainer.fit(model, **loaders(), ckpt_path=resume)
        return model, trainer

    model, trainer = fit()
    for epoch, heads in ((0, 6), (2, 5), (7, 3)):
        file = tmp_path / f"{epoch}.ckpt"
        assert load_pruned(Heads, file).net[1].num_heads == heads
        assert loss_of(model, file, trainer) == pytest.approx(loss_of(Heads(), file, trainer))
        assert model.net[1].num_heads == heads
    assert_same(fit(tmp_path / "4.ckpt")[0].state_dict(), fit()[0].state_dict())
