import copy
import dataclasses
from collections import OrderedDict

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, Dataset
from training.launching import finish, start

from lightning_coreset.training.metrics.probe import AccuracyProbe

N, B, K = 22, 4, 3  # the last batch is smaller


class Samples(Dataset):
    """Whatever a batch is made of, sample by sample."""

    def __init__(self, columns):
        self.columns = columns

    def __len__(self):
        return N

    def __getitem__(self, i):
        if isinstance(self.columns, dict):
            return {key: value[i] for key, value in self.columns.items()}
        return tuple(value[i] for value in self.columns)


GENERATOR = torch.Generator().manual_seed(1)
X = torch.randn(N, 5, generator=GENERATOR)
Y = torch.arange(N) % K
Y2 = torch.arange(N) % 2
IDS = torch.arange(N) + 100


class Base(pl.LightningModule):
    """Trains and validates by ``logits``, and keeps the accuracy that ought to be found."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, K))
        self.seen = {"train": [], "val": []}
        self.expected = {"train": [], "val": []}

    def forward(self, x):
        return self.net(x)

    def logits(self, batch):
        return self(batch[0]), batch[1]

    def right(self, logits, y):
        return logits.argmax(1) == y

    def loss(self, logits, y):
        return nn.functional.cross_entropy(logits, y)

    def step(self, batch, phase):
        logits, y = self.logits(batch)
        if not self.trainer.sanity_checking:
            self.seen[phase] += self.right(logits, y).float().tolist()
        return self.loss(logits, y)

    def training_step(self, batch):
        return self.step(batch, "train")

    def validation_step(self, batch):
        return self.step(batch, "val")

    def end(self, phase):
        if not self.trainer.sanity_checking:
            self.expected[phase].append(sum(self.seen[phase]) / len(self.seen[phase]))
            self.seen[phase] = []

    def on_validation_epoch_end(self):
        self.end("val")

    def on_train_epoch_end(self):
        self.end("train")

    def on_validation_batch_end(self, outputs, batch, batch_idx):
        self.net(torch.zeros(2, 5))  # a call between the steps

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Direct(Base):
    def logits(self, batch):
        return self.net(batch[0]), batch[1]


class Chained(Base):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = self.net[:3], self.net[3:]
        self.net = nn.Linear(5, 1)

    def logits(self, batch):
        return self.head(self.encoder(batch[0]).flatten(1)), batch[1]


class Decorated(Base):
    """Metrics, losses, a softmax and another loss that learns around the network."""

    def __init__(self):
        super().__init__()
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=K, average="none")
        self.criterion = nn.CrossEntropyLoss()
        self.elementwise = nn.CrossEntropyLoss(reduction="none")
        self.softmax = nn.Softmax(1)
        self.learned = Learned()
        self.augment = nn.Identity()

    def logits(self, batch):
        logits, y = self(self.augment(batch[0])), batch[1]
        self.accuracy(self.softmax(logits), y)
        return logits, y

    def loss(self, logits, y):
        return self.criterion(logits, y) + self.elementwise(logits, y).mean() + self.learned(logits, y)


class Learned(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(K))

    def forward(self, logits, y):
        return nn.functional.cross_entropy(logits * self.weight, y)


class Keyed(Base):
    def logits(self, batch):
        return self.net(batch["image"]), batch["label"]


class Output(OrderedDict):
    """Like the outputs of Hugging Face."""


class HuggingFace(Base):
    def __init__(self):
        super().__init__()
        self.net = Classifier(self.net)

    def logits(self, batch):
        return self.net(**batch)["logits"], batch["labels"]

    def on_validation_batch_end(self, outputs, batch, batch_idx):
        pass


class Classifier(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, pixel_values, index, labels):
        logits = self.net(pixel_values)
        return Output(loss=nn.functional.cross_entropy(logits, labels), logits=logits, hidden=logits * 2)


class WithLoss(Base):
    """The network takes the labels, and returns the loss as well."""

    def forward(self, x, targets):
        logits = self.net(x)
        return nn.functional.cross_entropy(logits, targets), logits

    def logits(self, batch):
        return self(*batch)[1], batch[1]


class Named(Base):
    def forward(self, x):
        return Dataclass(self.net(x), x)

    def logits(self, batch):
        return self(batch[0]).logits, batch[1]


@dataclasses.dataclass(frozen=True)
class Dataclass:
    logits: torch.Tensor
    features: torch.Tensor


class Squeezed(Base):
    def logits(self, batch):
        return self(batch[0]), batch[1].squeeze(1)


class Binary(Base):
    def __init__(self, bias=0.0):
        super().__init__()
        self.net[-1] = nn.Linear(8, 1)
        nn.init.constant_(self.net[-1].bias, bias)

    def right(self, logits, y):
        return (logits > 0).flatten() == y

    def loss(self, logits, y):
        return nn.functional.binary_cross_entropy_with_logits(logits.flatten(), y.float())


class BinaryFlat(Binary):
    def forward(self, x):
        return self.net(x).flatten()


class BinaryProbability(Binary):
    def forward(self, x):
        return self.net(x).sigmoid()

    def right(self, logits, y):
        return (logits > 0.5).flatten() == y

    def loss(self, logits, y):
        return nn.functional.binary_cross_entropy(logits.flatten(), y.float())


class SanitySkipped(Base):
    def validation_step(self, batch):
        return None if self.trainer.sanity_checking else super().validation_step(batch)


class Manual(Base):
    automatic_optimization = False

    def training_step(self, batch):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.step(batch, "train"))
        optimizer.step()


class Probe(pl.Callback):
    """Calls the probe as its documentation says."""

    def __init__(self, **options):
        self.probe = AccuracyProbe(**options)
        self.values = []
        self.hooks = []

    def start(self, pl_module):
        self.probe.start(pl_module)
        self.hooks.append(hooks(pl_module))

    def end(self, batch):
        self.probe.batch_end(batch)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not trainer.enable_validation:
            self.start(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if not trainer.enable_validation:
            self.end(batch)

    def on_train_epoch_end(self, trainer, pl_module):
        if not trainer.enable_validation:
            self.values.append(self.probe.compute_and_reset())

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.start(pl_module)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        self.end(batch)

    def on_validation_end(self, trainer, pl_module):
        value = self.probe.compute_and_reset()
        if not trainer.sanity_checking:
            self.values.append(value)


def hooks(model):
    return sum(len(module._forward_hooks) for module in model.modules())


def loader(columns):
    return DataLoader(Samples(columns), batch_size=B)


CLASSIFIERS = {
    "self": (Base, (X, Y)),
    "submodule": (Direct, (X, Y)),
    "chained": (Chained, (X, Y)),
    "decorated": (Decorated, (X, Y)),
    "dict": (Keyed, {"image": X, "label": Y}),
    "dict-named": (Keyed, {"image": X, "label": Y, "index": Y.flip(0)}),
    "index": (Base, (X, Y, IDS)),
    "huggingface": (HuggingFace, {"pixel_values": X, "index": Y.flip(0), "labels": Y}),
    "with-loss": (WithLoss, (X, Y)),
    "dataclass": (Named, (X, Y)),
    "column": (Squeezed, (X, Y[:, None])),
    "int32": (Base, (X, Y.to(torch.int16))),
    "binary": (Binary, (X, Y2)),
    "binary-flat": (BinaryFlat, (X, Y2)),
    "binary-bool": (BinaryFlat, (X, Y2.bool())),
    "binary-probability": (BinaryProbability, (X, Y2)),
    "sanity": (SanitySkipped, (X, Y)),
}


@pytest.mark.parametrize(("model", "columns"), CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_accuracy_of_every_validation(make_trainer, model, columns):
    model, probe = model(), Probe()
    if columns is CLASSIFIERS["int32"][1]:
        model.loss = lambda logits, y: nn.functional.cross_entropy(logits, y.long())

    make_trainer(probe, max_epochs=3, num_sanity_val_steps=1).fit(model, loader(columns), loader(columns))

    assert len(probe.values) == 3
    assert probe.values == pytest.approx(model.expected["val"], abs=1e-7)


@pytest.mark.parametrize("model", [Base, Chained, Decorated, Binary, Manual])
def test_accuracy_of_training_where_there_is_no_validation(make_trainer, model):
    model, probe = model(), Probe()
    columns = (X, Y2) if isinstance(model, Binary) else (X, Y)

    make_trainer(probe, max_epochs=3, limit_val_batches=0).fit(model, loader(columns), loader(columns))

    assert probe.values == pytest.approx(model.expected["train"], abs=1e-7)


def test_the_numbers_are_torchmetrics(make_trainer):
    probe = Probe()

    class Model(Base):
        def __init__(self):
            super().__init__()
            self.accuracy = torchmetrics.classification.MulticlassAccuracy(K, average="micro")

        def validation_step(self, batch):
            self.accuracy.update(self(batch[0]), batch[1])

        def on_validation_epoch_end(self):
            self.expected["val"].append(self.accuracy.compute().item())
            self.accuracy.reset()

    model = Model()
    make_trainer(probe, max_epochs=3).fit(model, loader((X, Y)), loader((X, Y)))

    assert probe.values == pytest.approx(model.expected["val"], abs=1e-7)


class Regression(Base):
    def loss(self, logits, y):
        return logits.square().mean()

    def right(self, logits, y):
        return torch.ones(1)


class Autoencoder(Regression):
    def __init__(self):
        super().__init__()
        self.net[-1] = nn.Linear(8, 5)


class TwoViews(Regression):
    def logits(self, batch):
        return self.net(batch[0]) - self.net(-batch[0]), batch[1]


class TwoHeads(Regression):
    def forward(self, x):
        return self.net(x), self.net(2 * x)

    def logits(self, batch):
        return self(batch[0])[0], batch[1]


class Conditional(Regression):
    def forward(self, x, y):
        return self.net(x) + y[:, None]

    def logits(self, batch):
        return self(*batch), batch[1]


class Dense(Regression):
    def forward(self, x):
        return self.net(x)[:, :, None].expand(-1, -1, 6)


class OneOutput(Regression):
    def __init__(self):
        super().__init__()
        self.net[-1] = nn.Linear(8, 1)


class Growing(Regression):
    """Another width of the output from the second batch on."""

    def forward(self, x):
        return self.net(x)[:, :2] if self.seen["val"] else self.net(x)


class Twice(Regression):
    def logits(self, batch):
        return sum(self.net(batch[0]) for _ in range(2 if self.seen["val"] else 1)), batch[1]


def late(value):
    labels = Y.clone()
    labels[B + 1] = value
    return labels


NO_CLASSIFIERS = {
    "autoencoder": (Autoencoder, (X, Y)),
    "no-labels": (Regression, (X, X[:, 0])),
    "two-labels": (Regression, (X, Y, Y.flip(0))),
    "two-named-labels": (Keyed, {"image": X, "label": Y, "target": Y.flip(0)}),
    "float-labels": (Regression, (X, Y.float())),
    "two-views": (TwoViews, (X, Y)),
    "two-heads": (TwoHeads, (X, Y)),
    "conditional": (Conditional, (X, Y)),
    "dense": (Dense, (X, Y)),
    "dense-labels": (Regression, (X, Y[:, None].expand(-1, 2))),
    "regression-with-a-flag": (OneOutput, (X, X[:, 0], Y2)),
    "one-output-for-many": (OneOutput, (X, Y)),
    "ignored-label": (Regression, (X, late(-100))),
    "label-beyond": (Regression, (X, late(K))),
    "first-label-beyond": (Regression, (X, Y + K)),
    "fewer-classes": (Regression, (X, Y2)),
    "growing": (Growing, (X, Y)),
    "twice": (Twice, (X, Y)),
}


@pytest.mark.parametrize(("model", "columns"), NO_CLASSIFIERS.values(), ids=NO_CLASSIFIERS)
def test_no_number_rather_than_a_wrong_one(make_trainer, model, columns):
    model, probe = model(), Probe()

    make_trainer(probe, max_epochs=3, num_sanity_val_steps=1).fit(model, loader(columns), loader(columns))

    assert probe.values == [None] * 3
    assert probe.probe.evaluate(model) is None
    assert hooks(model) == 0


def test_hooks_are_on_one_module_and_then_on_none(make_trainer):
    model, probe = Base(), Probe()
    make_trainer(probe, max_epochs=1).fit(model, loader((X, Y)), loader((X, Y)))
    modules = len(list(model.modules()))
    assert probe.hooks == [modules, 1, 1, 1, 1, 1]
    assert hooks(model) == 0

    model, probe = Regression(), Probe()
    make_trainer(probe, max_epochs=2).fit(model, loader((X, X[:, 0])), loader((X, X[:, 0])))
    assert probe.hooks == [modules] + [0] * 11


def test_logits_that_look_like_probabilities_at_first():
    """A batch of single logits may lie within [0, 1] by chance; it counts as logits once any other does not."""

    class Model(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1, bias=False)
            nn.init.ones_(self.layer.weight)

    model, probe = Model(), AccuracyProbe()
    batches = [(torch.tensor([[0.2], [0.9]]), torch.tensor([1, 1])), (torch.tensor([[-3.0], [3.0]]), Y2[:2])]
    for expected, count in ((0.5, 1), (1.0, 2), (1.0, 1)):
        for batch in batches[:count]:
            probe.start(model)
            model.layer(batch[0])
            probe.batch_end(batch)
        assert probe.compute_and_reset() == expected


def fitted(make_trainer, model=Base, columns=(X, Y), epochs=1, **options):
    model, probe = model(), Probe(**options)
    make_trainer(probe, max_epochs=epochs).fit(model, loader(columns), loader(columns))
    return model, probe.probe


def accuracy(model, x, y):
    with torch.no_grad():
        return (copy.deepcopy(model).eval().net(x).argmax(1) == y).float().mean().item()


@pytest.mark.parametrize("model", [Base, Direct, Decorated, HuggingFace, Named])
def test_accuracy_right_now(make_trainer, model):
    columns = {"pixel_values": X, "index": IDS, "labels": Y} if model is HuggingFace else (X, Y)
    model, probe = fitted(make_trainer, model, columns)
    net = model.net.net if model is HuggingFace or isinstance(model, HuggingFace) else model.net

    values = []
    for _ in range(3):
        with torch.no_grad():
            net[-1].weight.normal_()
        net.train()
        expected = (copy.deepcopy(net).eval()(X).argmax(1) == Y).float().mean().item()
        values.append(probe.evaluate(model))
        assert values[-1] == pytest.approx(expected, abs=1e-7)
        assert net.training
    assert len(set(values)) > 1


def test_accuracy_right_now_is_of_the_latest_batches(make_trainer):
    model, probe = fitted(make_trainer, eval_batches=2)
    latest = slice(N - N % B - B, N)

    assert probe.evaluate(model) == pytest.approx(accuracy(model, X[latest], Y[latest]), abs=1e-7)
    assert fitted(make_trainer, eval_batches=0)[1].evaluate(model) is None


def test_accuracy_right_now_of_several_networks_in_a_row_is_none(make_trainer):
    model, probe = fitted(make_trainer, Chained)

    assert probe.evaluate(model) is None


def test_accuracy_right_now_has_no_side_effects(make_trainer):
    model, probe = fitted(make_trainer)
    model.train()
    model.net[3].eval()
    state, flags = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    random = torch.get_rng_state()
    seen = copy.deepcopy(model.seen)

    probe.start(model)
    probe.evaluate(model)
    model(X)
    probe.batch_end((X, Y))

    assert probe.compute_and_reset() is not None  # the calls of evaluate are not the step's
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), random)
    assert model.seen == seen
    state["net.1.num_batches_tracked"] += 1  # the call above
    assert torch.equal(model.state_dict()["net.1.num_batches_tracked"], state["net.1.num_batches_tracked"])


def test_a_network_that_writes_to_its_input(make_trainer):
    """Would the spoilt input be kept, or spoilt again by every evaluation, the accuracy would be another one."""

    class Negate(nn.Module):
        def forward(self, x):
            return x.neg_()

    class InPlace(Direct):
        def __init__(self):
            super().__init__()
            self.net.insert(0, Negate())

    model, probe = fitted(make_trainer, InPlace)
    expected = accuracy(model, X.clone(), Y)

    assert [probe.evaluate(model) for _ in range(3)] == pytest.approx([expected] * 3, abs=1e-7)
    assert accuracy(model, -X, Y) != pytest.approx(expected)


def test_a_loader_that_reuses_its_memory():
    model, probe = Base().eval(), AccuracyProbe()
    x, y = X.clone(), Y.clone()
    expected = accuracy(model, X, Y)

    step(probe, model, x, y)
    y.copy_((model.net(x).argmax(1) + 1) % K)  # all wrong
    x.zero_()

    assert probe.compute_and_reset() == pytest.approx(expected)
    assert probe.evaluate(model) == pytest.approx(expected)


def test_an_evaluation_that_fails_warns_once(make_trainer):
    model, probe = fitted(make_trainer)

    def refuse(module, args):
        return args if len(args[0]) == B else (args[0][:, :3],)

    broken = model.net[0].register_forward_pre_hook(refuse)  # all batches are right but the last

    with pytest.warns(UserWarning, match="could not be measured.*mat1 and mat2"):
        assert probe.evaluate(model) is None
    broken.remove()
    step(probe, model, X, Y)
    assert probe.evaluate(model) is None  # neither tries nor warns again
    assert probe.compute_and_reset() is not None


def step(probe, model, x, y):
    probe.start(model)
    model(x)
    probe.batch_end((x, y))


def test_a_rare_label_has_to_be_seen_only_once():
    model, probe = Base().eval(), AccuracyProbe()

    values = []
    for labels in (Y2, Y, Y2):
        step(probe, model, X, labels)
        values.append(probe.compute_and_reset())

    assert values == [None, pytest.approx(accuracy(model, X, Y)), pytest.approx(accuracy(model, X, Y2))]


def test_without_a_classifier_ranks_do_not_communicate(monkeypatch):
    model, probe = Base(), AccuracyProbe()
    step(probe, model, X, X)
    assert probe.compute_and_reset() is None

    monkeypatch.setattr(torchmetrics.Metric, "_sync_dist", None)
    monkeypatch.setattr(AccuracyProbe, "_reduce", None)
    assert probe.compute_and_reset() is None
    assert probe.evaluate(model) is None


@pytest.mark.gpu
def test_counts_are_on_the_device_of_the_model():
    model, probe = Base().eval().cuda(), AccuracyProbe()

    step(probe, model, X.cuda(), Y.cuda())

    expected = pytest.approx(accuracy(model.cpu(), X, Y))
    assert probe._count.device.type == "cuda"
    assert probe.compute_and_reset() == expected
    assert probe.evaluate(model.cuda()) == expected


def test_stop_drops_everything(make_trainer):
    model, probe = fitted(make_trainer, Regression, (X, X[:, 0]))
    probe.stop()
    model = Base()

    step(probe, model, X, Y)

    assert probe.compute_and_reset() is not None
    probe.stop()
    assert hooks(model) == 0
    assert probe.evaluate(model) is None
    assert probe.compute_and_reset() is None


SCRIPT = """
import sys
import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning_coreset.training.metrics.probe import AccuracyProbe

rank, path = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)

class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(3, 3, bias=False)
        torch.nn.init.eye_(self.net.weight)

def step(probe, model, x, y):
    probe.start(model)
    model.net(x)
    probe.batch_end((x, y))

model, probe = Model(), AccuracyProbe()
values = []
if rank == 0:  # rank 1 gets no batch at first
    step(probe, model, torch.eye(3), torch.tensor([0, 1, 0]))
values += [probe.compute_and_reset(), probe.evaluate(model)]  # labels up to 1: cannot be told yet
if rank == 1:
    step(probe, model, torch.eye(3)[:1], torch.tensor([1]))
else:
    step(probe, model, torch.eye(3), torch.tensor([0, 1, 2]))
values += [probe.compute_and_reset(), probe.evaluate(model)]
if rank == 1:  # a batch that does not fit, on one rank alone
    step(probe, model, torch.eye(3), torch.tensor([0, 1, -100]))
values += [probe.compute_and_reset(), probe.compute_and_reset(), probe.evaluate(model)]
print("values:", values)
"""


@pytest.mark.slow
def test_counts_of_all_ranks_are_added_up(tmp_path):
    command = ("-W", "error", "-c", SCRIPT)
    outputs = finish(*(start(tmp_path, *command, str(rank), tmp_path / "store") for rank in (0, 1)))

    # Rank 0: 2 of 3, then 3 of 3; rank 1: 0 of 1 in the second round.
    expected = [None, None, 0.75, 5 / 7, None, None, None]
    for output in outputs:
        assert f"values: {expected}\n" in output
