"""The number that is watched, wherever it comes from."""

from __future__ import annotations

import copy

import pytest
import torch
import torchmetrics
from fitting import Classifier, MemoryLogger, hooks_of, mlp
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import BinaryF1Score, MulticlassF1Score, MultilabelAccuracy

from lightning_coreset import CoresetPruningCallback
from lightning_coreset.training.metrics import AccuracyMonitor

N, B = 22, 4  # the last batch is smaller
GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(N, 8, generator=GENERATOR)
Y = torch.arange(N) % 3


def loader(*tensors):
    return DataLoader(TensorDataset(*tensors), batch_size=B)


class Pruning(CoresetPruningCallback):
    """Keeps the model as it was before and after its event."""

    def __init__(self, **options):
        super().__init__(**({"schedule": {1: 0.5}, "verbose": False, "self_check": False} | options))

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.before = copy.deepcopy(pl_module.net)
        super().on_train_epoch_start(trainer, pl_module)

    def on_prune(self, plan, trainer, pl_module):
        self.after = copy.deepcopy(pl_module.net)


def fit(make_trainer, module, callback, *tensors, epochs=3, **options):
    logger = MemoryLogger()
    trainer = make_trainer(callback, max_epochs=epochs, logger=logger, **options)
    trainer.fit(module, loader(*tensors), loader(*tensors))
    return logger


# ---- a metric of the user's


class Task(Classifier):
    """Learns anything by ``loss`` and keeps the metric's true values."""

    def __init__(self, net, loss, metric):
        super().__init__(net)
        self.loss, self.truth, self.values = loss, metric, []

    def training_step(self, batch, batch_idx):
        return self.loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.truth.update(self.net(batch[0]), batch[1])

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.values.append(float(self.truth.compute()))
        self.truth.reset()


def segmenter():
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))


def cross_entropy(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets)


TASKS = {
    "classes": (lambda: mlp(8, 16, 3), cross_entropy, MulticlassF1Score(3), X, Y),
    "regression": (lambda: mlp(8, 16, 1), nn.functional.mse_loss, torchmetrics.MeanSquaredError(), X, X[:, :1].clone()),
    "labels": (
        lambda: mlp(8, 16, 3),
        nn.functional.binary_cross_entropy_with_logits,
        MultilabelAccuracy(3),
        X,
        (X[:, :3] > 0).float(),
    ),
    "segmentation": (
        segmenter,
        cross_entropy,
        MulticlassF1Score(3, average="micro"),
        X.view(N, 1, 2, 4),
        (torch.arange(N * 8) % 3).view(N, 2, 4),
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_any_metric_of_torchmetrics(make_trainer, task):
    make_net, loss, metric, *data = TASKS[task]
    callback = Pruning(metric=metric, eval_batches=100)
    module = Task(make_net(), loss, metric.clone())

    logger = fit(make_trainer, module, callback, *data, num_sanity_val_steps=2)

    assert [value for _, value in logger.of("coreset/accuracy")] == pytest.approx(module.values, abs=1e-6)
    (event,) = callback.history
    batches = list(loader(*data))
    for found, network in ((event.accuracy_before, callback.before), (event.accuracy_after, callback.after)):
        expected = metric.clone()
        # The sanity check saw two of the batches a first time. By batches, since torchmetrics takes the outputs of a
        # batch for probabilities where all lie between 0 and 1.
        for inputs, targets in (*batches[:2], *batches):
            with torch.no_grad():
                expected.update(network.eval()(inputs), targets)
        assert found == pytest.approx(float(expected.compute()), abs=1e-6)
    assert metric.update_count == 0
    assert hooks_of(module) == 0


def test_one_output_takes_the_shape_of_flat_targets(make_trainer):
    callback = Pruning(metric=torchmetrics.MeanAbsoluteError())
    module = Task(mlp(8, 16, 1), lambda a, b: nn.functional.mse_loss(a.flatten(), b), torchmetrics.SumMetric())
    module.validation_step = lambda batch, batch_idx: module.net(batch[0]).sum()
    module.on_validation_epoch_end = lambda: None

    logger = fit(make_trainer, module, callback, X, X[:, 0].clone())

    with torch.no_grad():
        expected = (module.eval().net(X).flatten() - X[:, 0]).abs().mean()
    assert logger.of("coreset/accuracy")[-1][1] == pytest.approx(float(expected), abs=1e-6)


class TwoTargets(Classifier):
    def training_step(self, batch, batch_idx):
        return self(batch[0]).square().mean() + 0 * batch[1].sum() + 0 * batch[2].sum()

    def validation_step(self, batch, batch_idx):
        self.training_step(batch, batch_idx)


REFUSED = {
    "ambiguous": (torchmetrics.MeanSquaredError(), (X, X[:, :3], X[:, 3:6]), "more than one possible output or target"),
    "unsuitable": (BinaryF1Score(), (X, X[:, :3], Y), r"fails on outputs \(4, 3\) and targets \(4,\): "),
    "many": (MulticlassF1Score(3, average=None), (X, X[:, :3], Y), r"returns shape \(3,\); choose how it averages"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("sanity", [0, 1])
def test_a_metric_that_cannot_be_measured_is_refused(make_trainer, case, sanity):
    metric, data, reason = REFUSED[case]
    module = TwoTargets(mlp(8, 16, 3))

    with pytest.raises(MisconfigurationException, match=f"{reason}.*`monitor=`"):
        fit(make_trainer, module, Pruning(metric=metric), *data, num_sanity_val_steps=sanity)

    assert hooks_of(module) == 0


# ---- a metric that the module logs


class Logging(Classifier):
    """Logs the same number in several ways."""

    def __init__(self):
        super().__init__(nn.Sequential(*mlp(8, 16, 3), nn.Dropout(0.5)))
        self.metric = MulticlassF1Score(3)
        self.calls = 0

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.calls += 1
        logits = self(x) + torch.rand(()) * 0
        x.zero_()
        loss = nn.functional.cross_entropy(logits, y)
        self.log("val_loss", loss)
        self.log_dict({"again": loss}, on_step=True, on_epoch=True)
        self.log("total", loss, reduce_fx="sum")
        self.metric(logits, y)
        self.log("f1", self.metric)
        return loss

    def on_validation_epoch_end(self):
        self.log("late", 0.5)


def f1(logits, y):
    return MulticlassF1Score(3)(logits, y)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("val_loss", cross_entropy), ("again_epoch", cross_entropy), ("f1", f1), ("total", None), ("late", None)],
)
def test_what_is_logged_is_the_accuracy(make_trainer, name, expected):
    callback, module = Pruning(monitor=name, eval_batches=100), Logging()
    data = X.clone(), Y  # which every validation turns to zeros

    logger = fit(make_trainer, module, callback, *data, limit_train_batches=1)

    values = [value for _, value in logger.of("coreset/accuracy")]
    assert len(values) == 3
    assert values == [pytest.approx(value) for _, value in logger.of(name)]
    (event,) = callback.history
    if expected is None:
        assert event.accuracy_before is event.accuracy_after is None
        return
    for found, network in ((event.accuracy_before, callback.before), (event.accuracy_after, callback.after)):
        with torch.no_grad():
            assert found == pytest.approx(float(expected(network.eval()(X), Y)), abs=1e-6)


class Shared(Logging):
    """Uses one metric in training, too."""

    def training_step(self, batch, batch_idx):
        self.metric.update(self(batch[0]), batch[1])
        return super().training_step(batch, batch_idx)


def test_a_metric_that_is_in_use(make_trainer):
    """In the middle of an epoch the metric holds what training has shown it by then, and goes on with that."""
    module, callback = Shared(), Pruning(monitor="f1", eval_batches=100, interval="step", schedule={9: 0.5})

    fit(make_trainer, module, callback, X, Y, epochs=2)

    with torch.no_grad():
        expected = f1(callback.after.eval()(X), Y)
    assert callback.history[0].accuracy_after == pytest.approx(float(expected), abs=1e-6)


class Several(Classifier):
    def validation_step(self, batch, batch_idx, dataloader_idx):
        self.log("val_loss", cross_entropy(self(batch[0]), batch[1]))


def test_one_of_several_loaders(make_trainer):
    callback, module = Pruning(monitor="val_loss/dataloader_idx_1", eval_batches=100), Several()
    trainer = make_trainer(callback, max_epochs=2)

    trainer.fit(module, loader(X, Y), [loader(X, Y), loader(-X, Y)])

    with torch.no_grad():
        expected = cross_entropy(callback.after.eval()(-X), Y)
    assert callback.history[0].accuracy_after == pytest.approx(float(expected), abs=1e-6)


def test_evaluating_has_no_side_effects(make_trainer):
    runs = []
    for eval_batches in (0, 3):
        torch.manual_seed(0)
        module = Logging()
        logger = fit(make_trainer, module, Pruning(monitor="f1", eval_batches=eval_batches), X.clone(), Y)
        rows = [{k: v for k, v in row.items() if "before" not in k and "after" not in k} for _, row in logger.rows]
        runs.append((module.losses, module.calls, rows, torch.get_rng_state().tolist()))

    assert runs[0] == runs[1]


def test_an_evaluation_that_fails_warns_once(make_trainer):
    class Failing(Logging):
        def validation_step(self, batch, batch_idx):
            if self.net[0].out_features < 16 and not self.trainer.validating and self.trainer.training:
                raise RuntimeError("not now")
            return super().validation_step(batch, batch_idx)

    callback = Pruning(monitor="val_loss")

    with pytest.warns(UserWarning, match="'val_loss' could not be measured at an event.*not now"):
        fit(make_trainer, Failing(), callback, X.clone(), Y)

    assert callback.history[0].accuracy_before is not None
    assert callback.history[0].accuracy_after is None


def test_a_name_that_is_not_logged_is_an_error(make_trainer):
    with pytest.raises(
        MisconfigurationException, match=r"monitor='val_acc' to be one of.*but got 'again', .*'val_loss'"
    ):
        fit(make_trainer, Logging(), Pruning(monitor="val_acc"), X.clone(), Y, num_sanity_val_steps=1)


def test_without_validation_a_metric_of_training_is_used(make_trainer):
    logger = fit(make_trainer, Logging(), Pruning(monitor="loss"), X, Y, limit_val_batches=0)

    assert len(logger.of("coreset/accuracy")) == 3


# ---- its arguments


@pytest.mark.parametrize(
    ("metric", "monitor", "mode", "expected"),
    [
        (None, None, None, "max"),
        (None, "val_acc", None, "max"),
        (None, "Val_Loss", None, "min"),
        (None, "test_error", None, "min"),
        (None, "val_loss", "max", "max"),
        (torchmetrics.MeanSquaredError(), None, None, "min"),
        (MulticlassF1Score(3), None, None, "max"),
        (torchmetrics.MeanMetric(), None, "min", "min"),
    ],
)
def test_whether_larger_or_smaller_is_better(metric, monitor, mode, expected):
    assert AccuracyMonitor(metric=metric, monitor=monitor, monitor_mode=mode).mode == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": MulticlassF1Score(3), "monitor": "val_acc"}, "either `metric` or `monitor` but got both"),
        ({"metric": "val_acc"}, "`metric` to be one Metric of torchmetrics but got 'val_acc'"),
        ({"metric": torchmetrics.MetricCollection([MulticlassF1Score(3)])}, "`metric` to be one Metric"),
        ({"monitor_mode": "best"}, "`monitor_mode` to be 'max' or 'min' but got 'best'"),
        *(
            ({"eval_batches": count}, f"`eval_batches` to be a non-negative integer but got {count}")
            for count in (-1, 1.5, True, None)
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        AccuracyMonitor(**arguments)
