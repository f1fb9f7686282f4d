"""An event happens as a whole or not at all, whatever fails in it."""

from __future__ import annotations

import copy
import importlib
import signal
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from breadth import some_of, thinned
from fitting import Classifier, MemoryLogger, assert_same, convnet, count_params, hooks_of, make_loader, make_trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_coreset import CoresetPruningCallback

Pruning = partial(CoresetPruningCallback, verbose=False)
LOADER = make_loader(1, 6, 6)


class InjectedError(Exception):
    """Raised on purpose."""


class Rich(Classifier):
    """Carries all that an event changes: BatchNorms, two optimizers, gradients that are accumulated over its time."""

    def __init__(self) -> None:
        super().__init__(convnet())
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.manual_backward(super().training_step(batch, batch_idx) / 3)
        if len(self.losses) % 3 == 0:  # of four batches in an epoch
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                optimizer.step()
                optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        first, *others = self.net.children()
        rest = [parameter for layer in others for parameter in layer.parameters()]
        return torch.optim.Adam(first.parameters(), lr=0.01), torch.optim.SGD(rest, lr=0.05, momentum=0.9)


class Averaging(pl.Callback):
    """Keeps an exponential average where Lightning's own callback does, which came with Lightning 2.6."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._average_model = AveragedModel(pl_module, avg_fn=get_ema_avg_fn(0.7), use_buffers=True)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._average_model.update_parameters(pl_module)


class Fault:
    """Fails in the n-th call of a function once it is armed, before or after the function has done its work."""

    def __init__(
        self, monkeypatch: Any, target: str, call: int = 1, after: bool = False, error: BaseException | None = None
    ) -> None:
        place, _, name = target.rpartition(".")
        owner = _found(place)
        self.function: Callable[..., Any] = getattr(owner, name)
        self.left, self.after, self.error, self.armed = call, after, error or InjectedError(), False
        fault = self

        def failing(*args: Any, **kwargs: Any) -> Any:
            return fault(*args, **kwargs)

        monkeypatch.setattr(owner, name, failing)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= self.armed
        if self.armed and self.left == 0:
            if self.after:
                self.function(*args, **kwargs)
            raise self.error
        return self.function(*args, **kwargs)


def _found(path: str) -> Any:
    """A module of the package, or a class in one."""
    path = f"lightning_coreset.{path}"
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


class Arm(pl.Callback):
    """Arms a fault before the event of an epoch, and remembers what everything is like by then."""

    def __init__(self, fault: Fault | None, epoch: int = 2) -> None:
        self.fault, self.epoch = fault, epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            assert any(parameter.grad is not None for parameter in pl_module.parameters())
            self.before = everything(trainer, pl_module)
            if self.fault is not None:
                self.fault.armed = True


def everything(trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
    """Copies of all that training goes on with, and the identity of the objects that hold it."""
    averaging, stopping, pruning = (_only(trainer, kind) for kind in (Averaging, EarlyStopping, Pruning.func))
    models = {"model": pl_module, "average": averaging._average_model}
    found = {
        "states": {name: dict(model.state_dict()) for name, model in models.items()},
        "grads": {name: p.grad for name, p in pl_module.named_parameters()},
        "frozen": {name: p.requires_grad for name, p in pl_module.named_parameters()},
        "optimizers": [[optimizer.state[p] for p in _parameters(optimizer)] for optimizer in trainer.optimizers],
        "stopping": stopping.state_dict(),
        "pruning": pruning.state_dict(),
        "sizes": {name: {k: v for k, v in vars(m).items() if type(v) is int} for name, m in pl_module.named_modules()},
    }
    objects = [*pl_module.parameters(), *pl_module.buffers(), *trainer.optimizers]
    return copy.deepcopy(found) | {"objects": list(map(id, objects))}


def _only(trainer: pl.Trainer, kind: type) -> Any:
    (found,) = [callback for callback in trainer.callbacks if isinstance(callback, kind)]
    return found


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def run(*callbacks: pl.Callback, kind: Any = Pruning, stop_patience: int = 99, **options: Any) -> tuple[Any, ...]:
    """Train for four epochs with events in epochs 1 and 2."""
    torch.manual_seed(0)
    module = Rich()
    pruning = kind(0.5, schedule={1: 0.3, 2: 0.5}, recalibrate_batches=2, example_inputs=LOADER.dataset[:2][0])
    watchers = [Averaging(), EarlyStopping("loss", patience=stop_patience)]
    trainer = make_trainer(*callbacks, *watchers, pruning, **({"max_epochs": 4} | options))
    return module, pruning, trainer


def assert_everything_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert _same(value, other[key]), key


def _same(one: Any, other: Any) -> bool:
    """Bitwise, however nested."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and one == other


# What, in which call, and whether it has done its work by then. In the order of an event.
POINTS = {
    "structure": ("training.event_planner.analyse", 1, False),
    "structure read": ("training.event_planner.analyse", 1, True),
    "plan": ("training.event_planner.make_plan", 1, False),
    "plan made": ("training.event_planner.make_plan", 1, True),
    "accuracy before": ("training.Monitor.evaluate", 1, False),
    "agreement": ("training.event.check_agreement", 1, False),
    "average": ("training.event.shrink_copy", 1, False),
    "average cut": ("training.event.shrink_copy", 1, True),
    "surgery": ("training.event.apply_changes", 1, False),
    "surgery done": ("training.event.apply_changes", 1, True),
    "first slice": ("surgery.weight_norms.new_value", 1, False),
    "a slice of the model": ("surgery.weight_norms.new_value", 14, False),
    "first tensor in place": ("surgery.apply.replace_data", 1, True),
    "a tensor of the model in place": ("surgery.apply.replace_data", 14, True),
    "sizes of modules": ("surgery.apply.set_attributes", 2, False),
    "first optimizer": ("training.event.slice_optimizer_state", 1, False),
    "first optimizer cut": ("training.event.slice_optimizer_state", 1, True),
    "second optimizer cut": ("training.event.slice_optimizer_state", 2, True),
    "a slice of its state": ("optimizers.entries.slice_tensor", 6, False),
    "recalibration": ("training.Recalibration.run", 1, False),
    "recalibrated": ("training.Recalibration.run", 1, True),
    "the user's hook": ("callback.CoresetPruningCallback.on_prune", 1, False),
    "accuracy after": ("training.Monitor.evaluate", 2, False),
    "warnings of the optimizers": ("training.event._warn_of_resets", 1, True),
}


@pytest.mark.parametrize(("target", "call", "after"), thinned(POINTS, 6))
def test_a_failure_reaches_the_user_and_leaves_everything_as_it_was(monkeypatch, target, call, after):
    arm = Arm(Fault(monkeypatch, target, call, after))
    module, pruning, trainer = run(arm)

    with pytest.raises(InjectedError):
        trainer.fit(module, LOADER)

    assert_everything_same(everything(trainer, module), arm.before)
    assert len(pruning.plans) == len(pruning.history) == 1
    assert hooks_of(module) == 0


class Brave(Pruning.func):  # type: ignore[name-defined]
    """Goes on training when an event fails."""

    caught = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, verbose=False, **kwargs)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        try:
            super().on_train_epoch_start(trainer, pl_module)
        except InjectedError:
            self.caught += 1


@pytest.fixture(scope="module")
def undisturbed_run():
    module, pruning, trainer = run(Arm(None))
    trainer.fit(module, LOADER)
    return everything(trainer, module), module.losses, pruning.plans


@pytest.mark.parametrize("point", some_of(POINTS, "plan", "second optimizer cut"))
def test_who_catches_it_can_train_on_and_the_event_is_made_up_for(monkeypatch, undisturbed_run, point):
    """At the next batch; then all is as if nothing had happened, to the last bit."""
    arm = Arm(Fault(monkeypatch, *POINTS[point]))
    module, pruning, trainer = run(arm, kind=Brave)

    trainer.fit(module, LOADER)

    expected, losses, plans = undisturbed_run
    assert pruning.caught == 1
    assert module.losses == losses
    assert [plan.params_after for plan in pruning.plans] == [plan.params_after for plan in plans]
    found = everything(trainer, module)
    for key in ("states", "grads", "optimizers", "stopping", "sizes"):
        assert _same(found[key], expected[key]), key


class Starved(TorchDispatchMode):
    """Runs out of memory in the n-th operation on tensors."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left == 0:
            raise torch.OutOfMemoryError("on purpose")
        return func(*args, **(kwargs or {}))


class Starving(Fault):
    """Has no memory left for the n-th operation of what a function does."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with Starved(self.left) if self.armed else nullcontext():
            return self.function(*args, **kwargs)


@pytest.mark.parametrize("operation", some_of([1, 2, 10, 25, 50, 100, 150], 1, 50, 150))
def test_out_of_memory_in_whichever_operation_of_surgery(monkeypatch, operation):
    arm = Arm(Starving(monkeypatch, "training.event._apply", operation))
    module, _, trainer = run(arm)

    with pytest.raises(torch.OutOfMemoryError):
        trainer.fit(module, LOADER)

    assert_everything_same(everything(trainer, module), arm.before)


@pytest.mark.slow
def test_ctrl_c_in_an_event(monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # Lightning would ignore all further ones
    arm = Arm(Fault(monkeypatch, "training.event.slice_optimizer_state", 1, True, KeyboardInterrupt()))
    module, _, trainer = run(arm)

    with pytest.raises(SystemExit):
        trainer.fit(module, LOADER)

    assert_everything_same(everything(trainer, module), arm.before)


@pytest.mark.parametrize("target", ["analyse", "tried_groups", "check_reachable", "measure"])
def test_a_failure_before_the_first_event_leaves_everything_as_it_was(monkeypatch, target):
    fault = Fault(monkeypatch, f"training.event_planner.{target}", after=True)
    fault.armed = True
    module, pruning, trainer = run()
    before = copy.deepcopy(module.state_dict())

    with pytest.raises(InjectedError):
        trainer.fit(module, LOADER)

    assert_same(dict(module.state_dict()), dict(before))
    assert module.losses == []
    assert pruning.plans == []
    assert hooks_of(module) == 0


# ---- what comes after


class InterruptedLogger(MemoryLogger):
    """Ctrl-C comes when it logs the second event."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        if len({value for _, value in self.of("coreset/params")}) == 3:
            raise KeyboardInterrupt


class SaveOnException(pl.Callback):
    def __init__(self, path: Any) -> None:
        self.path = path

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        trainer.save_checkpoint(self.path)


@pytest.mark.slow
def test_an_event_is_kept_and_saved_if_its_report_is_interrupted(tmp_path, monkeypatch, undisturbed_run):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    module, pruning, trainer = run(SaveOnException(tmp_path / "saved.ckpt"), Arm(None), logger=InterruptedLogger())

    with pytest.raises(SystemExit):
        trainer.fit(module, LOADER)

    assert len(pruning.plans) == len(pruning.history) == 2
    assert count_params(module) == pruning.plans[-1].params_after

    again, resumed, trainer = run(SaveOnException(tmp_path / "again.ckpt"))
    trainer.fit(again, LOADER, ckpt_path=tmp_path / "saved.ckpt")

    assert [plan.params_after for plan in resumed.plans] == [plan.params_after for plan in undisturbed_run[2]]
    assert count_params(again) == pruning.plans[-1].params_after
    assert trainer.current_epoch == 4
