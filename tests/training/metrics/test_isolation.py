import copy
import random
from collections import OrderedDict, defaultdict, deque

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchmetrics
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_coreset.training.metrics.isolation import isolated


class Inner(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        self.log("inner", 1.0)
        return self.layer(x)


class Messy(pl.LightningModule):
    """Its step leaves traces wherever a step can."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        self.inner = Inner()
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=4)
        self.curve = torchmetrics.AUROC("multiclass", num_classes=4)  # its states are lists
        self.collection = torchmetrics.MetricCollection([torchmetrics.MeanMetric()])
        self.unregistered = {"mean": torchmetrics.MeanMetric()}
        self.register_buffer("total", torch.zeros(2))
        self.register_buffer("replaced", torch.zeros(2))
        self.plain = torch.zeros(3)
        self.resized = torch.zeros(3)
        self.generator = torch.Generator().manual_seed(3)
        self.count, self.loss, self.name = 0, 0.0, "before"
        self.outputs, self.window, self.tags = [], deque([1, 2], maxlen=2), {1}
        self.history = OrderedDict(train=[1], val=[])
        self.groups = defaultdict(list)
        self.totals = {"loss": torch.zeros(1)}
        self.pair = ([], {})

    def training_step(self, batch):
        x, y = batch
        logits = self.net(self.inner(x))
        loss = nn.functional.cross_entropy(logits, y) + random.random() + np.random.rand() + torch.rand(())
        self.log("loss", loss)
        self.log_dict({"accuracy": self.accuracy(logits, y)})
        self.print("printed")
        self.curve.update(logits.softmax(1), y)
        self.collection(loss)
        self.unregistered["mean"].update(loss)
        self.total += 1
        self.replaced = torch.ones(5)
        self.plain.add_(1)
        self.resized.resize_(5).fill_(1)
        torch.rand((), generator=self.generator)
        self.count += 1
        self.loss, self.name, self.new = loss.item(), None, 1
        self.outputs.append(loss)
        self.window.append(3)
        self.tags.add(2)
        self.history.popitem(last=False)
        self.history["val"].append(loss)
        self.groups["new"].append(loss)
        self.totals["loss"] += loss.detach()
        self.pair[0].append(loss)
        self.pair[1]["loss"] = loss
        del self.hparams_of_mine["lr"]
        self.eval()
        self.net[0].weight.requires_grad_(False)
        self.net[0].register_forward_hook(lambda *args: None)
        (loss + self.net[0].bias.sum()).backward()
        return loss

    hparams_of_mine: dict

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def make():
    model = Messy()
    model.hparams_of_mine = {"lr": 0.1, "wd": 0.2}
    model.net[2].eval()
    model.accuracy.update(torch.eye(4), torch.tensor([0, 1, 2, 0]))
    model.curve.update(torch.eye(4), torch.tensor([0, 1, 2, 0]))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    return model


BATCH = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 4


def run(model):
    return model.training_step(BATCH)


def visible(model):
    """All that a snapshot of a module shows, by value, but for what cannot be compared."""
    state = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if not callable(value) and not isinstance(value, torch.Generator):
                state[f"{name}.{key}"] = value
    state["unregistered"] = {k: m.metric_state for k, m in model.unregistered.items()}
    state["counts"] = {k: m._update_count for k, m in model.unregistered.items()}
    state["grads"] = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    state["needs"] = [p.requires_grad for p in model.parameters()]
    state["rng"] = [torch.get_rng_state(), model.generator.get_state(), random.getstate(), np.random.get_state()]
    return state


def same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return isinstance(a, nn.Module) or callable(a) or a == b


def containers(model):
    values = [vars(model)[key] for key in ("outputs", "window", "tags", "history", "groups", "totals", "pair")]
    values += [model.history["train"], model.history["val"], model.total, model.replaced, model.plain, model.resized]
    return values + [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_it_was(fails):
    model = make()
    before, objects = copy.deepcopy(visible(model)), containers(model)

    try:
        with isolated(model):
            run(model)
            changed = not same(visible(model), before)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails

    assert changed
    after = visible(model)
    assert after.keys() == before.keys()
    assert [key for key in before if not same(after[key], before[key])] == []
    assert all(a is b for a, b in zip(containers(model), objects, strict=True))
    assert "log" not in vars(model)
    assert "print" not in vars(model.inner)


def test_the_comparison_detects_every_side_effect():
    """Without the guard, the comparison above finds all that the step leaves behind."""
    model = make()
    model.log = model.log_dict = model.print = model.inner.log = lambda *args, **kwargs: None
    before = copy.deepcopy(visible(model))

    run(model)

    after = visible(model)
    traces = {key for key in after if key not in before or not same(after[key], before[key])}
    own = "count loss name new outputs window tags history groups totals pair plain resized training hparams_of_mine"
    assert {f".{key}" for key in own.split()} <= traces
    assert {"._buffers", "net.1._buffers", "net.1.training", "net.0._forward_hooks", "inner.calls"} <= traces
    assert {"accuracy.tp", "accuracy._update_count", "curve.preds", "collection.MeanMetric._update_count"} <= traces
    assert {"unregistered", "counts", "grads", "needs", "rng"} <= traces
    assert all(not same(a, b) for a, b in zip(before["rng"], after["rng"], strict=True))


def test_gradients_are_none_inside_and_not_copied():
    model = make()

    with isolated(model):
        assert all(parameter.grad is None for parameter in model.parameters())


def test_states_made_in_inference_mode_are_restored():
    model = make()
    with torch.inference_mode():
        model.accuracy.reset()
        model.accuracy.update(torch.eye(4), torch.tensor([0, 1, 2, 0]))
    before = model.accuracy.metric_state

    with isolated(model), torch.inference_mode():
        model.accuracy.tp.add_(5)

    assert all(model.accuracy.metric_state[key] is value for key, value in before.items())
    assert model.accuracy.compute() == 0.75


def test_a_graph_that_needs_a_buffer_survives():
    model = make().eval()
    loss = model.net(BATCH[0]).sum()  # saves the running statistics for backward

    with isolated(model):
        model.train()
        model.net(BATCH[0])

    loss.backward()


def test_shared_and_circular_containers_end():
    model = make()
    model.outputs.append(model.outputs)
    model.history["val"] = model.outputs

    with isolated(model):
        run(model)

    assert len(model.outputs) == 1
    assert model.outputs[0] is model.outputs
    assert model.history["val"] is model.outputs


def test_expanded_and_lazy_tensors():
    model = make()
    model.register_buffer("positions", torch.arange(3).expand(2, 3))
    model.lazy = nn.LazyLinear(2)

    with isolated(model):
        model.lazy(BATCH[0])

    assert model.lazy(BATCH[0]).shape == (8, 2)  # once materialized it stays so
    assert type(model.lazy) is nn.Linear


class Chatty(Messy):
    """Writes by every way that Lightning offers."""

    def training_step(self, batch):
        self.is_tensorboard = isinstance(self.logger, TensorBoardLogger)
        self.directories.append(self.logger.log_dir)
        self.logger.experiment.add_scalar("direct", 1.0, 0)
        self.logger.experiment["run"].config.update({"a": 1})
        for logger in self.loggers:
            logger.log_metrics({"direct": 1.0}, step=0)
            logger.log_hyperparams({"a": 1})
            logger.save()
        self.trainer.logger.log_metrics({"direct": 1.0})
        return super().training_step(batch)


def test_nothing_is_logged(make_trainer, tmp_path, capsys):
    loggers = [TensorBoardLogger(tmp_path, name="tb"), CSVLogger(tmp_path, name="csv")]
    directories = []

    class Look(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            capsys.readouterr()
            with isolated(pl_module):
                pl_module.training_step(BATCH)
                assert pl_module.is_tensorboard
            assert trainer.loggers == loggers
            assert trainer.callback_metrics == {}
            assert capsys.readouterr().out == ""
            trainer.should_stop = True

    class Once(Chatty):
        def training_step(self, batch):
            if "print" in vars(self):
                return super().training_step(batch)
            return self.net(batch[0]).sum()

    model = Once()
    model.hparams_of_mine = {"lr": 0.1}
    object.__setattr__(model, "directories", Ignored(directories))
    trainer = make_trainer(Look(), logger=loggers, max_steps=1)
    trainer.fit(model, DataLoader(TensorDataset(*BATCH), batch_size=8))

    assert directories == [loggers[0].log_dir]
    assert not (tmp_path / "csv" / "version_0" / "metrics.csv").exists()
    events = [file for file in (tmp_path / "tb").rglob("*") if "tfevents" in file.name]
    assert not any(b"direct" in file.read_bytes() for file in events)


class Ignored:
    """Neither a module nor a container: what happens to it is not undone."""

    def __init__(self, items):
        self.append = items.append


@pytest.mark.gpu
def test_random_states_of_the_device_are_restored():
    model = make().cuda()
    expected = torch.cuda.get_rng_state()

    with isolated(model):
        torch.rand(3, device="cuda")

    assert torch.equal(torch.cuda.get_rng_state(), expected)
