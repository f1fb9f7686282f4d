"""Layers that the first batch does not run: cut right if they run before an event, else they keep their inputs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from breadth import some_of
from fitting import Classifier, Validated, Watcher, assert_same, hooks_of, make_loader, make_trainer, mlp, widths
from torch import nn
from torch.nn import functional as F

from lightning_coreset import CoresetPruningCallback

AT_EPOCH_1: dict[str, Any] = {"schedule": {1: 0.4}, "unit": "channels", "verbose": False}


class Heads(Classifier):
    """A trunk with two heads on features that are 16 wide."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Linear(8, 16), nn.ReLU()))
        self.a, self.b = nn.Linear(16, 3), nn.Linear(16, 3)

    def loss(self, head: nn.Module, batch: Any) -> torch.Tensor:
        return F.cross_entropy(head(self.net(batch[0])), batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(self.a, batch)

    def forward(self, x):
        return self.a(self.net(x))


class InTurn(Heads):
    def training_step(self, batch, batch_idx):
        return self.loss(self.a if batch_idx % 2 == 0 else self.b, batch)


class FromAnEpochOn(Heads):
    """A loss that sets in with the event."""

    def training_step(self, batch, batch_idx):
        return self.loss(self.a, batch) + (self.loss(self.b, batch) if self.current_epoch >= 1 else 0.0)


class ByStep(Heads):
    def training_step(self, batch, batch_idx):
        return self.loss(self.b if self.global_step == 2 else self.a, batch)


class ByChance(Heads):
    def training_step(self, batch, batch_idx):
        return self.loss(self.a if torch.rand(()) < 0.5 else self.b, batch)


class InValidation(Heads):
    def validation_step(self, batch, batch_idx):
        self.log("v", self.loss(self.b, batch))


class OfTheSecondLoader(Heads):
    def validation_step(self, batch, batch_idx, dataloader_idx):
        self.log("v", self.loss(self.b if dataloader_idx == 1 else self.a, batch))


class InForward(Heads):
    def forward(self, x):
        return self.b(self.net(x))


class InTests(Heads):
    def test_step(self, batch, batch_idx):
        self.log("t", self.loss(self.b, batch))


SHARED = (FromAnEpochOn, InTurn, ByStep, ByChance, InValidation, OfTheSecondLoader, InForward, InTests)


@pytest.mark.parametrize("kind", SHARED)
def test_all_layers_that_ran_are_cut(kind):
    torch.manual_seed(0)
    module, loader = kind(), make_loader(8)
    val = {InValidation: loader, OfTheSecondLoader: [loader, loader]}.get(kind)

    make_trainer(CoresetPruningCallback(**AT_EPOCH_1), max_epochs=3).fit(module, loader, val)

    assert widths(module) == {"net.0": (8, 10), "a": (10, 3), "b": (10, 3)}
    assert hooks_of(module) == 0
    module.b(module.net(loader.dataset[0][0]))


class WithHiddenHead(Heads):
    """A head of two layers, the first of which runs only in every other step: its own channels go as well."""

    def __init__(self) -> None:
        super().__init__()
        self.b = mlp(16, 12, 3)

    training_step = InTurn.training_step


def test_groups_of_layers_that_ran_later_are_pruned_too():
    module = WithHiddenHead()
    callback = CoresetPruningCallback(0.5, schedule={1: 0.25, 2: 0.5}, unit="channels", verbose=False)

    make_trainer(callback, max_epochs=3).fit(module, make_loader(8))

    assert widths(module)["b.0"][1] < 12
    assert widths(module)["net.0"][1] == widths(module)["b.0"][0] == widths(module)["a"][0] < 16


class Later(Heads):
    """A loss that sets in after the first event."""

    def training_step(self, batch, batch_idx):
        return self.loss(self.a, batch) + (self.loss(self.b, batch) if self.current_epoch >= 2 else 0.0)


def test_what_may_run_later_keeps_its_inputs_until_it_has_run():
    module, watcher = Later(), Watcher()
    callback = CoresetPruningCallback(**AT_EPOCH_1)

    with pytest.warns(UserWarning, match=r"'b' ran in no step so far.*channels of 'net.0'") as caught:
        make_trainer(callback, watcher, max_epochs=5).fit(module, make_loader(8))

    assert len([warning for warning in caught if "ran in no step" in str(warning.message)]) == 1
    sizes = [len(weights["net.0.bias"]) for weights in watcher.weights]
    assert sizes == [16] * 8 + [10] * 12  # the event of epoch 1 waits for the epoch in which it sets in
    assert widths(module) == {"net.0": (8, 10), "a": (10, 3), "b": (10, 3)}


class Spare(Heads):
    """A head that nothing runs, beside channels of another width that go."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 24, 16)

    def forward(self, x):
        return self.a(self.net(x))


def test_only_what_the_layer_could_read_stays():
    module = Spare()
    callback = CoresetPruningCallback(**AT_EPOCH_1)

    with pytest.warns(
        UserWarning, match=r"'b' ran in no step so far, and could read or write the channels of 'net.2', by"
    ):
        make_trainer(callback, max_epochs=2).fit(module, make_loader(8))

    assert widths(module)["net.0"][1] < 24
    assert widths(module)["net.2"][1] == 16
    assert callback.plans[0].skipped["net.2"] == "could be read or written by b, which has not run so far"


class NarrowSpare(Spare):
    """What only the spare head could read is most of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(8, 6, 16)


@pytest.mark.parametrize(("kind", "reached"), [(NarrowSpare, "46.64"), (Heads, "0.00")])
def test_the_end_says_which_layers_kept_a_ratio_from_being_reached(kind, reached):
    callback = CoresetPruningCallback(schedule={1: 0.6}, verbose=False)
    with pytest.warns(UserWarning, match=".") as caught:
        make_trainer(callback, max_epochs=3).fit(kind(), make_loader(8))
    last = str(caught[-1].message)
    assert last.startswith(f"Only {reached}")
    assert "of the requested 60.00% could be pruned, since 'b' ran in no step so far." in last


def test_layers_that_are_never_run_hold_nothing():
    module = Spare()
    callback = CoresetPruningCallback(**AT_EPOCH_1, never_run=["b"])

    make_trainer(callback, max_epochs=2).fit(module, make_loader(8))

    assert widths(module)["net.2"][1] < 16
    assert widths(module)["b"] == (16, 3)


def test_never_run_is_checked():
    with pytest.raises(ValueError, match="Expected never_run to be a sequence of rules"):
        CoresetPruningCallback(never_run="b")
    with pytest.raises(ValueError, match="Expected every rule of never_run to match a module name but 'c' matches"):
        make_trainer(CoresetPruningCallback(never_run=["c"]), max_epochs=1).fit(Spare(), make_loader(8))


class OnlyForPrediction(Classifier):
    """As in Lightning's own tutorial: ``forward`` gives the embedding, and no step calls it."""

    def __init__(self) -> None:
        super().__init__(mlp(8, 24, 16))
        self.decoder = mlp(16, 24, 8)

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.decoder(self.net(batch[0])), batch[0])


class Embeds(OnlyForPrediction):
    """``predict_step`` gives it."""

    forward = None  # type: ignore[assignment]

    def predict_step(self, batch, batch_idx):
        return self.net(batch[0])


class TakesADict(OnlyForPrediction):
    def forward(self, x, scale=1.0):
        return self.net(x) * scale

    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"],), batch_idx)


class FeaturesBeside(OnlyForPrediction):
    """The step calls ``self(x)``, and goes on with a part of what that returns."""

    def forward(self, x):
        features = self.net(x)
        return self.decoder(features), features

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self(batch[0])[0], batch[0])


del Embeds.forward


class HandsOn(TakesADict):
    """Hands anything on to a function that does not take the targets, as the modules of GluonTS do."""

    def embedding(self, x, scale):
        return self.net(x) * scale

    def forward(self, *args, **kwargs):
        return self.embedding(*args, **kwargs)


@pytest.mark.parametrize("kind", [OnlyForPrediction, Embeds, TakesADict, FeaturesBeside, HandsOn])
def test_what_forward_returns_keeps_its_width(kind):
    module, loader = kind(), make_loader(8)
    if kind in (TakesADict, HandsOn):
        loader = torch.utils.data.DataLoader(
            [{"x": x, "scale": x[:1], "y": y} for x, y in loader.dataset], batch_size=16
        )
    callback = CoresetPruningCallback(**AT_EPOCH_1)

    make_trainer(callback, max_epochs=2).fit(module, loader)

    assert widths(module)["net.2"][1] == 16
    assert widths(module)["net.0"][1] < 24
    assert callback.plans[0].skipped["net.2"] == "makes outputs of the network"


class OfAnotherShape(OnlyForPrediction):
    """Nothing in the batch suits ``forward``."""

    def forward(self, x, mask):
        return self.net(x[:, :2] @ mask)


class NotMeant(OnlyForPrediction):
    def forward(self, *args):
        raise NotImplementedError


def test_a_forward_that_nothing_can_run_is_named():
    callback = CoresetPruningCallback(**AT_EPOCH_1)
    with pytest.warns(UserWarning, match=r"own forward is called by no step.*may become narrower.*example_input_array"):
        make_trainer(callback, max_epochs=2).fit(OfAnotherShape(), make_loader(8))
    make_trainer(CoresetPruningCallback(**AT_EPOCH_1), max_epochs=2).fit(NotMeant(), make_loader(8))


class WholeOrInTurn(Classifier):
    """Manual optimization with two networks, of which a step calls one."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = mlp(8, 24, 3)

    def training_step(self, batch, batch_idx):
        network = self.net if batch_idx % 2 == 0 else self.other
        loss = F.cross_entropy(network(batch[0]), batch[1])
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()


def test_manual_optimization_is_recorded_again_when_a_new_call_comes_again():
    module = WholeOrInTurn()

    make_trainer(CoresetPruningCallback(0.5, **AT_EPOCH_1 | {"schedule": {1: 0.5}}), max_epochs=2).fit(
        module, make_loader(8)
    )

    assert widths(module)["other.0"] == (8, 12)
    assert hooks_of(module) == 0


def test_a_network_that_is_all_run_is_watched_no_more():
    module, hooks = Classifier(), []

    class Counting(Watcher):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            hooks.append(hooks_of(pl_module))

    callback = CoresetPruningCallback(0.5, **AT_EPOCH_1 | {"eval_batches": 0, "schedule": {1: 0.5}})
    make_trainer(callback, Counting(), max_epochs=2).fit(module, make_loader(8))

    assert hooks == [0] * 8


@pytest.mark.parametrize("kind", [InTurn, InValidation, OnlyForPrediction])
def test_looking_on_changes_nothing(kind):
    def weights(*callbacks: Any) -> list[dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        watcher, loader = Watcher(), make_loader(8)
        make_trainer(*callbacks, watcher, max_epochs=2).fit(kind(), loader, loader if kind is InValidation else None)
        return watcher.weights

    for one, other in zip(weights(), weights(CoresetPruningCallback(0.0)), strict=True):
        assert_same(one, other)


class BesidesTheNetwork(Validated):
    """What ordinary projects have beside what runs, of the same width as channels that go."""

    def __init__(self) -> None:
        super().__init__(mlp(8, 32, 24, 3))
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(32))
        self.embedding = nn.Embedding(32, 24)
        self.deep = nn.ModuleDict({"inner": Block()})


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(5, 32, 24)

    def forward(self, x):
        return self.net(x)


def test_no_false_alarm():
    module = BesidesTheNetwork()
    make_trainer(CoresetPruningCallback(0.5, **AT_EPOCH_1 | {"schedule": {1: 0.5}}), max_epochs=2).fit(
        module, make_loader(8), make_loader(8)
    )
    assert widths(module)["net.0"][1] == 16


class WithData(Classifier):
    """Holds buffers that no step uses and whose sizes are those of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("statistics", torch.zeros(32))
        self.queue = nn.Module()
        self.queue.register_buffer("entries", torch.zeros(24, 8))


def test_buffers_that_no_step_uses_are_data():
    callback = CoresetPruningCallback(0.5, schedule={1: 0.5}, verbose=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*ran in no step.*")
        make_trainer(callback, max_epochs=2).fit(WithData(), make_loader(8))
    assert len(callback.plans) == 1


class MostSetsInLater(Classifier):
    """A large network joins a small one: what runs at first cannot lose much of the whole."""

    def __init__(self, since: int) -> None:
        super().__init__(mlp(8, 8, 3))
        self.large, self.since = mlp(8, 128, 128, 3), since

    def training_step(self, batch, batch_idx):
        y = self.net(batch[0])
        if self.current_epoch >= self.since:
            y = y + self.large(batch[0])
        return F.cross_entropy(y, batch[1])


THREE_EVENTS: dict[str, Any] = {"schedule": {1: 0.3, 2: 0.4, 3: 0.5}, "verbose": False}
WAIT = r"Pruning events wait until 'large\.2', 'large\.0', 'large\.4' have run, which hold 99\.5% of the parameters"


@pytest.mark.parametrize(("since", "events"), [(1, [1, 2, 3]), (2, [2, 3]), (4, [4])])
def test_events_wait_for_layers_without_which_the_ratio_cannot_be_reached(since, events):
    """The one of epoch 1 comes before the first step of epoch 1 that runs them, and still sees it."""
    module, callback = MostSetsInLater(since), CoresetPruningCallback(**THREE_EVENTS)
    with pytest.warns(UserWarning, match=WAIT) as found:
        make_trainer(callback, max_epochs=6).fit(module, make_loader(8))
    assert [record.epoch for record in callback.history] == events
    assert sum(one.numel() for one in module.parameters()) <= 0.5 * callback.plans[0].params_before
    assert sum("events wait" in str(one.message) for one in found) == 1
    assert widths(module)["net.0"][1] > 1  # it did not have to give what the other could not


def test_what_layers_with_two_names_hold_is_counted_once():
    module, callback = MostSetsInLater(1), CoresetPruningCallback(**THREE_EVENTS)
    module.again = module.large
    with pytest.warns(UserWarning, match=r"'again\.2' and 2 more have run, which hold 99\.5% of the parameters"):
        make_trainer(callback, max_epochs=6).fit(module, make_loader(8))
    assert [record.epoch for record in callback.history] == [1, 2, 3]


def test_events_that_wait_in_vain_are_told():
    module, callback = MostSetsInLater(9), CoresetPruningCallback(**THREE_EVENTS)
    with (
        pytest.warns(UserWarning, match=WAIT),
        pytest.warns(UserWarning, match="ended before the pruning events"),
        pytest.warns(UserWarning, match=r"Only 0\.00% of the requested 50\.00% .*'large\.2'.*never_run"),
    ):
        make_trainer(callback, max_epochs=5).fit(module, make_loader(8))
    assert callback.history == []
    assert widths(module) == widths(MostSetsInLater(9))


def test_what_is_never_run_is_not_waited_for():
    module = MostSetsInLater(9)
    with pytest.raises(ValueError, match=r"Expected pruning_ratio to be at most 0\.00"):
        make_trainer(CoresetPruningCallback(never_run=["large"], **THREE_EVENTS), max_epochs=5).fit(
            module, make_loader(8)
        )


def test_layers_that_hold_too_little_are_not_waited_for():
    module = Later()  # its second head has less than the ratio lacks
    with pytest.raises(ValueError, match="Expected pruning_ratio to be at most"):
        make_trainer(CoresetPruningCallback(schedule={1: 0.99}), max_epochs=3).fit(module, make_loader(8))


def test_a_ratio_that_is_out_of_reach_all_the_same_is_refused_when_they_have_run():
    class Embedding(MostSetsInLater):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            # All of its channels reach a softmax, which mixes them.
            return loss + (
                sum(layer(torch.ones(1, layer.in_features)).softmax(1).var() for layer in self.large[::2])
                if self.current_epoch >= self.since
                else 0.0
            )

    module = Embedding(2)
    with pytest.warns(UserWarning, match=WAIT), pytest.raises(ValueError, match="Expected pruning_ratio to be at most"):
        make_trainer(CoresetPruningCallback(**THREE_EVENTS), max_epochs=5).fit(module, make_loader(8))


class SavesAfterEpoch1(pl.Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)


def test_a_run_that_waits_can_be_resumed(tmp_path):
    path, module, callback = tmp_path / "waits.ckpt", MostSetsInLater(3), CoresetPruningCallback(**THREE_EVENTS)
    with pytest.warns(UserWarning, match=WAIT):
        make_trainer(callback, SavesAfterEpoch1(path), max_epochs=5).fit(module, make_loader(8))
    again, resumed = CoresetPruningCallback(**THREE_EVENTS), MostSetsInLater(3)
    with pytest.warns(UserWarning, match=WAIT):
        make_trainer(again, max_epochs=5).fit(resumed, make_loader(8), ckpt_path=path)
    assert [record.epoch for record in again.history] == [record.epoch for record in callback.history] == [3]
    assert_same(dict(resumed.state_dict()), dict(module.state_dict()))


def test_events_by_steps_come_as_soon_as_the_layers_have_run():
    """In an epoch that is the only one, and later events are not kept from coming."""

    class FromAStepOn(MostSetsInLater):
        def training_step(self, batch, batch_idx):
            y = self.net(batch[0]) + (self.large(batch[0]) if self.global_step >= 8 else 0.0)
            return F.cross_entropy(y, batch[1])

    module, callback = (
        FromAStepOn(0),
        CoresetPruningCallback(schedule={4: 0.2, 30: 0.4}, interval="step", verbose=False),
    )
    with pytest.warns(UserWarning, match=WAIT):
        make_trainer(callback, max_epochs=1).fit(module, make_loader(8, samples=640))
    assert [record.step for record in callback.history] == [9, 30]


class JoinedByAnother(Classifier):
    """A second network of about the same size joins the first."""

    def __init__(self, since: int) -> None:
        super().__init__(mlp(8, 32, 24, 3))
        self.other, self.since = mlp(8, 64, 48, 3), since

    def training_step(self, batch, batch_idx):
        y = self.net(batch[0]) + (self.other(batch[0]) if self.current_epoch >= self.since else 0.0)
        return F.cross_entropy(y, batch[1])


@pytest.mark.parametrize("unit", some_of(["channels", "macs", "params"], "params"))
def test_the_original_has_the_layers_that_join_later(unit):
    """So that as much is gone in the end as if all had run from the start."""
    found = {}
    for since in (0, 2):
        module = JoinedByAnother(since)
        callback = CoresetPruningCallback(schedule={1: 0.2, 4: 0.4}, unit=unit, verbose=False)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Pruning events wait until")  # of params, for the other network
            make_trainer(callback, max_epochs=6).fit(module, make_loader(8))
        plan = callback.plans[-1]
        found[since] = widths(module), plan.params_after, plan.macs_after, plan.reached
    assert found[2] == found[0]
    assert found[0][-1] == pytest.approx(0.4, abs=0.02)


def test_a_dry_run_in_which_nothing_runs_later_refuses_the_ratio():
    callback, batch = CoresetPruningCallback(**THREE_EVENTS), next(iter(make_loader(8)))
    with pytest.warns(UserWarning, match=WAIT), pytest.raises(ValueError, match=r"pruning_ratio to be at most 0\.00"):
        callback.dry_run(make_trainer(max_epochs=6), MostSetsInLater(2), batch)


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
@pytest.mark.parametrize("steps", [1, 3])
def test_first_steps_that_compute_a_loss_and_return_none(steps):
    """Nothing has an influence on what they return: the first one that returns it is the example."""

    class Skips(Classifier):
        seen = 0

        def training_step(self, batch, batch_idx):
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.seen += 1
            return None if self.seen <= steps else loss

        def forward(self, x):
            raise NotImplementedError

    module = Skips()
    callback = CoresetPruningCallback(0.5, schedule={1: 0.3, 2: 0.5}, verbose=False)
    make_trainer(callback, max_epochs=4).fit(module, make_loader(8))
    assert [record.epoch for record in callback.history] == [1, 2]
    assert module.net[0].out_features < 32
