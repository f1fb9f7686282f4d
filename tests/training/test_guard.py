"""The accuracy guard: events that are taken back, exactly."""

from __future__ import annotations

import copy
import math
from inspect import signature

import lightning.pytorch as pl
import pytest
import torch
from fitting import Classifier, MemoryLogger, Watcher, assert_same, assert_same_data, convnet, make_loader, mlp, widths
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from pages import blocks_of
from torch import nn

from lightning_coreset import CoresetPruningCallback
from lightning_coreset.training.guard import Guard

MATCH = "is taken back"
SHAPE = (1, 6, 6)


class Scripted(Classifier):
    """Logs the given values, one after every validation, then the last one again."""

    def __init__(self, values, net=None, name="score", optimizer=None):
        super().__init__(net or convnet())
        self.values = values
        self.name = name
        self.optimizer = optimizer or (lambda parameters: torch.optim.Adam(parameters, 1e-2))
        self.validations = 0

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking or self.trainer.num_sanity_val_steps == math.inf:
            self.log(self.name, self.values[min(self.validations, len(self.values) - 1)])
            self.validations += 1

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class ByWidth(Scripted):
    """Scores as its width allows: fine down to ``enough`` channels of the first convolution."""

    def __init__(self, enough):
        super().__init__([1.0])
        self.enough = enough

    def on_validation_epoch_end(self):
        self.log("score", 0.9 if self.net[0].out_channels >= self.enough else 0.5)


class Before(pl.Callback):
    """Listed first: keeps everything as it is at the starts of epochs, before and after the pruning callback acts."""

    def __init__(self):
        self.states = {}

    def on_train_epoch_start(self, trainer, pl_module):
        self.states[trainer.current_epoch] = everything(trainer, pl_module)


class After(Before):
    """Listed last."""


def everything(trainer, pl_module):
    optimizer = trainer.optimizers[0]
    names = {parameter: name for name, parameter in pl_module.named_parameters()}
    return {
        "model": copy.deepcopy(pl_module.state_dict()),
        "widths": widths(pl_module),
        "text": str(pl_module),
        "objects": [id(parameter) for parameter in pl_module.parameters()],
        "optimizer": {names[parameter]: copy.deepcopy(state) for parameter, state in optimizer.state.items()},
        "grads": [parameter.grad for parameter in pl_module.parameters()],
    }


def assert_same_everything(one, other):
    assert one["widths"] == other["widths"]
    assert one["text"] == other["text"]
    assert one["objects"] == other["objects"]
    assert_same(one["model"], other["model"])
    assert one["optimizer"].keys() == other["optimizer"].keys()
    for name, state in one["optimizer"].items():
        assert state.keys() == other["optimizer"][name].keys()
        for key, value in state.items():
            torch.testing.assert_close(value, other["optimizer"][name][key], rtol=0, atol=0)


def pruning(**options):
    options = {"schedule": {2: 0.3, 5: 0.6}, "monitor": "score", "max_drop": 0.1, "recover_epochs": 1} | options
    return CoresetPruningCallback(verbose=False, self_check=False, **options)


def fit(make_trainer, module, *callbacks, epochs=8, ckpt_path=None, **options):
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    trainer = make_trainer(*callbacks, max_epochs=epochs, enable_checkpointing=saves, **options)
    safely = {"weights_only": True} if "weights_only" in signature(pl.Trainer.fit).parameters else {}
    trainer.fit(module, make_loader(*SHAPE), make_loader(*SHAPE), ckpt_path=ckpt_path, **safely)
    return trainer


def events(callback):
    """Epochs of all events, those that were taken back with a minus."""
    return [-record.epoch if record.reverted else record.epoch for record in callback.history]


# ---- the verdict

HIGH, LOW = 0.9, 0.5


@pytest.mark.parametrize(
    ("values", "recover_epochs", "expected"),
    [
        ([HIGH], 1, [2, 5]),
        ([HIGH, HIGH, HIGH - 0.09], 1, [2, 5]),  # not by more than max_drop
        ([HIGH, HIGH, LOW, HIGH], 1, [-2]),
        ([HIGH, HIGH, LOW, HIGH], 2, [2, 5]),  # brought back in time
        ([HIGH, HIGH, LOW, LOW, HIGH], 2, [-2]),
        ([HIGH, HIGH, LOW, LOW, LOW, LOW, HIGH], 5, [2, 7]),  # the second event waits for the first to heal
        ([LOW, HIGH, LOW + 0.1], 1, [-2]),  # against the best, not the last
        ([LOW, LOW, HIGH, HIGH, HIGH, LOW], 1, [2, 5]),  # before pruning began
        ([HIGH, HIGH, math.nan], 1, [-2]),
        ([math.nan, HIGH, HIGH], 1, [2, 5]),
    ],
)
def test_an_event_that_does_not_recover_in_time_is_taken_back(make_trainer, values, recover_epochs, expected):
    callback = pruning(recover_epochs=recover_epochs)
    failing = any(epoch < 0 for epoch in expected)

    if failing:
        with pytest.warns(UserWarning, match=MATCH):
            fit(make_trainer, Scripted(values), callback)
    else:
        fit(make_trainer, Scripted(values), callback)

    assert events(callback) == expected
    assert len(callback.plans) == sum(epoch > 0 for epoch in expected)


@pytest.mark.parametrize(("name", "mode"), [("score", "min"), ("val_loss", None), ("my_error", None)])
def test_less_is_better(make_trainer, name, mode):
    callback = pruning(monitor=name, monitor_mode=mode)

    with pytest.warns(UserWarning, match=MATCH):
        fit(make_trainer, Scripted([0.3, 0.2, 0.2, 0.2, 0.2, 0.35], name=name), callback)

    assert events(callback) == [2, -5]


def test_a_recovery_within_an_epoch_counts(make_trainer):
    callback = pruning(recover_epochs=0.5)
    # Validated twice an epoch: epoch 2 begins after four validations.
    fit(make_trainer, Scripted([HIGH] * 4 + [HIGH] + [LOW] * 5 + [HIGH]), callback, val_check_interval=2)

    assert events(callback) == [2, 5]

    callback = pruning(recover_epochs=0.5)
    with pytest.warns(UserWarning, match="event of epoch 2 is taken back"):
        fit(make_trainer, Scripted([HIGH] * 4 + [LOW] + [HIGH]), callback, val_check_interval=2)


def test_the_guard_waits_for_the_validation_after_the_deadline(make_trainer):
    callback = pruning(schedule={4: 0.3})

    with pytest.warns(UserWarning, match=MATCH):
        fit(make_trainer, Scripted([HIGH, LOW]), callback, epochs=9, check_val_every_n_epoch=4)

    assert events(callback) == [-4]


# ---- going back


def sgd(parameters):
    return torch.optim.SGD(parameters, 1e-2, momentum=0.9)


def amsgrad(parameters):
    return torch.optim.Adam(parameters, 1e-2, amsgrad=True)


def lbfgs(parameters):
    return torch.optim.LBFGS(parameters, 1e-3, max_iter=2)


@pytest.mark.parametrize("optimizer", [sgd, amsgrad, lbfgs])
def test_everything_is_as_it_was_before_the_event(make_trainer, optimizer):
    before, after = Before(), After()
    module = Scripted([HIGH, HIGH, LOW, HIGH], optimizer=optimizer)

    # The event itself resets the history of LBFGS, and warns.
    with pytest.warns(UserWarning, match=f"{MATCH}|The state of LBFGS"):
        fit(make_trainer, module, before, pruning(recover_epochs=1, schedule={2: 0.5}), after, epochs=4)

    assert after.states[2]["widths"] != before.states[2]["widths"]
    assert_same_everything(before.states[2], after.states[3])
    assert after.states[3]["grads"] == [None] * len(after.states[3]["grads"])


def test_training_goes_on_as_if_the_event_had_not_been(make_trainer):
    """The batches of an epoch are always the same here, so an unpruned run is at epoch 2 where the guarded is at 3."""
    guarded, plain = Watcher(), Watcher()

    with pytest.warns(UserWarning, match=MATCH):
        fit(make_trainer, Scripted([HIGH, HIGH, LOW, HIGH]), pruning(schedule={2: 0.5}), guarded, epochs=5)
    torch.manual_seed(0)
    module = Scripted([HIGH])
    fit(make_trainer, module, plain, epochs=4)

    assert_same(guarded.weights[-1], plain.weights[-1])


def test_learning_rates_and_the_users_own_numbers_go_on(make_trainer):
    class Scheduled(Scripted):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), 0.1)
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    def rates(*callbacks):
        watcher, module = Watcher(), Scheduled([HIGH, HIGH, LOW, HIGH])
        fit(make_trainer, module, *callbacks, watcher, epochs=5)
        assert module.validations == 5
        return watcher.rates

    unguarded = rates()
    with pytest.warns(UserWarning, match=MATCH):
        assert rates(pruning(schedule={2: 0.5})) == unguarded


def test_patience_is_as_before(make_trainer):
    stopping = EarlyStopping("score", patience=10, mode="max")
    seen = []

    class Look(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.append((stopping.wait_count, float(stopping.best_score)))

    with pytest.warns(UserWarning, match=MATCH):
        fit(make_trainer, Scripted([0.9, 0.8, 0.5]), pruning(schedule={2: 0.5}), stopping, Look(), epochs=4)

    assert [wait for wait, _ in seen] == [0, 0, 0, 1]  # restarted at epoch 2, back at epoch 3
    assert [best for _, best in seen] == pytest.approx([-math.inf, 0.9, -math.inf, 0.9])


def averaging():
    return pytest.importorskip("lightning.pytorch.callbacks.weight_averaging").EMAWeightAveraging(decay=0.5)


def test_averaged_weights_go_back_too(make_trainer):
    ema = averaging()
    averages = {}

    class Look(pl.Callback):
        def __init__(self, when):
            self.when = when

        def on_train_epoch_start(self, trainer, pl_module):
            averages[self.when, trainer.current_epoch] = copy.deepcopy(ema._average_model.state_dict())

    module = Scripted([HIGH, HIGH, LOW, HIGH])
    with pytest.warns(UserWarning, match=MATCH):
        fit(make_trainer, module, ema, Look("before"), pruning(schedule={2: 0.5}), Look("after"), epochs=4)

    assert averages["after", 2]["module.net.0.weight"].shape != averages["after", 3]["module.net.0.weight"].shape
    assert_same(averages["before", 2], averages["after", 3])


@pytest.mark.parametrize("first", [True, False])
def test_at_the_end_the_model_is_the_average_whoever_comes_first(make_trainer, first):
    ema, averages, callback = averaging(), {}, pruning(schedule={3: 0.5})

    class Look(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            averages[trainer.current_epoch] = copy.deepcopy(ema._average_model.module.state_dict())

    module = Scripted([HIGH, HIGH, HIGH, LOW])
    with pytest.warns(UserWarning, match=MATCH):
        fit(make_trainer, module, Look(), *([ema, callback] if first else [callback, ema]), epochs=4)

    assert_same(module.state_dict(), averages[3])


# ---- and then


def test_stop_prunes_no_more(make_trainer):
    callback, module = pruning(), Scripted([HIGH, HIGH, LOW, HIGH])

    with pytest.warns(UserWarning, match="Pruning stops"):
        fit(make_trainer, module, callback)

    assert events(callback) == [-2]
    assert callback.plans == []
    assert module.net[0].out_channels == 12


@pytest.mark.parametrize("enough", [12, 9, 7, 5])
@pytest.mark.slow
def test_halving_finds_what_the_model_can_bear(make_trainer, enough):
    module, callback = ByWidth(enough), pruning(schedule={2: 0.75}, on_failure="halve", unit="channels")

    with pytest.warns(UserWarning, match=f"{MATCH}|Pruning stops|removed no channel") as warned:
        fit(make_trainer, module, callback, epochs=24)

    assert module.net[0].out_channels == enough
    messages = [str(warning.message) for warning in warned]
    assert "removes less than one channel" in messages[-1]
    taken_back = sum(record.reverted for record in callback.history)
    assert taken_back == sum("is taken back" in message for message in messages) > 0
    assert len(callback.plans) == sum(not record.reverted for record in callback.history)


def test_later_events_take_the_smaller_step_as_well(make_trainer):
    callback = pruning(schedule={2: 0.4, 4: 0.8}, on_failure="halve")

    with pytest.warns(UserWarning, match="in steps of at most 20.00%"):
        fit(make_trainer, Scripted([HIGH, HIGH, LOW, HIGH]), callback, epochs=9)

    assert [record.requested for record in callback.history] == pytest.approx([0.4, 0.2, 0.4, 0.6, 0.8])
    assert events(callback) == [-2, 3, 4, 5, 6]


def test_loggers_and_callback_show_the_events_that_remain(make_trainer):
    logger, callback = MemoryLogger(), pruning(schedule={1: 0.3, 3: 0.6})

    with pytest.warns(UserWarning, match=MATCH):
        trainer = fit(make_trainer, Scripted([HIGH, HIGH, HIGH, LOW, HIGH]), callback, epochs=6, logger=logger)

    (plan,) = callback.plans
    assert events(callback) == [1, -3]
    for metrics in (trainer.callback_metrics, trainer.progress_bar_metrics):
        assert metrics["sparsity"] == pytest.approx(plan.sparsity)
    assert logger.of("coreset/sparsity")[-1][1] == pytest.approx(plan.sparsity)
    taken_back = [value for step, value in logger.of("coreset/sparsity") if step == 16]
    assert taken_back == [pytest.approx(plan.sparsity)]
    assert logger.of("coreset/accuracy")[3][1] == pytest.approx(LOW)


# ---- checkpoints and the end of training


class KilledError(Exception):
    pass


class Kill(pl.Callback):
    """Ends a run after an epoch was saved."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch > self.epoch:
            raise KilledError


def saving(path, **options):
    return ModelCheckpoint(path, filename="{epoch}", **({"save_top_k": -1} | options))


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")
@pytest.mark.parametrize("resumed_at", [2, 3])
@pytest.mark.slow
def test_a_resumed_run_can_take_an_event_back(make_trainer, tmp_path, resumed_at):
    """Resumed in the middle of the window, and between the verdict and the way back."""
    values = [HIGH, HIGH, LOW, LOW, HIGH]
    before, uninterrupted, resumed = Before(), Watcher(), Watcher()
    options = {"schedule": {2: 0.5}, "recover_epochs": 2}
    with pytest.warns(UserWarning, match=MATCH):
        fit(make_trainer, Scripted(values), before, pruning(**options), uninterrupted, epochs=6)

    torch.manual_seed(0)
    with pytest.raises(KilledError):
        fit(make_trainer, Scripted(values), Kill(resumed_at), pruning(**options), saving(tmp_path), epochs=6)
    callback, module, after = pruning(**options), Scripted(values[resumed_at + 1 :]), After()
    torch.manual_seed(1)
    path = tmp_path / f"epoch={resumed_at}.ckpt"
    with pytest.warns(UserWarning, match=MATCH):
        fit(make_trainer, module, callback, after, resumed, saving(tmp_path), epochs=6, ckpt_path=path)

    assert events(callback) == [-2]
    assert after.states[4]["widths"] == before.states[2]["widths"]
    assert_same(resumed.weights[-1], uninterrupted.weights[-1])


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty")
def test_the_validation_of_the_last_epoch_counts(make_trainer, tmp_path):
    """In memory the model is the one before; the checkpoint of the epoch holds what got its score."""
    before, callback, module = Before(), pruning(schedule={3: 0.5}), Scripted([HIGH, HIGH, HIGH, LOW])
    options = {"save_last": True, "monitor": "score"}

    with pytest.warns(UserWarning, match=MATCH):
        fit(make_trainer, module, before, callback, saving(tmp_path, **options), epochs=4)

    assert widths(module) == before.states[3]["widths"]
    assert_same(module.state_dict(), before.states[3]["model"])
    assert callback.plans == []
    failed = torch.load(tmp_path / "epoch=3.ckpt", weights_only=True)
    assert failed["state_dict"]["net.0.weight"].shape != module.net[0].weight.shape
    # Training that goes on from there goes back first.
    resumed, again = pruning(schedule={3: 0.5}), Scripted([HIGH])
    with pytest.warns(UserWarning, match=MATCH):
        fit(make_trainer, again, resumed, saving(tmp_path, **options), epochs=5, ckpt_path=tmp_path / "last.ckpt")
    assert widths(again) == before.states[3]["widths"]


def test_an_event_that_has_not_recovered_when_training_ends_is_taken_back(make_trainer):
    callback, module = pruning(schedule={3: 0.5}, recover_epochs=10), Scripted([HIGH, HIGH, HIGH, LOW])

    with pytest.warns(UserWarning, match=MATCH):
        fit(make_trainer, module, callback, epochs=5)

    assert module.net[0].out_channels == 12


def test_an_event_without_a_validation_after_it_is_kept(make_trainer):
    callback, module = pruning(schedule={4: 0.5}), Scripted([HIGH])

    with pytest.warns(UserWarning, match="ended before a validation could measure"):
        fit(make_trainer, module, callback, epochs=5, check_val_every_n_epoch=2)

    assert len(callback.plans) == 1


def test_state_is_plain_data(make_trainer, tmp_path):
    callback = pruning(schedule={2: 0.5}, recover_epochs=9)
    with pytest.warns(UserWarning, match=MATCH):
        fit(make_trainer, Scripted([HIGH, HIGH, LOW]), callback, saving(tmp_path), epochs=4)

    state = torch.load(tmp_path / "epoch=3.ckpt", weights_only=True)["callbacks"][callback.state_key]
    other = pruning()
    other.load_state_dict(state)

    assert state["guard"]["window"] is not None
    assert_same_data(other.state_dict()["guard"], state["guard"])


# ---- a guard that cannot judge


def test_no_validation_is_refused(make_trainer):
    with pytest.raises(MisconfigurationException, match="Expected a Trainer that validates"):
        fit(make_trainer, Scripted([HIGH]), pruning(), limit_val_batches=0)


def test_an_event_before_the_first_validation_is_refused(make_trainer):
    module = Scripted([HIGH])

    with pytest.raises(MisconfigurationException, match=r"that gives the .* before the first.*num_sanity_val_step"):
        fit(make_trainer, module, pruning(schedule={0: 0.5}), num_sanity_val_steps=1)

    assert module.net[0].out_channels == 12


def test_a_sanity_check_of_all_the_data_is_a_validation(make_trainer):
    callback = pruning(schedule={0: 0.5})

    with pytest.warns(UserWarning, match=r"was 0.9 before pruning"):
        fit(make_trainer, Scripted([HIGH, LOW, LOW]), callback, num_sanity_val_steps=-1)

    assert events(callback) == [0]
    assert callback.history[0].reverted


def test_a_model_without_an_accuracy_is_refused(make_trainer):
    class Regression(Scripted):
        def validation_step(self, batch, batch_idx):
            self(batch[0]).sum()

    callback = pruning(monitor=None)
    module = Regression([HIGH], net=nn.Sequential(nn.Flatten(), mlp(36, 8, 7)))

    with pytest.raises(MisconfigurationException, match=r"Expected validation to give the accuracy.*monitor='val_acc'"):
        fit(make_trainer, module, callback)


def test_fast_dev_run_is_left_alone(make_trainer):
    callback = pruning(monitor=None)

    fit(make_trainer, Scripted([HIGH]), callback, fast_dev_run=True)

    assert len(callback.plans) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_drop": -0.1}, "`max_drop` to be a non-negative number but got -0.1"),
        ({"max_drop": math.nan}, "`max_drop` to be"),
        ({"max_drop": True}, "`max_drop` to be"),
        ({"recover_epochs": 0}, "`recover_epochs` to be a positive number but got 0"),
        ({"recover_epochs": "2"}, "`recover_epochs` to be"),
        ({"on_failure": "undo"}, "`on_failure` to be 'stop' or 'halve' but got 'undo'"),
        ({"monitor_mode": "up"}, "`monitor_mode` to be 'max' or 'min' but got 'up'"),
        ({"monitor": 1}, "`monitor` to be the name of a logged metric but got 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        pruning(**arguments)


def test_a_guard_that_is_off_copies_nothing(make_trainer, monkeypatch):
    monkeypatch.setattr("lightning_coreset.training.guard.Savepoint", None)
    callback = pruning(max_drop=None, recover_epochs=2)

    fit(make_trainer, Scripted([HIGH, HIGH, 0.0]), callback)

    assert events(callback) == [2, 5]
    assert not Guard(None, "max", "accuracy").waiting


# ---- its page


@pytest.mark.filterwarnings("ignore:The number of training batches", "ignore:.*is taken back", "ignore:Pruning stops")
@pytest.mark.filterwarnings("ignore:Training ended before")
@pytest.mark.slow
def test_the_page_of_documentation_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}

    for block in blocks_of("guard.md"):
        exec(block.code, names)

    table = capsys.readouterr().out
    assert "taken back" in table
    assert names["model"].net[0].out_features < 64
