"""Going back to a state of training."""

from __future__ import annotations

import copy

import lightning.pytorch as pl
import pytest
import torch
from breadth import thinned
from fitting import Classifier, assert_same, make_loader
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from networks import make
from torch import nn
from torch.utils.data import DataLoader

from lightning_coreset import CoresetPruningCallback, prune
from lightning_coreset.training.optimizer_state import restore_state
from lightning_coreset.training.rollback import Savepoint


class Around(pl.Callback):
    """Takes a savepoint, prunes, lets train, goes back, and keeps what there was before and after."""

    def __init__(self, example):
        self.example = example

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.before = everything(trainer, pl_module)
            savepoint = Savepoint.take(trainer, pl_module)
            plan = prune(pl_module.net, self.example, 0.4)
            assert plan.channels_removed
            for optimizer in trainer.optimizers:
                optimizer.state.clear()
            self.savepoint = savepoint.after(pl_module)
        if trainer.current_epoch == 2:
            self.savepoint.restore(trainer, pl_module)
            self.after = everything(trainer, pl_module)
            assert all(parameter.grad is None for parameter in pl_module.parameters())


def everything(trainer, pl_module):
    tensors = dict(pl_module.named_parameters()) | dict(pl_module.named_buffers())
    return {
        "model": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "text": str(pl_module),
        "sizes": {
            name: {key: value for key, value in vars(module).items() if type(value) is int}
            for name, module in pl_module.net.named_modules()
        },
        "strides": {name: tensor.stride() for name, tensor in tensors.items()},
        "optimizers": [
            [copy.deepcopy(optimizer.state.get(parameter)) for parameter in pl_module.parameters()]
            for optimizer in trainer.optimizers
        ],
        "precision": copy.deepcopy(trainer.precision_plugin.state_dict()),
    }


def assert_back(around):
    assert_same(around.before["model"], around.after["model"])
    for key in ("text", "sizes", "strides"):
        assert around.before[key] == around.after[key], key
    torch.testing.assert_close(around.before["optimizers"], around.after["optimizers"], rtol=0, atol=0)
    assert around.before["precision"] == around.after["precision"]


class Any(pl.LightningModule):
    """Trains whatever network towards nothing in particular, and counts its steps."""

    def __init__(self, net):
        super().__init__()
        self.net = net.train()
        self.steps = 0

    def training_step(self, batch, batch_idx):
        self.steps += 1
        return self.net(batch).float().square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-3)

    def train_dataloader(self):
        return DataLoader([self.example] * 3, batch_size=None)


@pytest.mark.parametrize("name", thinned(["resnet", "mobilenet", "grouped", "normed", "attention", "gated"], 3))
def test_any_network_grows_back(make_trainer, name):
    """Depthwise and grouped convolutions and heads have sizes that shapes do not tell."""
    net, example = make(name, torch.float32)
    module, around = Any(net), Around(example)
    module.example = example

    make_trainer(around, max_epochs=3).fit(module)

    assert_back(around)
    assert module.steps == 9  # a number of the user's that has gone on


def test_memory_format_is_kept(make_trainer):
    net, example = make("vgg", torch.float32)
    module, around = Any(net.to(memory_format=torch.channels_last)), Around(example)
    module.example = example

    make_trainer(around, max_epochs=3).fit(module)

    assert_back(around)


class TwoOptimizers(Classifier):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        first, second = list(self.net[0].parameters()), [*self.net[2].parameters(), *self.net[4].parameters()]
        return torch.optim.SGD(first, 0.1, momentum=0.9), torch.optim.Adam(second)


class Unfreezing(Classifier):
    """Gives the optimizer more parameters while the event could heal."""

    def __init__(self):
        super().__init__()
        self.net[0].requires_grad_(False)

    def on_train_epoch_start(self):
        if self.trainer.current_epoch == 1:
            self.net[0].requires_grad_(True)
            self.optimizers().add_param_group({"params": list(self.net[0].parameters()), "lr": 1e-3})

    def configure_optimizers(self):
        return torch.optim.Adam([*self.net[2].parameters(), *self.net[4].parameters()], 1e-2)


class Scaled(TwoOptimizers):
    """With the scale of mixed precision, which halves at every step that overflows."""

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        scaler = self.trainer.precision_plugin.scaler
        scaler.update(scaler.get_scale() / 2)


@pytest.mark.parametrize("kind", [TwoOptimizers, Unfreezing, Scaled])
@pytest.mark.slow
def test_optimizers_go_back(make_trainer, kind):
    options = {}
    if kind is Scaled:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        options["plugins"] = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    around, module = Around(torch.ones(2, 8)), kind()

    make_trainer(around, max_epochs=4, **options).fit(module, make_loader(8))

    assert_back(around)
    assert sum(state is not None for state in around.before["optimizers"][0]) > 0
    if kind is Unfreezing:
        assert len(module.optimizers().param_groups) == 2


def test_an_average_that_began_in_between_begins_anew(make_trainer):
    swa = StochasticWeightAveraging(1e-2, swa_epoch_start=2, device=None)

    class Later(Around):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                self.savepoint = Savepoint.take(trainer, pl_module)
            if trainer.current_epoch == 4:
                assert swa.n_averaged > 0
                self.savepoint.restore(trainer, pl_module)
                self.counted = int(swa.n_averaged)

    later = Later(None)

    make_trainer(later, swa, max_epochs=5).fit(Classifier(), make_loader(8))

    assert later.counted == 0


@pytest.mark.parametrize(
    ("options", "device"), [({}, "cpu"), ({"capturable": True}, "meta"), ({"fused": True}, "meta")]
)
def test_the_step_counter_is_where_torch_keeps_it(options, device):
    """On the CPU, unless the optimizer needs it on the device of its parameter; here that is a device without data."""
    optimizer = torch.optim.Adam([nn.Parameter(torch.empty(2, device="meta"))])
    optimizer.param_groups[0].update(options)

    restore_state(optimizer, {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}, "of all": 7})

    assert optimizer.state.pop("of all") == 7
    (state,) = optimizer.state.values()
    assert state["exp_avg"].device.type == "meta"
    assert state["step"].device.type == device


# ---- checkpoints of version 0.1

GROUP = {"channels_after": 1, "channels_before": 2, "expected_error": 0.1, "kept": [0], "method": "reconstruction"}
COUNTS = {"params_before": 6, "params_after": 3, "params_original": 6, "macs_before": 6, "macs_after": 3}
STATE_OF_VERSION_0_1 = {
    "plans": [
        {
            "unit": "params",
            "requested": 0.5,
            "reached": 0.5,
            "groups": [{**GROUP, "name": "net.0"}],
            "skipped": {"net.2": "makes outputs of the network"},
            "attributes": [],
            "changes": [],
            **COUNTS,
        }
    ],
    "done": {2: 0.5},
    "original": {"params": 6, "macs": 6, "channels": 3, "widths": {"net.0": 2}},
    "final_sizes": {},
    "unsound": {},
    "history": [
        {
            "epoch": 2,
            "step": 8,
            "unit": "params",
            "requested": 0.5,
            "reached": 0.5,
            "params": 3,
            "params_original": 6,
            "macs": 3,
            "macs_original": 6,
            "groups": [
                {
                    "name": "net.0",
                    "channels": 1,
                    "channels_original": 2,
                    "method": "reconstruction",
                    "expected_error": 0.1,
                    "certified_error": None,
                    "found_error": None,
                }
            ],
            "accuracy_before": 0.75,
            "accuracy_after": 0.5,
            "accuracy_recovered": 0.25,
            "reverted": False,
        }
    ],
    "guard": {
        "best": 0.75,
        "begun": True,
        "step": None,
        "stopped": False,
        "window": {
            "savepoint": {
                "shapes": {"net.0.weight": [2, 2], "net.2.weight": [3, 2]},
                "sizes": {"net.0.out_features": 2, "net.2.in_features": 2},
                "models": [
                    {
                        "net.0.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
                        "net.2.weight": torch.tensor([[5.0, 6.0], [7.0, 8.0], [9.0, 0.0]]),
                    }
                ],
                "averaged": [],
                "optimizers": [
                    [
                        {
                            0: {"momentum_buffer": torch.tensor([[0.1, 0.2], [0.3, 0.4]])},
                            1: {"momentum_buffer": torch.tensor([[0.5, 0.6], [0.7, 0.8], [0.9, 0.0]])},
                        }
                    ]
                ],
                "precision": {},
                "patience": [],
            },
            "plans": 0,
            "done": {},
            "ratio": 0.5,
            "epoch": 2,
            "batches": 8,
            "value": 0.25,
            "failed": True,
        },
    },
}


def guarded():
    return CoresetPruningCallback(schedule={2: 0.5}, max_drop=0.1, monitor="score", verbose=False)


def test_the_state_of_version_0_1_is_read():
    callback, again = guarded(), guarded()

    callback.load_state_dict(copy.deepcopy(STATE_OF_VERSION_0_1))
    state = callback.state_dict()
    again.load_state_dict(copy.deepcopy(state))

    assert state.keys() == STATE_OF_VERSION_0_1.keys()
    for key in ("done", "original", "final_sizes", "unsound"):
        assert state[key] == STATE_OF_VERSION_0_1[key]
    assert state["guard"].pop("watched") == "score (max)"
    assert state["guard"]["window"]["savepoint"].pop("digest")
    torch.testing.assert_close(state["guard"], STATE_OF_VERSION_0_1["guard"], rtol=0, atol=0)
    for one in (callback, again):
        assert one.history.to_dicts() == STATE_OF_VERSION_0_1["history"]
        (plan,), (old,) = one.plans, STATE_OF_VERSION_0_1["plans"]
        assert plan.groups[0].kept == (0,)
        plain = plan.to_dict()
        assert {key: plain[key] for key in old if key != "groups"} == {key: old[key] for key in old if key != "groups"}
        assert GROUP.items() <= plain["groups"][0].items()
    assert str(callback.history[0].epoch) in str(callback.history)


def test_an_event_of_version_0_1_is_taken_back(make_trainer):
    class Pruned(Classifier):
        def __init__(self):
            net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 3, bias=False))
            super().__init__(net)

        def validation_step(self, batch, batch_idx):
            self.log("score", 0.25)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)

    class Loads(pl.Callback):
        """Loads the state when Lightning has reset the run, and looks at what the pruning callback then does."""

        def on_train_start(self, trainer, pl_module):
            callback.load_state_dict(copy.deepcopy(STATE_OF_VERSION_0_1))

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.weights = copy.deepcopy(pl_module.state_dict())
            optimizer = trainer.optimizers[0]
            self.momenta = [optimizer.state[p]["momentum_buffer"].tolist() for p in optimizer.param_groups[0]["params"]]
            trainer.should_stop = True
            return -1

    callback, loads, module = guarded(), Loads(), Pruned()

    with pytest.warns(UserWarning, match="event of epoch 2 is taken back: the score is 0.25 and was 0.75"):
        make_trainer(loads, callback, max_epochs=3).fit(module, make_loader(2), make_loader(2))

    window = STATE_OF_VERSION_0_1["guard"]["window"]["savepoint"]
    assert_same(loads.weights, window["models"][0])
    assert loads.momenta == [state["momentum_buffer"].tolist() for state in window["optimizers"][0][0].values()]
    assert module.net[0].out_features == module.net[2].in_features == 2
    assert callback.plans == []
    assert [record.reverted for record in callback.history] == [True]
