"""The callback in real training: when it prunes, how much, and what it leaves undisturbed."""

import copy
import io
import math
import pickle
import re
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from breadth import crossed, some_of, thinned
from fitting import (
    Classifier,
    MemoryLogger,
    Validated,
    Watcher,
    assert_same,
    convnet,
    count_params,
    hooks_of,
    make_loader,
    make_trainer,
    mlp,
    widths,
)
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, ReduceLROnPlateau, SequentialLR, StepLR

from lightning_coreset import CoresetPruningCallback, count_macs
from lightning_coreset.training import Progress

Pruning = partial(CoresetPruningCallback, verbose=False)

# (8, 32, 24, 3): a channel of net.0 is 8 + 1 + 24 parameters of 1155, one of net.2 is 32 + 1 + 3.
CHANNEL = 36 / 1155


def fit(module, *callbacks, loader=None, **options):
    trainer = make_trainer(*callbacks, **({"max_epochs": 6} | options))
    trainer.fit(module, loader or make_loader(8))
    return trainer


class StopAfter(pl.Callback):
    """Ends training after so many optimizer steps."""

    def __init__(self, steps):
        self.steps = steps

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= self.steps


# ---- that it prunes, when, and how much


@pytest.mark.parametrize(
    ("net", "shape", "channel"),
    [
        pytest.param(mlp(8, 32, 24, 3), (8,), 36, id="MLP"),
        pytest.param(convnet(), (1, 6, 6), 12 * 9 + 1 + 2 + 4 * 3, id="convolutions with BatchNorm"),
    ],
)
@pytest.mark.slow
def test_a_network_shrinks_while_it_learns(net, shape, channel):
    module = Classifier(copy.deepcopy(net))
    original, before = count_params(module), widths(module)
    callback = CoresetPruningCallback()

    fit(module, callback, loader=make_loader(*shape), max_epochs=10)

    after = widths(module)
    assert after.keys() == before.keys()
    first, *_, last = [name for name in after if len(after[name]) == 2]  # BatchNorm has one width
    assert after[first][0] == before[first][0]
    assert after[first][1] < before[first][1]
    assert after[last][0] < before[last][0]
    assert after[last][1] == before[last][1] == 3
    assert 1 - count_params(module) / original == pytest.approx(0.5, abs=channel / original)
    assert callback.plans[-1].params_after == count_params(module)
    assert module(torch.randn(2, *shape)).shape == (2, 3)
    assert sum(module.losses[-4:]) < 0.7 * sum(module.losses[:4])
    assert len(module.losses) == 40


# Over six epochs: what is gone from which epoch on, as a fraction of the original.
@pytest.mark.parametrize(
    ("arguments", "expected"),
    thinned(
        [
            ({"schedule": "one_shot", "start": 2}, {2: 0.5}),
            ({"schedule": "one_shot", "start": 0.5}, {3: 0.5}),
            ({"schedule": "one_shot", "start": 4, "end": 0.1}, {4: 0.5}),
            ({"schedule": "linear", "start": 1, "end": 4}, {1: 0.125, 2: 0.25, 3: 0.375, 4: 0.5}),
            ({"schedule": "linear", "start": 0.1, "end": 0.7}, {1: 0.125, 2: 0.25, 3: 0.375, 4: 0.5}),
            ({"schedule": "linear", "start": 3, "end": 0.7}, {3: 0.25, 4: 0.5}),
            ({"schedule": "linear", "start": 0.0, "end": 2}, {0: 1 / 6, 1: 1 / 3, 2: 0.5}),
            ({"schedule": "linear", "start": 0, "end": 5, "every": 2}, {0: 0.125, 2: 0.25, 4: 0.375, 5: 0.5}),
            ({"schedule": "cubic", "start": 1, "end": 2}, {1: 0.4375, 2: 0.5}),
            ({}, {1: 0.2890625, 2: 0.4375, 3: 0.4921875, 4: 0.5}),
            ({"schedule": "cosine", "start": 1, "end": 2}, {1: 0.25, 2: 0.5}),
            ({"schedule": {1: 0.2, 4: 0.45}}, {1: 0.2, 4: 0.45}),
            ({"schedule": lambda progress: progress**2, "start": 1, "end": 2}, {1: 0.125, 2: 0.5}),
        ],
        3,
    ),
)
def test_schedules_count_against_the_original(arguments, expected):
    module, watcher = Classifier(), Watcher()
    original = count_params(module)
    callback = Pruning(0.5, **arguments)

    fit(module, callback, watcher)

    assert [plan.requested for plan in callback.plans] == pytest.approx(list(expected.values()))
    assert {plan.params_original for plan in callback.plans} == {original}
    gone = 0.0
    for epoch in range(6):
        gone = expected.get(epoch, gone)
        assert 1 - watcher.params[epoch] / original == pytest.approx(gone, abs=CHANNEL), f"epoch {epoch}"
    changes = [epoch for epoch in range(1, 6) if watcher.params[epoch] != watcher.params[epoch - 1]]
    assert changes == [epoch for epoch in expected if epoch > 0]


@pytest.mark.parametrize("unit", ["params", "macs", "channels"])
@pytest.mark.slow
def test_the_ratio_counts_its_unit(unit):
    module = Classifier(convnet())
    example = torch.randn(1, 1, 6, 6)

    def size() -> int:
        channels = sum(layer.out_channels for layer in module.net if isinstance(layer, nn.Conv2d))
        return {"params": count_params(module), "macs": count_macs(module, example), "channels": channels}[unit]

    original = size()
    callback = Pruning(0.4, unit=unit)
    fit(module, callback, loader=make_loader(1, 6, 6), max_epochs=3)

    channel = {"params": 12 * 9 + 15, "macs": 12 * 16 * 9, "channels": 1}[unit]
    assert 1 - size() / original == pytest.approx(0.4, abs=channel / original)
    assert callback.plans[-1].reached == pytest.approx(1 - size() / original)


def test_together_takes_from_every_group_and_bottom_up_finishes_one_after_another():
    sizes = {}
    for order in ("together", "bottom_up"):
        module = Classifier(mlp(8, 32, 24, 40, 3))
        callback = Pruning(0.5, order=order, schedule="linear", start=1, end=3, method="magnitude")
        fit(module, callback, max_epochs=4)
        sizes[order] = [[group.channels_after for group in plan.groups] for plan in callback.plans]
        assert callback.plans[-1].reached == pytest.approx(
            0.5, abs=65 / count_params(Classifier(mlp(8, 32, 24, 40, 3)))
        )

    before = [32, 24, 40]
    for after in sizes["together"]:
        assert all(now < then for now, then in zip(after, before, strict=True))
        before = after
    one, two, three = sizes["bottom_up"][-1]
    assert one < 32
    assert two < 24
    assert three < 40
    assert sizes["bottom_up"] == [[one, 24, 40], [one, two, 40], [one, two, three]]


def test_bottom_up_with_more_groups_than_events():
    module = Classifier(mlp(8, 16, 16, 16, 16, 3))
    callback = Pruning(0.5, order="bottom_up", schedule="linear", start=0, end=1)

    fit(module, callback, max_epochs=2)

    touched = [[group.channels_after < 16 for group in plan.groups] for plan in callback.plans]
    assert touched == [[True, True, False, False], [True] * 4]
    assert 1 - count_params(module) / callback.plans[0].params_original == pytest.approx(0.5, abs=33 / 1011)


# Four batches an epoch.
@pytest.mark.parametrize(
    ("arguments", "options", "epochs", "steps"),
    [
        ({}, {"max_steps": 12, "max_epochs": -1}, [1, 2], math.inf),  # three epochs
        ({}, {"max_steps": 6, "max_epochs": -1, "accumulate_grad_batches": 2}, [1, 2], math.inf),
        ({}, {"max_epochs": 3, "limit_train_batches": 1}, [1, 2], math.inf),
        ({}, {"max_epochs": 1}, [0], math.inf),
        ({}, {"fast_dev_run": True}, [0], math.inf),
        ({"schedule": "one_shot", "start": 0.9}, {"fast_dev_run": 2}, [0], math.inf),
        ({"start": 1, "end": 2}, {"max_epochs": -1, "limit_train_batches": 2}, [1, 2], 8),
        ({"schedule": "one_shot", "start": 2}, {"max_epochs": -1}, [2], 16),
        ({"schedule": {1: 0.2, 2: 0.5}}, {"max_epochs": -1}, [1, 2], 16),
    ],
)
def test_lengths_of_training(arguments, options, epochs, steps):
    class Times(Pruning.func):
        times: list[int]

        def on_prune(self, plan, trainer, pl_module):
            self.times = [*getattr(self, "times", []), trainer.current_epoch]

    module = Classifier()
    callback = Times(verbose=False, **arguments)

    fit(module, callback, StopAfter(steps), **options)

    assert callback.times == epochs
    assert 1 - count_params(module) / 1155 == pytest.approx(0.5, abs=CHANNEL)


def test_fractions_of_training_without_end_are_an_error():
    module = Classifier()

    with pytest.raises(MisconfigurationException, match=r"max_epochs or max_steps, since start=0\.1 and end=0\.7"):
        fit(module, Pruning(), max_epochs=-1)

    assert module.losses == []


def test_training_that_stops_early_warns_of_missed_events():
    stop = EarlyStopping("loss", stopping_threshold=1e9, check_on_train_epoch_end=True)

    with pytest.warns(UserWarning, match=r"ended before the pruning events of epochs \[2, 4\]; the last ratio reached"):
        fit(Classifier(), Pruning(schedule={0: 0.2, 2: 0.3, 4: 0.5}), stop)


def test_epochs_of_a_mapping_after_the_end_of_training_cause_a_warning():
    module = Classifier()

    with pytest.warns(UserWarning, match=r"Training has 3 epochs: .*epochs \[3, 7\] will not happen"):
        fit(module, Pruning(schedule={1: 0.2, 3: 0.3, 7: 0.5}), max_epochs=3)

    assert 1 - count_params(module) / 1155 == pytest.approx(0.2, abs=CHANNEL)


def test_a_ratio_beyond_reach_ends_with_one_channel_each_and_training_goes_on():
    module = Classifier(mlp(8, 4, 3))
    callback = Pruning(0.9, schedule="linear", start=0, end=4)

    with pytest.warns(UserWarning, match=r"epoch 4 found nothing left.*70\.59% of.*90\.00% was requested"):
        fit(module, callback)

    assert widths(module) == {"net.0": (8, 1), "net.2": (1, 3)}
    assert len(module.losses) == 24


RULES = [
    ({"pruning_ratio": {"net.0": 0.5, "net.2": 0.25}}, (16, 18)),
    ({"pruning_ratio": {"net.0": 0.5}}, (16, 24)),
    ({"pruning_ratio": {nn.Linear: 0.25}}, (24, 18)),
    ({"pruning_ratio": {re.compile(r"net\.[02]"): 0.5}, "round_to": 4}, (16, 12)),
    ({"pruning_ratio": 0.3, "only": ["net.2"], "unit": "channels"}, (32, 17)),
    ({"pruning_ratio": 0.5, "ignore": [re.compile("net.2")], "unit": "channels"}, (16, 24)),
]


@pytest.mark.parametrize(("rules", "order"), crossed(RULES, ["together", "bottom_up"]))
def test_rules_count_against_the_original(rules, order):
    arguments, expected = rules
    module = Classifier()

    fit(module, Pruning(**arguments, order=order, schedule="linear", start=1, end=4))

    assert (widths(module)["net.0"][1], widths(module)["net.2"][1]) == expected


def test_a_rule_that_names_nothing_prunable_causes_a_warning():
    with pytest.warns(UserWarning, match=r"net\.4"):  # its outputs are the network's
        fit(Classifier(), Pruning({"net.0": 0.5, "net.4": 0.5}))


# ---- what training goes on with


def schedule_of(kind, optimizer):
    if kind == "step":
        return {"optimizer": optimizer, "lr_scheduler": StepLR(optimizer, 2, 0.3)}
    if kind == "plateau":
        scheduler = {"scheduler": ReduceLROnPlateau(optimizer, patience=0, factor=0.5), "monitor": "clock"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}
    scheduler: Any
    if kind == "cosine":
        scheduler = CosineAnnealingLR(optimizer, 24)
    elif kind == "one cycle":
        scheduler = OneCycleLR(optimizer, 0.1, total_steps=24)
    else:
        parts = [LinearLR(optimizer, total_iters=6), CosineAnnealingLR(optimizer, 18)]
        scheduler = SequentialLR(optimizer, parts, milestones=[6])
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Scheduled(Classifier):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def training_step(self, batch, batch_idx):
        self.log("clock", 1.0, on_epoch=True)  # never gets better: the plateau does not depend on the weights
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        return schedule_of(self.kind, torch.optim.SGD(self.parameters(), 0.1, momentum=0.9))


@pytest.mark.parametrize("kind", some_of(["step", "cosine", "one cycle", "plateau", "sequential"], "one cycle"))
def test_learning_rates_are_those_of_the_unpruned_run(kind):
    dense, pruned = Watcher(), Watcher()
    fit(Scheduled(kind), dense)

    fit(module := Scheduled(kind), pruned, Pruning())

    assert count_params(module) < 600
    assert pruned.rates == dense.rates
    assert len({rate for (rate,) in dense.rates}) > 2


class Deaden(pl.Callback):
    """Before epoch 1, switches hidden units off at both ends: without them the network is the same."""

    def __init__(self, units):
        self.units = units

    @torch.no_grad()
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            for tensor in (pl_module.net[0].weight, pl_module.net[0].bias, pl_module.net[2].weight.T):
                tensor[self.units] = 0


OPTIMIZERS = {
    "SGD": partial(torch.optim.SGD, lr=0.05, weight_decay=0.1),
    "momentum": partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": partial(torch.optim.Adam, lr=0.01),
    "fused Adam": partial(torch.optim.Adam, lr=0.01, fused=True),
    "AdamW": partial(torch.optim.AdamW, lr=0.01, amsgrad=True),
    "RMSprop": partial(torch.optim.RMSprop, lr=0.01, centered=True, momentum=0.5),
    "Adagrad": partial(torch.optim.Adagrad, lr=0.05),
}


class Chosen(Classifier):
    def __init__(self, optimizer):
        super().__init__(mlp(8, 16, 3))
        self.optimizer = optimizer

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class Accumulating(Chosen):
    """Steps after every third batch: of four in an epoch, some accumulate over its end, where events are."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx) / 3)
        if len(self.losses) % 3 == 0:
            self.optimizers().step()
            self.optimizers().zero_grad()


def run_with_dead_units(kind, optimizer, *callbacks):
    torch.manual_seed(0)
    watcher, dead = Watcher(), Deaden([0, 3, 4, 7, 9, 10, 13, 14])
    fit(kind(optimizer), dead, *callbacks, watcher, max_epochs=2, precision="64-true")
    return watcher.weights, sorted(set(range(16)) - set(dead.units))


@pytest.mark.parametrize(
    ("kind", "optimizer", "step"),
    thinned([(Chosen, name, 4) for name in OPTIMIZERS], 3)
    # Their first step after the event is on the gradients of batches 3 (before the event), 4 and 5.
    + thinned([(Accumulating, name, 5) for name in ("momentum", "Adam")], 2),
)
def test_the_next_step_is_the_dense_one_on_the_survivors(kind, optimizer, step):
    dense, kept = run_with_dead_units(kind, OPTIMIZERS[optimizer])
    pruning = Pruning(0.5, schedule="one_shot", start=1, unit="channels", method="magnitude")

    pruned, _ = run_with_dead_units(kind, OPTIMIZERS[optimizer], pruning)

    assert pruning.plans[0].groups[0].kept == tuple(kept)
    for number in range(4):
        assert_same(pruned[number], dense[number])
    expected = {
        "net.0.weight": dense[step]["net.0.weight"][kept],
        "net.0.bias": dense[step]["net.0.bias"][kept],
        "net.2.weight": dense[step]["net.2.weight"][:, kept],
        "net.2.bias": dense[step]["net.2.bias"],
    }
    torch.testing.assert_close(pruned[step], expected, rtol=0, atol=1e-12)
    assert not torch.equal(dense[step]["net.2.bias"], dense[3]["net.2.bias"])


def test_parameters_and_their_groups_stay_the_same_objects():
    class Grouped(Classifier):
        def configure_optimizers(self):
            groups = [
                {"params": self.net[0].parameters(), "lr": 0.05, "weight_decay": 0.1},
                {"params": [*self.net[2].parameters(), *self.net[4].parameters()]},
            ]
            return torch.optim.Adam(groups, lr=0.01)

    module = Grouped()
    parameters = list(module.parameters())

    trainer = fit(module, Pruning())

    assert all(one is other for one, other in zip(module.parameters(), parameters, strict=True))
    (optimizer,) = trainer.optimizers
    first, second = optimizer.param_groups
    assert [id(parameter) for parameter in first["params"] + second["params"]] == list(map(id, parameters))
    assert (first["lr"], first["weight_decay"], second["lr"], second["weight_decay"]) == (0.05, 0.1, 0.01, 0)
    assert len(optimizer.state) == 6
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape
        assert state["step"] == 24


def test_frozen_layers_that_are_asked_for_stay_frozen():
    module, watcher = Classifier(), Watcher()
    module.net[0].requires_grad_(False)
    before = module.net[0].weight.clone()
    callback = Pruning(schedule="one_shot", start=1, method="magnitude", only=["net.*"])

    fit(module, callback, watcher, max_epochs=2)

    kept = list(callback.plans[0].groups[0].kept)
    assert 0 < len(kept) < 32
    assert torch.equal(module.net[0].weight, before[kept])
    assert [parameter.requires_grad for parameter in module.parameters()] == [False, False, True, True, True, True]
    assert module.net[0].weight.grad is None
    assert not torch.equal(module.net[2].weight, watcher.weights[4]["net.2.weight"])


# ---- errors come before training, and leave the model alone


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        *(({"pruning_ratio": ratio}, r"pruning_ratio.*in \[0, 1\)") for ratio in (1.0, -0.1, 1.5, math.nan, "half")),
        ({"schedule": "square"}, "'one_shot', 'linear', 'cubic', 'cosine'.*but got 'square'"),
        ({"schedule": {}}, "at least one epoch"),
        ({"schedule": {0: 1.0}}, r"schedule\[0\].*within \[0, 1\)"),
        ({"schedule": {0: 0.5, 2: 0.4}}, "never to decrease"),
        ({"start": 5, "end": 2}, "start=5 and end=2"),
        ({"start": 1.5}, r"within \[0, 1\] but got 1\.5"),
        ({"every": 0}, "every.*positive integer"),
        ({"order": "top_down"}, "'together' or 'bottom_up' but got 'top_down'"),
        ({"ignore": "net.0"}, r"ignore.*'net\.0'"),
        ({"method": "best"}, "method.*but got 'best'"),
        ({"eval_batches": -1}, "eval_batches.*-1"),
        ({"unit": "flops"}, "unit.*'params', 'macs'.*'flops'"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        CoresetPruningCallback(**arguments)


class Plain(Classifier):
    """Nothing between its input and its output."""

    def __init__(self):
        super().__init__(nn.Linear(8, 3))


class PlainWithExample(Plain):
    def __init__(self):
        super().__init__()
        self.example_input_array = torch.randn(2, 8)


class Broken(Classifier):
    def training_step(self, batch, batch_idx):
        raise RuntimeError("on purpose")


NOTHING = r"Expected a model with channels that can be pruned, but no layer has any:\s+net: \w+"


@pytest.mark.parametrize(
    ("kind", "arguments", "options", "message"),
    [
        (Classifier, {"start": 6, "end": 8}, {}, "one of the 6 epochs of training"),
        (Classifier, {"schedule": {6: 0.5}}, {}, "within the 6 epochs of training"),
        (Classifier, {"schedule": {4: 0.5}}, {"max_steps": 16}, "within the 4 epochs of training"),
        (Classifier, {"ignore": ["nett.*"]}, {}, r"nett\.\*"),
        (Classifier, {"ignore": ["net.*", "nett"]}, {}, "nett"),
        (Classifier, {"ignore": ["net.*"]}, {}, r"net\.0.*: .*ignore"),
        (Plain, {"pruning_ratio": 0.5}, {}, NOTHING),
        (PlainWithExample, {"pruning_ratio": 0.5}, {}, NOTHING),
        (Plain, {"pruning_ratio": 0.5, "example_inputs": torch.randn(2, 8)}, {}, NOTHING),
        (Plain, {"pruning_ratio": 0.5, "order": "bottom_up"}, {}, NOTHING),
        (Plain, {"only": ["net"]}, {}, "net: makes outputs of the network"),
        (Classifier, {"example_inputs": "text"}, {}, "tensor, a tuple of arguments or a dict"),
        (Broken, {}, {}, "on purpose"),
    ],
)
def test_errors_come_before_training_and_leave_the_model_as_it_was(kind, arguments, options, message):
    module = kind()
    before = copy.deepcopy(module.state_dict())

    with pytest.raises((ValueError, MisconfigurationException, RuntimeError), match=message):
        fit(module, Pruning(**arguments), **options)

    assert_same(module.state_dict(), before)
    assert module.losses == []
    assert hooks_of(module) == 0
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("automatic", [True, False])
def test_an_exception_in_training_leaves_no_hooks(automatic):
    class Failing(Classifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = automatic

        def on_after_backward(self):
            raise RuntimeError("on purpose")

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if not automatic:
                self.manual_backward(loss)
            return loss

    module = Failing()

    with pytest.raises(RuntimeError, match="on purpose"):
        fit(module, Pruning())

    assert hooks_of(module) == 0


# ---- what is logged


def scalars(directory):
    """All scalars of an event file: tag -> [(step, value)]."""
    events = EventAccumulator(str(directory)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("validated", [True, False])
def test_every_logger_gets_every_tag_at_every_event_and_epoch(tmp_path, validated):
    loggers = [TensorBoardLogger(tmp_path, name="tb"), CSVLogger(tmp_path, name="csv"), MemoryLogger()]
    module = Validated() if validated else Classifier()
    callback = Pruning(schedule={1: 0.3, 3: 0.5})
    trainer = make_trainer(callback, max_epochs=5, logger=loggers, num_sanity_val_steps=1)

    trainer.fit(module, make_loader(8), *[make_loader(8)] * validated)

    first, second = callback.plans
    found = scalars(loggers[0].log_dir)
    # Steps: epochs have four batches. Epoch 1 begins after step 3 and ends with step 7.
    for tag, (before, value) in {
        "coreset/sparsity": (0.0, lambda plan: plan.sparsity),
        "coreset/params": (first.params_original, lambda plan: plan.params_after),
        "coreset/macs": (first.macs_before, lambda plan: plan.macs_after),
        "coreset_channels/net.0": (first.groups[0].channels_before, lambda plan: plan.groups[0].channels_after),
        "coreset_channels/net.2": (first.groups[1].channels_before, lambda plan: plan.groups[1].channels_after),
    }.items():
        one, two = pytest.approx(value(first)), pytest.approx(value(second))
        assert [value for _, value in found[tag]] == [before, one, one, one, two, two, two], tag
        assert [step for step, _ in found[tag]] == [3, 4, 7, 11, 12, 15, 19], tag
        assert [value for _, value in loggers[2].of(tag)] == [before, one, one, one, two, two, two], tag
    accuracy = found["coreset/accuracy"]
    assert [step for step, _ in accuracy] == [3, 7, 11, 15, 19]
    for tag in ("coreset/accuracy_before", "coreset/accuracy_after"):
        assert [step for step, _ in found[tag]] == [4, 12], tag
    assert all(0 <= value <= 1 for _, value in accuracy)
    if validated:
        assert accuracy == [(step, pytest.approx(value)) for step, value in found["val_acc"]]
    assert "coreset/sparsity" in (tmp_path / "csv" / "version_0" / "metrics.csv").read_text().partition("\n")[0]
    assert found["coreset/params"][-1][1] == count_params(module)


@pytest.mark.parametrize("logger", [False, []])
def test_no_logger_is_no_error(logger):
    trainer = make_trainer(Pruning(), logger=logger, max_epochs=2)

    trainer.fit(Validated(), make_loader(8), make_loader(8))

    assert trainer.state.finished


def test_accuracy_right_after_an_event_is_that_of_the_pruned_model():
    class After(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            batches = list(make_loader(8))
            right = [(pl_module(x).argmax(1) == y).float().mean().item() for x, y in batches]
            self.expected = sum(right) / len(right)

    logger, after = MemoryLogger(), After()

    fit(Classifier(), Pruning(0.9, schedule="one_shot", start=1), after, max_epochs=2, logger=logger)

    assert logger.of("coreset/accuracy_after")[0][1] == pytest.approx(after.expected)


# ---- its state


def test_state_survives_a_file_without_pickled_code():
    callback = Pruning(order="bottom_up", schedule={1: 0.3, 2: 0.5})
    fit(Classifier(), callback, max_epochs=3)
    file = io.BytesIO()
    torch.save(callback.state_dict(), file)
    file.seek(0)

    other = Pruning(order="bottom_up", schedule={1: 0.3, 2: 0.5})
    other.load_state_dict(torch.load(file, weights_only=True))

    assert other.state_dict() == callback.state_dict()
    assert len(other.plans) == 2
    assert str(other.plans[-1]) == str(callback.plans[-1])
    assert callback.state_dict()["done"] == {1: 0.3, 2: 0.5}


def pickled(callback):
    return pickle.loads(pickle.dumps(callback))


@pytest.mark.parametrize(("duplicate", "used"), crossed([copy.deepcopy, pickled], [False, True]))
@pytest.mark.slow
def test_copies_work_as_the_original_does(duplicate, used):
    callback = CoresetPruningCallback(0.4, example_inputs=torch.randn(2, 8), seed=3, verbose=False)
    if used:
        fit(Classifier(), callback, max_epochs=2)
    modules = [Classifier(), Classifier()]
    modules[1].load_state_dict(modules[0].state_dict())

    fit(modules[0], duplicate(callback), max_epochs=3)
    fit(modules[1], callback, max_epochs=3)

    assert_same(modules[0].state_dict(), modules[1].state_dict())
    assert count_params(modules[0]) == pytest.approx(0.6 * 1155, abs=36)


def test_steps_without_an_event_do_not_go_through_all_events(monkeypatch):
    looks, open_events = [], Progress.open_events
    monkeypatch.setattr(Progress, "open_events", lambda *of: looks.append(1) or open_events(*of))
    callback = Pruning(0.5, schedule={7: 0.2, 9: 0.5, 11: 0.55}, interval="step")

    fit(Classifier(), callback)

    assert [record.step for record in callback.history] == [7, 9, 11]
    assert len(looks) == 8  # when training starts and ends, and twice at every event; of 24 steps


def test_two_callbacks_have_their_own_layers():
    first = Pruning(0.2, ignore=["net.0"], schedule="one_shot", start=1)
    second = Pruning(0.4, ignore=["net.2"], schedule="one_shot", start=2)
    module = Classifier()

    fit(module, first, second)  # the Trainer would refuse two of the same key

    assert first.state_key != second.state_key
    assert first.state_key is first.state_key  # not made anew, for Lightning asks whenever it calls a hook
    (upper,), (lower,) = first.plans[0].groups, second.plans[0].groups
    assert (upper.name, upper.channels_after) == ("net.2", module.net[2].out_features)
    assert (lower.name, lower.channels_after) == ("net.0", module.net[0].out_features)
    assert module.net[0].out_features < 32
    assert module.net[2].out_features < 24


def test_a_second_fit_on_a_fresh_model_starts_anew():
    callback = Pruning(0.5, schedule={0: 0.2, 1: 0.5})
    fit(Classifier(), callback, max_epochs=2)
    module = Classifier(mlp(8, 64, 3))

    fit(module, callback, max_epochs=2)

    assert [plan.params_original for plan in callback.plans] == [count_params(mlp(8, 64, 3))] * 2
    assert 1 - count_params(module) / 771 == pytest.approx(0.5, abs=12 / 771)


@pytest.mark.parametrize("order", ["together", "bottom_up"])
def test_training_that_goes_on_is_not_pruned_again(order):
    module, callback = Classifier(), Pruning(order=order)
    trainer = fit(module, callback)
    plans, before = list(callback.plans), widths(module)

    trainer.fit_loop.max_epochs = 12
    trainer.fit(module, make_loader(8))

    assert trainer.current_epoch == 12
    assert callback.plans == plans
    assert widths(module) == before


def test_training_that_goes_on_reaches_what_was_missed():
    module, callback = Classifier(), Pruning(schedule={1: 0.2, 3: 0.5})
    stop = StopAfter(8)
    with pytest.warns(UserWarning, match=r"epochs \[3\]"):
        trainer = fit(module, callback, stop)

    stop.steps = math.inf
    trainer.should_stop = False  # Lightning 2.5 leaves it as it was
    trainer.fit_loop.max_epochs = 5
    trainer.fit(module, make_loader(8))

    assert [plan.requested for plan in callback.plans] == [0.2, 0.5]
    assert {plan.params_original for plan in callback.plans} == {1155}
    assert 1 - count_params(module) / 1155 == pytest.approx(0.5, abs=CHANNEL)
