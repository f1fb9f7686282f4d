"""Wrong arguments are refused when they are given, by their names; wrong inputs before an epoch is spent."""

import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
import torchmetrics
from fitting import Classifier, Validated, count_params, make_loader, make_trainer, mlp
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from lightning_coreset import CoresetPruningCallback, plan_pruning, prune, sensitivity_scan
from lightning_coreset.checkpoint import make_resizable
from lightning_coreset.methods import Importance, Magnitude, Reconstruction, Sensitivity

NAN, INF = math.nan, math.inf
FLAG = (None, "no", "false", 1, 0, NAN)
RATIO = ("half", True, -0.1, 1, 1.0, NAN, INF, {}, {"net.*": 1.5}, {"net.*": None}, {3: 0.5}, torch.tensor(0.5))
WHOLE = (None, "8", True, 0, -1, 1.5, NAN, INF)
NAME = (None, True, 1, "", "other")
RULES = (None, "net.*", nn.Linear, 5, [None], [3], [nn.Linear(1, 1)])
SEED = (None, "0", True, 1.0, -1, NAN, 2**64)
RADIUS = ("1", True, 0, -1.0, NAN, INF)

# Of all functions that have them.
COMMON = {
    "method": (None, True, "best", Magnitude, 3),
    "ignore": RULES,
    "only": RULES,
    "include_residual": FLAG,
    "heads": NAME,
    "seed": SEED,
    "self_check": FLAG,
    "change_attributes": FLAG,
}
SIZES = {
    "pruning_ratio": RATIO,
    "unit": NAME,
    "allocation": NAME,
    "round_to": WHOLE,
    "min_channels": WHOLE,
    "max_layer_ratio": (None, "1", True, 0, -0.5, 1.5, NAN, INF),
    "certify": FLAG,
    "input_radius": RADIUS,
}
SCHEDULES = (
    *(None, True, "sometimes", 0.5, {}, {"1": 0.5}, {-1: 0.5}, {True: 0.5}, {1.5: 0.5}, {1: 1.0}, {1: NAN}, {1: "0.5"}),
    *({1: 0.5, 2: 0.4}, lambda t: t / 2, lambda t: 1 - t, lambda t: NAN, lambda t: 1 / 0, lambda t: None, lambda: 1.0),
)
TIME = (None, "1", True, -1, -0.5, 1.5, NAN, INF)
OF_THE_CALLBACK = {
    "schedule": SCHEDULES,
    "start": TIME,
    "end": TIME,
    "every": ("1", True, 0, -1, 1.5, NAN),
    "interval": NAME,
    "order": NAME,
    "example_inputs": (3, "batch", np.zeros((1, 8)), object()),
    "metric": (True, "accuracy", 3, torchmetrics.MeanMetric),
    "monitor": (True, 3, ["val_acc"], ""),
    "monitor_mode": (True, "up", 3),
    "eval_batches": (None, "8", True, -1, 1.5, NAN, INF),
    "max_drop": ("0.01", True, -0.01, NAN, INF, 1, 1.5),
    "recalibrate_batches": (None, "8", True, -1, 1.5, NAN, INF),
    "restart_patience": FLAG,
    "best_checkpoint": NAME,
    "verbose": FLAG,
}


def table(options):
    return [
        pytest.param(name, value, id=f"{name}-{i}")
        for name, values in options.items()
        for i, value in enumerate(values)
    ]


@pytest.mark.parametrize(("name", "value"), table(COMMON | SIZES | OF_THE_CALLBACK))
def test_wrong_arguments_of_the_callback(name, value):
    with pytest.raises(ValueError, match=name):
        CoresetPruningCallback(**{name: value})


@pytest.mark.parametrize("options", [{"recover_epochs": 3}, {"on_failure": "halve"}], ids=str)
def test_options_of_a_guard_that_is_off(options):
    with pytest.raises(ValueError, match="without max_drop, which turns the guard on"):
        CoresetPruningCallback(**options)
    CoresetPruningCallback(max_drop=0.01, **options)


@pytest.mark.parametrize("value", [None, "2", True, 0, -1, NAN, INF])
def test_wrong_times_of_recovery(value):
    with pytest.raises(ValueError, match="recover_epochs"):
        CoresetPruningCallback(max_drop=0.01, recover_epochs=value)


@pytest.mark.parametrize("value", [None, True, "go on"])
def test_wrong_reactions(value):
    with pytest.raises(ValueError, match="on_failure"):
        CoresetPruningCallback(max_drop=0.01, on_failure=value)


def test_drops_of_numbers_without_bounds():
    CoresetPruningCallback(max_drop=5.0, metric=torchmetrics.MeanSquaredError())
    CoresetPruningCallback(max_drop=1.0, monitor="val_acc")  # may be logged in per cent
    with pytest.raises(ValueError, match="max_drop to be less than 1, since BinaryAccuracy lies between 0 and 1"):
        CoresetPruningCallback(max_drop=1.0, metric=torchmetrics.classification.BinaryAccuracy())


def test_a_ratio_beside_a_schedule_with_ratios():
    with pytest.warns(UserWarning, match=r"pruning_ratio=0\.8 has no effect: .* of which the last is 0\.4"):
        CoresetPruningCallback(0.8, schedule={1: 0.2, 3: 0.4})
    for ratio in (0.4, 0.5):  # the same, the default
        CoresetPruningCallback(ratio, schedule={1: 0.2, 3: 0.4})


def test_values_of_other_libraries_are_taken():
    CoresetPruningCallback(
        np.float32(0.5),
        start=np.int64(1),
        end=np.float64(0.5),
        every=np.int32(2),
        round_to=np.int64(4),
        min_channels=np.uint8(2),
        max_layer_ratio=np.float32(0.5),
        seed=np.int64(3),
        eval_batches=np.int64(4),
        recalibrate_batches=np.int64(4),
        max_drop=np.float32(0.01),
        recover_epochs=np.int64(2),
        input_radius=Fraction(3, 2),
        certify=True,
        schedule=lambda t: torch.tensor(t),
    )
    CoresetPruningCallback(schedule={np.int64(1): np.float32(0.25)})


X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("function", [prune, plan_pruning])
@pytest.mark.parametrize(("name", "value"), table(COMMON | SIZES))
def test_wrong_arguments_of_functions(function, name, value):
    net = mlp(8, 16, 3)
    with pytest.raises(ValueError, match=name):
        function(net, X, **{name: value})
    assert count_params(net) == count_params(mlp(8, 16, 3))


@pytest.mark.parametrize(
    ("name", "value"),
    table(COMMON | {"ratios": (None, "0.5", 0.5, (), (0,), (1.0,), (NAN,), ("0.5",), (True,)), "evaluate": (None, 3)}),
)
def test_wrong_arguments_of_the_scan(name, value):
    options = {"evaluate": count_params, name: value}
    with pytest.raises(ValueError, match="ratio" if name == "ratios" else name):
        sensitivity_scan(mlp(8, 16, 3), X, **options)


METHODS = {
    Reconstruction: {"rounds": WHOLE, "ridge": (None, "1", True, 0, -1.0, NAN, INF)},
    Sensitivity: {
        "sampler": ("", True, "uniform"),
        "input_radius": (None, *RADIUS),
        "epsilon": ("1", True, 0, -1.0, NAN, INF),
        "delta": (None, "0.1", True, 0, 1, -0.5, NAN),
    },
    Magnitude: {"p": (None, "2", True, 0, 3, 1.5, NAN)},
    Importance: {"score": (None, "norm", 3)},
}


@pytest.mark.parametrize(
    ("method", "name", "value"),
    [(method, *case.values) for method, options in METHODS.items() for case in table(options)],
)
def test_wrong_options_of_methods(method, name, value):
    with pytest.raises(ValueError, match=name):
        method(**{name: value})


# ---- what can only be seen with a model

LOADER = make_loader(8, samples=32, batch_size=8)


class Counting(Classifier):
    steps = 0

    def training_step(self, batch, batch_idx):
        self.steps += 1
        return super().training_step(batch, batch_idx)


def lazy():
    return nn.Sequential(nn.LazyLinear(32), nn.ReLU(), nn.LazyLinear(24), nn.ReLU(), nn.Linear(24, 3))


@pytest.mark.parametrize("options", [{"schedule": {1: 0.5}}, {"start": 0}, {"start": 0, "example_inputs": X}], ids=str)
@pytest.mark.parametrize("validates", [False, True])
def test_lazy_layers_train_as_without_the_callback(options, validates):
    torch.manual_seed(0)
    module = (Validated if validates else Classifier)(lazy())
    pruning = CoresetPruningCallback(verbose=False, eval_batches=0, **options)

    trainer = make_trainer(pruning, max_epochs=3, num_sanity_val_steps=int(validates))
    trainer.fit(module, LOADER, LOADER if validates else None)

    assert count_params(module) == pruning.plans[-1].params_after < count_params(mlp(8, 32, 24, 3)) * 0.6
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_a_lazy_layer_that_no_step_runs(tmp_path):
    module = Counting(lazy())
    module.unused = nn.LazyLinear(4)
    with pytest.raises(ValueError, match=r"to give all lazy layers their shapes but 'unused.weight' has none"):
        make_trainer(CoresetPruningCallback(verbose=False, schedule={1: 0.5}), max_epochs=3).fit(module, LOADER)
    assert module.steps == 4
    module.unused(X)
    make_trainer(CoresetPruningCallback(verbose=False, schedule={1: 0.5}), max_epochs=3).fit(module, LOADER)
    assert module.net[0].out_features < 32


def test_checkpoints_of_modules_that_were_lazy(tmp_path):
    module = Classifier(lazy())
    trainer = make_trainer(CoresetPruningCallback(verbose=False, eval_batches=0, schedule={1: 0.5}), max_epochs=2)
    trainer.fit(module, LOADER)
    trainer.save_checkpoint(tmp_path / "pruned.ckpt")

    again = make_resizable(Classifier(lazy()))
    again(X)  # gives its layers the shapes that were pruned
    again.load_state_dict(torch.load(tmp_path / "pruned.ckpt", weights_only=True)["state_dict"])
    assert count_params(again) == count_params(module)
    assert torch.equal(again(X), module(X))


class TwoLoaders(Classifier):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        value = float(dataloader_idx) + (0.5 if count_params(self) < 1155 else 0.0)
        self.log("v", value)
        self.log("w", value, on_step=True, on_epoch=True)


@pytest.mark.parametrize("name", ["v/dataloader_idx_0", "w_epoch/dataloader_idx_0"])
def test_a_metric_of_the_first_of_two_loaders_is_measured_at_events(name):
    pruning = CoresetPruningCallback(schedule={1: 0.5}, monitor=name, eval_batches=2, verbose=False)
    trainer = make_trainer(pruning, max_epochs=2)
    trainer.fit(TwoLoaders(), LOADER, [LOADER, LOADER])
    assert name in trainer.callback_metrics
    assert (pruning.history[0].accuracy_before, pruning.history[0].accuracy_after) == (0.0, 0.5)


class Stream(IterableDataset):
    def __iter__(self):
        yield from LOADER.dataset


def test_the_message_about_a_stream_asks_for_what_is_missing():
    trainer = make_trainer(CoresetPruningCallback(verbose=False), max_epochs=None, max_steps=8)
    with pytest.raises(Exception, match="interval='step'"):
        trainer.fit(Classifier(), DataLoader(Stream(), batch_size=8))

    pruning = CoresetPruningCallback(verbose=False, eval_batches=0, interval="step")
    make_trainer(pruning, max_epochs=None, max_steps=8).fit(Classifier(), DataLoader(Stream(), batch_size=8))
    assert pruning.plans


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (X.to("meta"), "NotImplementedError: Cannot copy out of meta tensor"),
        (torch.randn(2, 7), "RuntimeError: mat1 and mat2"),
        ((), "TypeError: .*missing 1 required"),
    ],
    ids=["without data", "other width", "none"],
)
def test_example_inputs_that_the_module_cannot_be_run_on(inputs, reason):
    pruning = CoresetPruningCallback(schedule={1: 0.5}, example_inputs=inputs, verbose=False)
    with pytest.raises(MisconfigurationException, match=f"Expected example_inputs to be .*{reason}.*leave it out"):
        make_trainer(pruning, max_epochs=2).fit(Classifier(), make_loader(8))


@pytest.mark.parametrize("given", [{"start": 3}, {"every": 2}, {"end": 0.9}, {"start": 2, "end": 5}])
def test_times_beside_a_schedule_with_times_have_no_effect(given):
    said = ", ".join(f"{name}={value}" for name, value in given.items())
    with pytest.warns(UserWarning, match=f"^{said} has no effect: the schedule maps epochs"):
        CoresetPruningCallback(schedule={1: 0.5}, **given)


def test_a_single_event_has_no_distance_to_the_next():
    with pytest.warns(UserWarning, match="^every=2 has no effect: the schedule 'one_shot' prunes once, at `start`"):
        CoresetPruningCallback(schedule="one_shot", start=2, every=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CoresetPruningCallback(schedule="one_shot", start=2, end=2)


@pytest.mark.parametrize("name", ["ignore", "only", "never_run"])
def test_rules_have_no_values(name):
    with pytest.raises(ValueError, match=f"Expected {name} to be a sequence of rules but got the mapping"):
        CoresetPruningCallback(**{name: {"head": 0.5}})


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        (None, "min"),
        (torchmetrics.classification.BinaryAccuracy(), "min"),
        (torchmetrics.MeanSquaredError(), "max"),
    ],
    ids=["accuracy", "BinaryAccuracy", "MeanSquaredError"],
)
def test_what_is_better_of_a_known_number(metric, mode):
    name, better = ("accuracy" if metric is None else type(metric).__name__), "more" if mode == "min" else "less"
    with pytest.raises(
        ValueError, match=f"`monitor_mode` to be left out or .* for {name}, of which {better} is better"
    ):
        CoresetPruningCallback(metric=metric, monitor_mode=mode)
    other = {"min": "max", "max": "min"}[mode]
    assert CoresetPruningCallback(metric=metric, monitor_mode=other)._monitor.mode == other
    assert CoresetPruningCallback(metric=torchmetrics.MeanMetric(), monitor_mode=mode)._monitor.mode == mode


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("val_loss", "min"), ("Perplexity", "min"), ("val/rmse", "min"), ("nll_epoch", "min"), ("test.WER", "min")),
        *(("val_acc", "max"), ("maestro", "max"), ("f1", "max"), ("confidence", "max")),
    ],
)
def test_which_numbers_are_to_fall(name, mode):
    assert CoresetPruningCallback(monitor=name, max_drop=0.1)._monitor.mode == mode


def test_a_bound_on_inputs_without_certificates():
    with pytest.warns(UserWarning, match=r"input_radius=2\.0 has no effect without certify=True"):
        CoresetPruningCallback(input_radius=2.0)
    CoresetPruningCallback(input_radius=2.0, certify=True)


def test_training_without_batches_is_told():
    with pytest.warns(UserWarning, match="Training had no batches, so that there was no pruning event"):
        make_trainer(CoresetPruningCallback(0.5), max_epochs=2, limit_train_batches=0).fit(Classifier(), make_loader(8))


def test_a_ratio_below_what_a_checkpoint_has_reached_is_told(tmp_path):
    path, module = tmp_path / "pruned.ckpt", Classifier()
    trainer = make_trainer(CoresetPruningCallback(0.5, schedule={1: 0.4}, verbose=False), max_epochs=2)
    trainer.fit(module, make_loader(8))
    trainer.save_checkpoint(path)
    callback = CoresetPruningCallback(0.2, schedule={1: 0.1, 3: 0.2}, verbose=False)
    with pytest.warns(UserWarning, match=r"of a run with a pruning ratio of 0\.4, and 0\.2 is requested now"):
        make_trainer(callback, max_epochs=4).fit(module, make_loader(8), ckpt_path=path)
    assert len(callback.history) == 1
