"""The guard in training as people do it: metrics that come and go, several callbacks, resumed runs, failures."""

from __future__ import annotations

import copy
import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from breadth import crossed
from fitting import Classifier, Watcher, assert_same, count_params, make_loader, make_trainer, mlp, widths
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, StochasticWeightAveraging
from torch import nn

from lightning_coreset import CoresetPruningCallback
from lightning_coreset.training import optimizer_state, savepoint

GOOD, BAD = 0.9, 0.1
TAKEN_BACK = "is taken back"


class Scored(Classifier):
    """Logs a score in the validations of some epochs."""

    def __init__(self, scores, **options):
        super().__init__()
        self.scores = scores
        self.options = options

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    def on_validation_epoch_end(self):
        if self.current_epoch in self.scores:
            self.log("score", self.scores[self.current_epoch], **self.options)


def guarded(**options):
    options = {"schedule": {2: 0.5}, "monitor": "score", "max_drop": 0.01, "recover_epochs": 2} | options
    if options["max_drop"] is None:
        del options["recover_epochs"]
    return CoresetPruningCallback(verbose=False, self_check=False, eval_batches=0, **options)


def fit(module, *callbacks, epochs=7, loaders=1, ckpt_path=None, **options):
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    trainer = make_trainer(*callbacks, max_epochs=epochs, enable_checkpointing=saves, **options)
    validation = [make_loader(8, samples=16) for _ in range(loaders)]
    trainer.fit(module, make_loader(8), validation if loaders > 1 else validation[0], ckpt_path=ckpt_path)
    return trainer


def fit_and_warn(module, callback, expected):
    """Fit, with a warning if any event is to be taken back."""
    with pytest.warns(UserWarning, match=TAKEN_BACK) if expected else nullcontext():
        fit(module, callback)


def taken_back(callback):
    return [record.epoch for record in callback.history if record.reverted]


# ---- a metric that is not logged since the event


@pytest.mark.parametrize(
    ("scores", "recover_epochs", "expected"),
    [
        ({0: GOOD, 1: GOOD, 3: BAD}, 1, [2]),  # not in the only validation that counts
        ({0: GOOD, 1: GOOD, 3: GOOD}, 1, [2]),
        ({0: GOOD, 1: GOOD, 3: GOOD}, 2, []),  # in time
        ({0: GOOD, 1: GOOD, 3: BAD, 4: GOOD}, 2, [2]),
        ({0: GOOD, 1: GOOD}, 100, [2]),  # never again
        ({0: GOOD, 2: BAD, 4: GOOD}, 2, [2]),  # low, and then nothing
        ({0: GOOD, 2: BAD, 4: GOOD}, 3, []),
        ({0: GOOD, 2: GOOD, 4: GOOD}, 2, []),  # every other validation
    ],
)
def test_a_metric_that_was_not_logged_since_the_event_is_lost(scores, recover_epochs, expected):
    callback, module = guarded(recover_epochs=recover_epochs), Scored(scores)

    fit_and_warn(module, callback, expected)

    assert taken_back(callback) == expected
    assert (count_params(module) == count_params(Classifier())) == bool(expected)


def test_the_warning_says_that_it_was_not_logged():
    with pytest.warns(UserWarning, match=r"the score that max_drop watches was not logged since.*recover_epochs reach"):
        fit(Scored({0: GOOD, 1: GOOD}), guarded(recover_epochs=1), epochs=4)


def test_another_callback_that_reads_the_metrics_makes_none_of_them_new():
    class Reads(pl.Callback):
        def read(self, trainer, pl_module, *_):
            dict(trainer.callback_metrics)

        on_train_epoch_start = on_train_batch_end = on_validation_start = on_validation_end = read
        on_train_start = on_train_batch_start = on_validation_batch_end = on_train_epoch_end = read

    for order in (0, 1):
        callback = guarded(recover_epochs=1)
        callbacks = [callback, Reads()] if order else [Reads(), callback]
        with pytest.warns(UserWarning, match=TAKEN_BACK):
            fit(Scored({0: GOOD, 1: GOOD}), *callbacks, ModelCheckpoint(save_last=False, save_top_k=0), epochs=4)
        assert taken_back(callback) == [2]


class PerLoader(Scored):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        if self.current_epoch in self.scores:
            self.log("score", self.scores[self.current_epoch])

    def on_validation_epoch_end(self):
        pass


@pytest.mark.parametrize(("last", "expected"), [({}, [2]), ({2: GOOD}, []), ({2: BAD}, [2])])
def test_names_with_the_number_of_a_loader(last, expected):
    callback = guarded(monitor="score/dataloader_idx_1", recover_epochs=1)
    module = PerLoader({0: GOOD, 1: GOOD} | last)

    if expected:
        with pytest.warns(UserWarning, match=TAKEN_BACK):
            fit(module, callback, loaders=2)
    else:
        fit(module, callback, loaders=2)

    assert taken_back(callback) == expected


class InTraining(Scored):
    """Logs the score in training: it is known after the validation of its epoch."""

    def training_step(self, batch, batch_idx):
        self.log("score", self.scores.get(self.current_epoch, BAD), on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def on_validation_epoch_end(self):
        pass


@pytest.mark.parametrize(("scores", "expected"), [({2: GOOD}, []), ({2: BAD}, [2]), ({1: BAD, 2: GOOD}, [])])
def test_a_metric_that_is_logged_in_training(scores, expected):
    """The value of the event's own epoch decides, not that of the epoch before."""
    callback = guarded(recover_epochs=1)
    module = InTraining({0: GOOD, 1: GOOD} | scores)

    if expected:
        with pytest.warns(UserWarning, match=r"the score is 0.1 and was 0.9"):
            fit(module, callback)
    else:
        fit(module, callback)

    assert taken_back(callback) == expected


class BySteps(Scored):
    """Logs the score at some steps of training only: it is known before the validation of its epoch."""

    def training_step(self, batch, batch_idx):
        if batch_idx == 1 and self.current_epoch in self.scores:
            self.log("score", self.scores[self.current_epoch])
        return super().training_step(batch, batch_idx)

    def on_validation_epoch_end(self):
        pass


@pytest.mark.parametrize(
    ("scores", "expected"), [({2: GOOD}, []), ({2: BAD}, [2]), ({3: GOOD}, [2]), ({1: BAD, 2: GOOD}, [])]
)
def test_a_metric_that_is_logged_by_steps_of_training(scores, expected):
    callback = guarded(recover_epochs=1)
    module = BySteps({0: GOOD, 1: GOOD} | scores)

    fit_and_warn(module, callback, expected)

    assert taken_back(callback) == expected


def test_what_was_logged_by_a_step_before_the_event_says_nothing_of_it():
    callback = guarded(schedule={10: 0.5}, interval="step", recover_epochs=0.5)  # after the second step of an epoch

    with pytest.warns(UserWarning, match="was not logged since"):
        fit(BySteps({0: GOOD, 1: GOOD, 2: GOOD}), callback, epochs=3)

    assert taken_back(callback) == [2]


@pytest.mark.parametrize(("every", "first", "fits"), [(1, 0, False), (1, 1, True), (3, 2, False), (3, 3, True)])
def test_an_event_before_the_first_validation_is_refused_before_training(every, first, fits):
    callback, module = guarded(schedule={first: 0.5}), Scored(dict.fromkeys(range(6), GOOD))

    if fits:
        fit(module, callback, epochs=6, check_val_every_n_epoch=every)
        assert len(callback.history) == 1
    else:
        with pytest.raises(MisconfigurationException, match=f"gives the score before .* as with start={every}, or let"):
            fit(module, callback, epochs=6, check_val_every_n_epoch=every)
        assert not module.losses


def test_a_metric_that_is_never_logged_is_an_error():
    with pytest.raises(MisconfigurationException, match=r"Expected monitor='score' to be one of the metrics"):
        fit(Scored({}), guarded(max_drop=None), epochs=3)


@pytest.mark.filterwarnings("ignore:.*is taken back", "ignore:.*exists and is not empty")
@pytest.mark.parametrize("max_drop", [None, 0.01])
def test_a_run_that_is_resumed_knows_that_the_metric_was_logged(tmp_path, max_drop):
    scores = {0: GOOD, 1: GOOD, 4: GOOD, 6: GOOD}
    saving = partial(ModelCheckpoint, tmp_path, save_top_k=-1, filename="{epoch}")
    fit(Scored(scores), guarded(max_drop=max_drop, recover_epochs=3), saving(), epochs=3)
    callback = guarded(max_drop=max_drop, recover_epochs=3)

    fit(Scored(scores), callback, saving(), ckpt_path=tmp_path / "epoch=1.ckpt")

    assert [record.reverted for record in callback.history] == [False]


class NoCallSometimes(Classifier):
    """A classifier whose validation steps call no network in some epochs."""

    def validation_step(self, batch, batch_idx):
        if self.current_epoch != 2:
            self(batch[0])


def test_an_accuracy_that_was_not_measured_since_the_event_is_lost():
    callback = guarded(monitor=None, max_drop=0.99, recover_epochs=1)

    with pytest.warns(UserWarning, match=r"the accuracy that max_drop watches was not logged since"):
        fit(NoCallSometimes(), callback, epochs=5)

    assert taken_back(callback) == [2]


# ---- several pruning callbacks


ONCE = {"schedule": "one_shot"}
FIRST = partial(guarded, pruning_ratio={"net.0": 0.5}, only=["net.0"], **ONCE)
SECOND = partial(
    CoresetPruningCallback, {"net.2": 0.5}, only=["net.2"], verbose=False, self_check=False, eval_batches=0, **ONCE
)


@pytest.mark.parametrize(("order", "at", "second_guard"), crossed([1, -1], [1, 2, 3, 4], [True, False, False]))
def test_events_of_other_callbacks_wait_until_one_has_recovered(order, at, second_guard):
    """What a callback has done is what the model shows, whichever comes first and whoever is taken back."""
    first = FIRST(start=2)
    options = {"monitor": "score", "max_drop": 0.01, "recover_epochs": 1} if second_guard else {}
    second, seen = SECOND(start=at, **options), Watcher()
    # Bad in the window of the first alone.
    module = Scored(dict.fromkeys(range(9), GOOD) | {2: BAD, 3: BAD})

    with pytest.warns(UserWarning, match=TAKEN_BACK):
        fit(module, *[first, second][::order], seen, epochs=9)

    original, now = widths(Classifier()), widths(module)
    for callback, name in ((first, "net.0"), (second, "net.2")):
        removed = sum(plan.channels_removed for plan in callback.plans)
        assert now[name][1] == original[name][1] - removed
    times = {callback: [record.epoch for record in callback.history] for callback in (first, second)}
    back = {callback: taken_back(callback) for callback in (first, second)}
    for one, other in ((first, second), (second, first)):
        for epoch in back[one]:
            # No event of the other between it and the epoch in which it was taken back.
            assert all(not epoch < time < epoch + 1 for time in times[other])
    for callback in (first, second):
        if callback.plans:
            assert callback.plans[-1].params_after >= count_params(module)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A checkpoint whose guard has not accepted its event yet."""
    path = tmp_path_factory.mktemp("watched")
    callback = guarded(schedule={2: 0.3, 4: 0.5}, recover_epochs=9)
    saving = ModelCheckpoint(path, filename="{epoch}", save_top_k=-1)
    with pytest.warns(UserWarning, match=TAKEN_BACK):
        fit(Scored(dict.fromkeys(range(9), BAD) | {0: GOOD, 1: GOOD}), callback, saving, epochs=5)
    return path / "epoch=2.ckpt"


@pytest.mark.parametrize("options", [{"max_drop": None, "recover_epochs": 1.0}, {"monitor_mode": "min"}])
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_an_event_that_another_guard_did_not_accept_is_kept(watched, options):
    """Nothing is taken back by a number that nobody watches any more."""
    module, callback = Scored(dict.fromkeys(range(9), BAD)), guarded(schedule={2: 0.3, 4: 0.5}, **options)
    with pytest.warns(UserWarning, match=r"event of epoch 2 yet, by its score \(max\), .*: the event is kept"):
        fit(module, callback, epochs=8, ckpt_path=watched)
    assert taken_back(callback) == []
    assert [record.epoch for record in callback.history] == [2, 4]


@pytest.mark.parametrize("swap", [torch.optim.Adagrad, torch.optim.RMSprop, partial(torch.optim.Adam, amsgrad=True)])
def test_a_state_of_another_kind_of_optimizer_is_not_put_back(swap):
    class Swaps(Scored):
        def on_train_epoch_start(self):
            if self.current_epoch == 3:
                self.trainer.optimizers = [swap(self.parameters(), lr=0.01)]

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

    module = Swaps(dict.fromkeys(range(9), BAD) | {0: GOOD, 1: GOOD})
    with pytest.warns(UserWarning, match=TAKEN_BACK), pytest.warns(UserWarning, match="could not be taken back"):
        fit(module, guarded(schedule={2: 0.5}, recover_epochs=2), epochs=6)
    assert widths(module) == widths(Scored({}))


def test_training_with_two_guards_ends_with_tensors_that_fit():
    rules = {"schedule": "linear", "end": 5, "every": 2}
    one, two = FIRST(start=2, **rules), guarded(pruning_ratio={"net.2": 0.5}, only=["net.2"], start=3, **rules)
    module = Scored({epoch: BAD if epoch in (2, 3) else GOOD for epoch in range(12)})

    with pytest.warns(UserWarning, match=TAKEN_BACK):
        fit(module, one, two, epochs=12)

    widths(module)  # which compares sizes with tensors
    assert len(one.plans) + len(two.plans) > 0


# ---- resumed with other callbacks


def averaging():
    return pytest.importorskip("lightning.pytorch.callbacks.weight_averaging").EMAWeightAveraging(decay=0.8)


OTHERS = {
    "EarlyStopping": partial(EarlyStopping, "score", mode="max", patience=50),
    "EMA": averaging,
    "SWA": partial(StochasticWeightAveraging, 1e-3, swa_epoch_start=8, device=None),
    "pruning": partial(SECOND, start=3),
}


class States(pl.Callback):
    """Keeps the model as it is when epochs begin; listed first."""

    def __init__(self):
        self.states = {}

    def on_train_epoch_start(self, trainer, pl_module):
        self.states[trainer.current_epoch] = copy.deepcopy(pl_module.state_dict())


@pytest.fixture
def interrupted(tmp_path):
    """What makes the checkpoint of epoch 3, in the window of an event of epoch 2, with callbacks of these names."""

    def make(*names: str) -> tuple[Path, dict]:
        states, saving = States(), ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
        module = Scored({0: GOOD, 1: GOOD} | dict.fromkeys(range(2, 10), BAD))
        callbacks = [OTHERS[name]() for name in names]
        fit(module, states, guarded(recover_epochs=4), *callbacks, saving, epochs=4, limit_train_batches=2)
        return tmp_path / "epoch=3.ckpt", states.states[2]

    return make


@pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`",
    "ignore:.*is taken back",
    "ignore:The checkpoint was not created with WeightAveraging",
    "ignore:Training ended before",
)
@pytest.mark.parametrize(
    ("first", "then"),
    [
        *(((name,), ()) for name in OTHERS),
        *(((), (name,)) for name in OTHERS),
        (("EMA", "EarlyStopping"), ("EarlyStopping", "EMA")),
        (("EMA",), ("EarlyStopping", "SWA")),
    ],
    ids=str,
)
def test_an_event_is_taken_back_after_a_resume_with_other_callbacks(interrupted, first, then):
    path, before = interrupted(*first)
    callback, module = guarded(recover_epochs=4), Scored({} | dict.fromkeys(range(2, 10), BAD))
    others = {name: OTHERS[name]() for name in then}

    seen = {}  # not in the callback: what it keeps of weights would be cut with them

    class Looks(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 6:
                ema = others.get("EMA")
                seen["model"] = copy.deepcopy(pl_module.state_dict())
                seen["average"] = None if ema is None else copy.deepcopy(ema._average_model.module.state_dict())

    fit(module, callback, Looks(), *others.values(), ckpt_path=path, epochs=7, limit_train_batches=2)

    assert taken_back(callback) == [2]
    assert callback.plans == []
    assert_same(seen["model"], before)
    if seen["average"] is not None:
        shapes = {name: tensor.shape for name, tensor in seen["average"].items()}
        assert shapes == {name: tensor.shape for name, tensor in before.items()}
        if "EMA" not in first:  # it begins anew from the model
            assert_same(seen["average"], before)


# ---- failures while an event is taken back


class Before(pl.Callback):
    """Keeps everything right before the pruning callback takes the event of epoch 2 back."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 4:
            self.state = everything(trainer, pl_module)


def everything(trainer, pl_module):
    ema = next((one._average_model for one in trainer.callbacks if hasattr(one, "_average_model")), None)
    (stopping,) = trainer.early_stopping_callbacks
    return {
        "model": copy.deepcopy(pl_module.state_dict()),
        "grads": [None if one.grad is None else one.grad.clone() for one in pl_module.parameters()],
        "text": str(pl_module),
        "average": {} if ema is None else copy.deepcopy(dict(ema.named_parameters())),
        "optimizers": [copy.deepcopy(list(optimizer.state.values())) for optimizer in trainer.optimizers],
        "patience": [stopping.wait_count, stopping.best_score.clone()],
    }


FAILURES = {
    "the second model": (savepoint, "resize", 2),
    "tensors": (savepoint, "_restore_tensors", 1),
    "the average's tensors": (savepoint, "_restore_tensors", 2),
    "the first optimizer": (optimizer_state, "restore_state", 1),
    "the second optimizer": (optimizer_state, "restore_state", 2),
    "patience": (savepoint, "by_state_key", 1),
}


class TwoOptimizers(Scored):
    def __init__(self, scores):
        super().__init__(scores)
        self.automatic_optimization = False
        self.net = mlp(8, 32, 24, 3)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        first, second = list(self.net[0].parameters()), [*self.net[2].parameters(), *self.net[4].parameters()]
        return torch.optim.SGD(first, 0.1, momentum=0.9), torch.optim.Adam(second)


@pytest.mark.parametrize(
    ("error", "where"),
    crossed([torch.OutOfMemoryError("out of memory"), KeyboardInterrupt(), ValueError("shapes")], FAILURES),
)
def test_a_failure_leaves_everything_as_it_was(monkeypatch, where, error):
    place, name, call = FAILURES[where]
    working, calls = getattr(place, name), []

    def failing(*args):
        calls.append(name)
        result = working(*args)  # what is done before it fails has to be undone
        if len(calls) == call:
            raise error
        return result

    before, callback = Before(), guarded(recover_epochs=2)
    module = TwoOptimizers({0: GOOD, 1: GOOD} | dict.fromkeys(range(2, 10), BAD))
    stopping = EarlyStopping("score", mode="max", patience=50)

    class Arms(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 4:
                monkeypatch.setattr(place, name, failing)

    trainer = make_trainer(before, Arms(), averaging(), stopping, callback, max_epochs=6)

    with pytest.raises(BaseException) as raised:  # noqa: PT011 - Lightning makes a SystemExit of an interrupt
        trainer.fit(module, make_loader(8), make_loader(8, samples=16))

    assert raised.value is error or isinstance(error, KeyboardInterrupt)
    assert calls
    after = everything(trainer, module)
    assert before.state["text"] == after["text"]
    assert_same(before.state["model"], after["model"])
    assert_same(before.state["average"], after["average"])
    for key in ("grads", "optimizers", "patience"):
        torch.testing.assert_close(after[key], before.state[key], rtol=0, atol=0)
    assert taken_back(callback) == []
    assert len(callback.plans) == 1
    assert callback.plans[0].params_after == count_params(module)
    # What is saved now is taken back by a run that goes on.
    monkeypatch.setattr(place, name, working)
    state = callback.state_dict()
    assert state["guard"]["window"]["failed"]


def test_an_optimizer_that_is_another_starts_anew(monkeypatch):
    module, callback = Scored({0: GOOD, 1: GOOD} | dict.fromkeys(range(2, 10), BAD)), guarded()

    class Replaces(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 3:
                trainer.strategy.optimizers = [*trainer.optimizers, torch.optim.SGD(pl_module.parameters(), 0.1)]

    with pytest.warns(UserWarning, match=r"The state of Adam, SGD could not be taken back|is taken back") as warned:
        fit(module, Replaces(), callback, epochs=5)

    assert any(re.search("could not be taken back", str(one.message)) for one in warned)
    assert taken_back(callback) == [2]
    assert count_params(module) == count_params(Classifier())
