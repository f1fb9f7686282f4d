"""How long training is, where it is, and when events happen."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
from breadth import crossed, thinned
from fitting import Classifier, MemoryLogger, assert_same, convnet, make_loader, make_trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint, StochasticWeightAveraging
from torch import optim
from torch.utils.data import DataLoader, IterableDataset

from lightning_coreset import CoresetPruningCallback, PruningSchedule
from lightning_coreset.training.timeline import Timeline, training_epochs, training_steps

Pruning = partial(CoresetPruningCallback, verbose=False)


class Ask(pl.Callback):
    """Asks once training has begun, and says when it really ended."""

    def on_train_start(self, trainer, pl_module):
        self.expected = training_epochs(trainer), training_steps(trainer)

    def on_train_end(self, trainer, pl_module):
        self.real = trainer.current_epoch, trainer.fit_loop.epoch_loop._batches_that_stepped


class Stop(pl.Callback):
    """Ends training by itself."""

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= 8


class Endless(IterableDataset):
    """Batches of which nobody knows how many there are."""

    def __iter__(self):
        return iter(make_loader(8).dataset)


class Manual(Classifier):
    """Two optimizers; the second one steps after every ``every``-th batch only."""

    def __init__(self, every: int = 1) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.every = every

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()  # type: ignore[misc]
        self.manual_backward(super().training_step(batch, batch_idx))
        first.step()
        if batch_idx % self.every == 0:
            second.step()
        for optimizer in (first, second):
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return optim.SGD(self.net[0].parameters(), 0.1), optim.Adam(self.net[2:].parameters(), 0.01)


# ---- the length of training; four batches an epoch


@pytest.mark.parametrize(
    ("options", "epochs", "steps"),
    [
        ({"max_epochs": 3}, 3, 12),
        ({"max_steps": 8, "max_epochs": -1}, 2, 8),
        ({"max_steps": 9, "max_epochs": -1}, 3, 9),
        ({"max_steps": 9, "max_epochs": 2}, 2, 8),
        ({"max_steps": 5, "max_epochs": 7}, 2, 5),
        ({"max_steps": 5, "max_epochs": -1, "accumulate_grad_batches": 2}, 3, 5),
        ({"max_steps": 5, "max_epochs": -1, "accumulate_grad_batches": 3}, 3, 5),  # the rest of an epoch makes a step
        ({"max_epochs": 3, "accumulate_grad_batches": 3}, 3, 6),
        ({"max_steps": 5, "max_epochs": -1, "limit_train_batches": 2}, 3, 5),
        ({"max_steps": 4, "max_epochs": -1, "limit_train_batches": 0.5}, 2, 4),
        ({"max_epochs": 5, "overfit_batches": 1}, 5, 5),
        ({"fast_dev_run": True}, 1, 1),
        ({"fast_dev_run": 2}, 1, 2),
    ],
)
def test_length_of_training(options, epochs, steps):
    ask = Ask()

    make_trainer(ask, **options).fit(Classifier(), make_loader(8))

    assert ask.expected == ask.real == (epochs, steps)


@pytest.mark.parametrize(
    ("options", "epochs", "steps"),
    [
        ({"max_epochs": 5}, 5, 4 + 2 + 2 + 1 + 1),
        ({"max_epochs": -1, "max_steps": 7}, 3, 7),
        ({"max_epochs": -1, "max_steps": 9}, 4, 9),
    ],
)
def test_length_of_training_if_accumulation_changes(options, epochs, steps):
    ask = Ask()
    accumulation = GradientAccumulationScheduler({1: 2, 3: 4})

    make_trainer(accumulation, ask, **options).fit(Classifier(), make_loader(8))

    assert ask.expected == ask.real == (epochs, steps)


def test_the_epoch_that_swa_adds_for_batch_statistics_does_not_count():
    ask = Ask()

    make_trainer(ask, StochasticWeightAveraging(0.01), max_epochs=3).fit(Classifier(convnet()), make_loader(1, 6, 6))

    assert ask.expected == (3, 12)
    assert ask.real[0] == 4


@pytest.mark.parametrize(("every", "real"), [(1, (3, 10)), (2, (4, 13))])
def test_max_steps_count_the_steps_of_every_optimizer(every, real):
    """What is told is right where all step in every batch, and too short where they step less often."""
    ask = Ask()

    make_trainer(ask, max_steps=20, max_epochs=-1).fit(Manual(every), make_loader(8))

    assert ask.expected == (3, 10)
    assert ask.real == real


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_epochs": 2}, (2, None)),
        ({"max_epochs": -1, "max_steps": 6}, (None, 6)),
        ({"max_epochs": 2, "max_steps": 6}, (2, 6)),
    ],
)
def test_a_loader_without_length_leaves_what_does_not_depend_on_it(options, told):
    ask = Ask()

    make_trainer(ask, **options).fit(Classifier(), DataLoader(Endless(), batch_size=16))

    assert ask.expected == told


def test_training_without_end_has_no_length():
    ask = Ask()

    make_trainer(ask, Stop(), max_epochs=-1).fit(Classifier(), make_loader(8))

    assert ask.expected == (None, None)


# ---- events by steps


class Steps(Pruning.func):  # type: ignore[name-defined]
    """Remembers after how many steps, and before which batch, events happened."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, interval="step", verbose=False, **kwargs)
        self.steps: list[int] = []
        self.batches: list[int] = []

    def on_prune(self, plan, trainer, pl_module):
        self.steps.append(trainer.fit_loop.epoch_loop._batches_that_stepped)
        self.batches.append(len(pl_module.losses))


def fit(callback, *others, module=None, loader=None, ckpt_path=None, **options):
    module = Classifier() if module is None else module
    trainer = make_trainer(callback, *others, **({"max_epochs": 6} | options))
    trainer.fit(module, make_loader(8) if loader is None else loader, ckpt_path=ckpt_path)
    return module


MAPPING = {"schedule": {2: 0.1, 5: 0.3, 9: 0.5}}


@pytest.mark.parametrize(
    ("arguments", "options", "steps", "batches"),
    thinned(
        [
            (MAPPING, {}, [2, 5, 9], [2, 5, 9]),
            (MAPPING, {"accumulate_grad_batches": 2}, [2, 5, 9], [4, 10, 18]),
            (MAPPING, {"accumulate_grad_batches": 3}, [2, 5, 9], [4, 11, 19]),  # steps after 3, 4, 7, 8, 11, 12, ...
            (MAPPING, {"max_epochs": -1, "max_steps": 11}, [2, 5, 9], [2, 5, 9]),
            ({"schedule": "linear", "start": 3, "end": 9, "every": 3}, {}, [3, 6, 9], [3, 6, 9]),
            ({"schedule": "linear", "start": 0.25, "end": 0.75, "every": 6}, {}, [6, 12, 18], [6, 12, 18]),
            ({"schedule": "linear", "start": 0.5, "end": 1.0, "every": 3}, {"max_steps": 8}, [4, 7], [4, 7]),
            ({"schedule": "one_shot", "start": 0.5}, {}, [12], [12]),
            ({"schedule": "one_shot", "start": 0}, {}, [0], [0]),
            ({"schedule": "one_shot", "start": 23}, {}, [23], [23]),  # before the very last step
            ({"schedule": "linear"}, {"limit_train_batches": 2}, [2, 3, 4, 5, 6, 7, 8], [2, 3, 4, 5, 6, 7, 8]),
            (MAPPING, {"fast_dev_run": 3}, [0], [0]),
            (MAPPING, {"val_check_interval": 0.5, "num_sanity_val_steps": 2}, [2, 5, 9], [2, 5, 9]),
        ],
        3,
    ),
)
def test_events_happen_at_their_steps(arguments, options, steps, batches):
    callback = Steps(0.5, **arguments)

    module = fit(callback, **options)

    assert callback.steps == steps
    assert callback.batches == batches
    assert callback.plans[-1].reached == pytest.approx(0.5, abs=36 / 1155)
    assert all(map(math.isfinite, module.losses))


def test_about_ten_events_by_default():
    callback = Steps(0.5, schedule="linear")

    fit(callback, max_epochs=30)

    assert callback.steps == [*range(12, 84, 8), 84]  # from a tenth of 120 steps on, to seven tenths


def test_events_follow_an_accumulation_that_changes():
    callback = Steps(0.5, schedule="linear", start=0.5, end=1.0, every=2)

    fit(callback, GradientAccumulationScheduler({1: 2, 3: 4}), max_epochs=5)  # ten steps

    assert callback.steps == [5, 7, 9]
    assert callback.batches == [6, 10, 16]  # steps after 1, 2, 3, 4; 6, 8; 10, 12; 16; 20


@pytest.mark.parametrize("options", [{"max_epochs": 4}, {"max_epochs": -1, "max_steps": 32}])
def test_manual_optimization_with_two_optimizers_counts_batches(options):
    callback = Steps(0.5, schedule="linear", start=0.25, end=0.75, every=4)

    fit(callback, module=Manual(), **options)

    assert callback.steps == callback.batches == [4, 8, 12]
    assert callback.plans[-1].reached == pytest.approx(0.5, abs=36 / 1155)


def test_an_event_at_step_zero_of_manual_optimization_waits_for_the_first_step():
    """Without example inputs that step shows the structure; it is over when the event happens."""
    callback = Steps(0.3, schedule={0: 0.3})

    fit(callback, module=Manual())

    assert callback.batches == [1]


def test_a_loader_without_length():
    callback = Steps(0.5, schedule="linear", start=0.25, end=0.75, every=3)

    fit(callback, loader=DataLoader(Endless(), batch_size=16), max_epochs=-1, max_steps=12)

    assert callback.steps == [3, 6, 9]


def test_training_without_end_takes_steps_but_no_fractions():
    with pytest.raises(MisconfigurationException, match=r"fractions of training, which has no end.* as steps"):
        fit(Steps(0.5), max_epochs=-1)

    callback = Steps(0.5, schedule="linear", start=2, end=4, every=2)
    fit(callback, Stop(), max_epochs=-1)
    assert callback.steps == [2, 4]


def test_events_are_logged_at_their_steps():
    logger = MemoryLogger()

    fit(Steps(0.5, **MAPPING), logger=logger, max_epochs=3)

    assert [step for step, _ in logger.of("coreset/params")] == [2, 3, 5, 7, 9, 11]  # 3, 7, 11 are ends of epochs


@pytest.mark.parametrize(("saved", "accumulated"), crossed([1, 2, 3, 4, 5, 6, 9], [1, 2]))
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_run_that_resumes_at_any_step_ends_as_the_uninterrupted_one(saved, accumulated, tmp_path):
    """Right before, at and after the step of an event, in the middle of an epoch and at its end."""

    def run(folder, **options):
        pl.seed_everything(0, verbose=False)
        callback = Steps(0.5, schedule={2: 0.2, 4: 0.35, 6: 0.5})
        kept = ModelCheckpoint(tmp_path / folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        loader = Resumable(make_loader(8))
        options |= {"enable_checkpointing": True, "accumulate_grad_batches": accumulated, "max_epochs": 3 * accumulated}
        module = fit(callback, kept, loader=loader, **options)
        return module, callback

    module, callback = run("first")
    with pytest.warns(UserWarning, match="The dirpath has changed"):
        again, resumed = run("second", ckpt_path=tmp_path / "first" / f"step={saved}.ckpt")

    assert_same(dict(again.state_dict()), dict(module.state_dict()))
    assert [plan.params_after for plan in resumed.plans] == [plan.params_after for plan in callback.plans]
    assert callback.steps == [2, 4, 6]
    assert resumed.steps == [step for step in callback.steps if step >= saved]


class Resumable:
    """A loader that goes on in the middle of an epoch, as those with a ``state_dict`` do."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader, self.given = loader, 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Any:
        begin, self.given = self.given % len(self), self.given % len(self)
        for batch in list(self.loader)[begin:]:
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.given = state["given"]


# ---- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": "batch"}, "`interval` to be 'epoch' or 'step' but got 'batch'"),
        ({"schedule": {0: 0.5, 2: 0.4}}, "0.5 at step 0 and 0.4 at step 2"),
        ({"schedule": {1.5: 0.5}}, "steps, counted from 0, but got 1.5"),
        ({"start": -1}, "`start` to be a step, counted from 0, but got -1"),
        ({"start": 1.5}, "To mean a step, give an int"),
        ({"every": 0}, "the steps between events, but got 0"),
    ],
)
def test_wrong_arguments_are_refused_in_the_words_of_steps(arguments, message):
    with pytest.raises(ValueError, match=message):
        CoresetPruningCallback(0.5, **({"interval": "step"} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": 24, "end": 30}, r"`start` .* 24 steps of training \(0 to 23\) but got step 24"),
        ({"schedule": {24: 0.5}}, "within the 24 steps of training"),
    ],
)
def test_events_beyond_training_are_an_error_before_it(arguments, message):
    module = Classifier()

    with pytest.raises(ValueError, match=message):
        fit(Steps(0.5, **arguments), module=module)

    assert module.losses == []


def test_steps_after_the_end_of_training_cause_a_warning():
    with pytest.warns(UserWarning, match=r"Training has 24 steps: the schedule's events of steps \[24\] will not"):
        fit(Steps(schedule={2: 0.2, 24: 0.5}))


def test_position_is_that_of_the_interval():
    class Position(pl.Callback):
        def __init__(self):
            self.epochs, self.steps = [], []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            for interval, seen in (("epoch", self.epochs), ("step", self.steps)):
                seen.append(Timeline(PruningSchedule(interval=interval), 0.5).position(trainer))

    position = Position()

    make_trainer(position, max_epochs=2, accumulate_grad_batches=2).fit(Classifier(), make_loader(8))

    assert position.epochs == [0, 0, 0, 0, 1, 1, 1, 1]
    assert position.steps == [0, 0, 1, 1, 2, 2, 3, 3]
