import copy
import gc
import io
import pickle
import weakref

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_coreset.training.metrics.recorder import ForwardRecorder

X = torch.randn(6, 4)


class Failing(nn.Module):
    def forward(self, x):
        raise RuntimeError("on purpose")


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Linear(4, 4)

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=True)


class Lit(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 5), nn.ReLU())
        self.head = nn.Linear(5, 3)
        self.softmax = nn.Softmax(1)
        self.loss = nn.CrossEntropyLoss()
        self.losses = nn.CrossEntropyLoss(reduction="none")
        self.penalty = Penalty()
        self.learned_loss = LearnedLoss()
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=3, average="none")
        self.both = torchmetrics.MetricCollection({"accuracy": self.accuracy.clone()})
        self.failing = nn.Sequential(nn.Linear(4, 4), Failing())
        self.checkpointed = Checkpointed()
        self.nothing = Nothing()

    def forward(self, x, scale=1.0):
        return self.head(self.encoder(x)) * scale


class Penalty(nn.Module):
    def forward(self, x):
        return {"loss": x.square().mean()}


class LearnedLoss(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return (x * self.weight).mean()


class Nothing(nn.Module):
    def forward(self, x):
        return None


class Nested(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.teacher = Lit()
        self.student = Lit()


def names(step, model=None):
    model = model or Lit()
    with ForwardRecorder(model) as recorder:
        step(model)
    return [call.name for call in recorder.calls]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (lambda m: m(X), [""]),
        (lambda m: m.head(m.encoder(X)), ["encoder", "head"]),
        (lambda m: m.head.forward(m.encoder[0](X)), ["encoder.0"]),
        (lambda m: [m.encoder(X), m.encoder(X)], ["encoder", "encoder"]),
        (lambda m: m.loss(m.softmax(m(X)), torch.zeros(6, dtype=torch.long)), ["", "softmax"]),
        (lambda m: m.losses(m(X), torch.zeros(6, dtype=torch.long)), [""]),
        (lambda m: m.penalty(m(X)), [""]),
        (lambda m: m.learned_loss(m(X)), ["", "learned_loss"]),
        (lambda m: m.accuracy(m(X), torch.zeros(6, dtype=torch.long)), [""]),
        (lambda m: m.both(m(X), torch.zeros(6, dtype=torch.long)), [""]),
        (lambda m: m.nothing(m(X)), [""]),
        (lambda m: m.checkpointed(X.clone().requires_grad_()).sum().backward(), ["checkpointed"]),
    ],
)
def test_which_calls_are_outermost(step, expected):
    assert names(step) == expected


def test_nested_lightning_modules():
    assert names(lambda m: [m.teacher(X), m.student.encoder(X)], Nested()) == ["teacher", "student.encoder"]


def test_what_a_call_holds():
    model = Lit()
    x = X.clone().requires_grad_()

    with ForwardRecorder(model) as recorder:
        output = model(model.softmax(x), scale=torch.tensor(2.0, requires_grad=True))
        expected = output.detach().clone()

    call = recorder.calls[1]
    assert call.module is model
    assert torch.equal(call.args[0], X.softmax(1))
    assert list(call.kwargs) == ["scale"]
    assert torch.equal(call.output, expected)
    assert not any(tensor.requires_grad for tensor in (*call.args, *call.kwargs.values(), call.output))
    assert output.requires_grad  # the step's own tensors are untouched


def test_a_step_that_catches_what_a_network_raises():
    def step(model):
        for _ in range(2):
            with pytest.raises(RuntimeError, match="on purpose"):
                model.failing(X)
        model.encoder(X)

    assert names(step) == ["encoder"]


def test_a_users_hook_that_raises_before_ours():
    model = Lit()

    def refuse(module, args):
        raise RuntimeError("refused")

    model.head.register_forward_pre_hook(refuse)
    with ForwardRecorder(model) as recorder:
        with pytest.raises(RuntimeError, match="refused"):
            model.head(torch.ones(1, 5))
        with pytest.raises(RuntimeError, match="refused"):
            model(X)
        model.encoder(X)

    assert [call.name for call in recorder.calls] == ["encoder"]


def test_interrupted_calls_are_forgotten():
    model = Lit()

    def interrupt(module, args):
        raise KeyboardInterrupt  # torch runs no hook after this

    handle = model.head.register_forward_pre_hook(interrupt)
    with ForwardRecorder(model) as recorder:
        with pytest.raises(KeyboardInterrupt):
            model(X)
        handle.remove()
        recorder.clear()
        model.encoder(X)

    assert [call.name for call in recorder.calls] == ["encoder"]


def test_hooks_go_when_it_stops():
    model = Lit()
    recorder = ForwardRecorder(model)
    recorder.start()
    recorder.start()
    model(X)
    recorder.stop()
    model(X)

    assert len(recorder.calls) == 1
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_only_some():
    model = Lit()

    with ForwardRecorder(model, only={"head"}) as recorder:
        model(X)
        model.encoder(X)

    assert [call.name for call in recorder.calls] == ["head"]
    assert not model.encoder._forward_hooks


def test_inputs_can_be_copied_before_the_network_writes_to_them():
    network = nn.Sequential(nn.ReLU(inplace=True))
    x = X.clone()

    with ForwardRecorder(network, copy_inputs=True) as recorder:
        network(x)

    call = recorder.calls[0]
    assert call.before is not None
    assert torch.equal(call.before[0][0], X)
    assert torch.equal(call.args[0], X.relu())


def test_nothing_is_kept_alive_after_clear():
    model = Lit()
    recorder = ForwardRecorder(model)
    with recorder:
        x = X.clone()
        output = model(x)
    storages = [weakref.ref(recorder.calls[0].args[0]), weakref.ref(recorder.calls[0].output)]
    graph = weakref.ref(output)

    del x, output
    gc.collect()
    assert graph() is None  # not even before
    assert all(storage() is not None for storage in storages)
    recorder.clear()
    assert all(storage() is None for storage in storages)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_of_the_model_records_nothing(copy_of):
    model = Lit()

    with ForwardRecorder(model) as recorder:
        model(X)
        twin = copy_of(model)
        torch.save(twin.state_dict(), io.BytesIO())
        twin(X)

    assert len(recorder.calls) == 1
    hooks = [hook for module in twin.modules() for hook in module._forward_hooks.values()]
    assert len(hooks) > 1
    assert not any(recorder.calls[0] in gc.get_referents(hook.__dict__) for hook in hooks)


def test_compiled_networks():
    model = Lit()
    model.encoder = torch.compile(model.encoder, backend="eager")
    expected = Lit.forward(model, X)

    with ForwardRecorder(model) as recorder:
        actual = model.head(model.encoder(X))

    assert [call.name for call in recorder.calls] == ["encoder", "head"]
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("through_self", [False, True])
def test_a_step_that_is_called_as_forward(make_trainer, through_self):
    """Under DDP, the call of the LightningModule is the training step."""
    recorded = []

    class Model(Lit):
        def training_step(self, batch):
            return (self(batch[0]) if through_self else self.head(self.encoder(batch[0]))).sum()

        def configure_optimizers(self):
            return torch.optim.SGD([*self.encoder.parameters(), *self.head.parameters()], 0.1)

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            # The redirection of the strategy's wrapper, without processes.
            with ForwardRecorder(pl_module) as recorder:
                for _ in range(2):
                    trainer.strategy._forward_redirection(pl_module, pl_module, "training_step", batch)
            recorded.extend(call.name for call in recorder.calls)

    make_trainer(Look(), max_steps=1).fit(Model(), DataLoader(TensorDataset(X), batch_size=6))

    assert recorded == ([""] if through_self else ["encoder", "head"]) * 2
