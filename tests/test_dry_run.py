"""The dry run: the whole schedule's plan, and nothing touched."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from breadth import crossed
from fitting import Classifier, count_params, make_loader, make_trainer, widths
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_coreset import CoresetPruningCallback


class WithLoader(Classifier):
    def train_dataloader(self):
        return make_loader(8)


class WithExample(Classifier):
    def __init__(self):
        super().__init__()
        self.example_input_array = torch.randn(2, 8)


def untouched(module, before):
    return all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(("order", "unit"), crossed(["together", "bottom_up"], ["params", "macs", "channels"]))
@pytest.mark.slow
def test_it_shows_the_sizes_that_training_will_have(order, unit):
    module = WithExample()
    before = copy.deepcopy(module.state_dict())
    callback = CoresetPruningCallback(0.6, unit=unit, order=order, method="magnitude", verbose=False)
    trainer = make_trainer(callback, max_epochs=6)

    dry = callback.dry_run(trainer, module)

    assert untouched(module, before)
    assert callback.plans == []
    trainer.fit(module, make_loader(8))
    assert list(dry.plans) == list(callback._run.progress.done)
    for plan, done in zip(dry.plans.values(), callback.plans, strict=True):
        assert [group.channels_after for group in plan.groups] == [group.channels_after for group in done.groups]
        assert (plan.reached, plan.params_after, plan.macs_after) == (done.reached, done.params_after, done.macs_after)
    assert count_params(module) == callback.plans[-1].params_after


def test_the_example_goes_where_the_weights_are():
    """A network that was moved before a LightningModule was made of it: the module knows nothing of that."""
    module = WithExample()
    weights = copy.deepcopy(dict(module.named_children()))
    module.to("meta")
    for name, child in weights.items():
        setattr(module, name, child)
    assert module.device.type == "meta"

    dry = CoresetPruningCallback(0.5, schedule={1: 0.5}).dry_run(make_trainer(max_epochs=5), module)

    assert len(dry) == 1


def test_it_is_iterated_over_as_its_plans():
    dry = CoresetPruningCallback(0.5, schedule={1: 0.2, 3: 0.5}).dry_run(make_trainer(max_epochs=5), WithExample())

    assert len(dry) == 2
    assert list(dry) == [dry.plans[1], dry.plans[3]]


def test_it_prints_a_row_for_every_event_and_every_group():
    callback = CoresetPruningCallback(0.5, schedule={1: 0.2, 3: 0.5})

    text = str(callback.dry_run(make_trainer(max_epochs=5), WithExample()))

    head, _, first, second, *groups = text.splitlines()
    assert head.split()[:3] == ["epoch", "requested", "reached"]
    assert [line.split()[:2] for line in (first, second)] == [["1", "20.00%"], ["3", "50.00%"]]
    assert text.count("net.0") == 1
    assert groups[-1] == "not pruned: net.4 makes outputs of the network"


@pytest.mark.parametrize(
    ("module", "batch"),
    [
        pytest.param(WithLoader, None, id="its own loader"),
        pytest.param(Classifier, (torch.randn(4, 8), torch.tensor([0, 1, 2, 0])), id="a batch"),
    ],
)
def test_it_runs_the_training_step_where_there_is_no_example(module, batch):
    module = module()
    before = copy.deepcopy(module.state_dict())

    dry = CoresetPruningCallback(0.5).dry_run(make_trainer(max_epochs=5), module, batch)

    assert next(reversed(dry.plans.values())).reached == pytest.approx(0.5, abs=0.03)
    assert untouched(module, before)
    assert module.losses == []


def test_it_asks_for_an_example():
    with pytest.raises(MisconfigurationException, match=r"batch=.*example_inputs.*example_input_array"):
        CoresetPruningCallback(0.5).dry_run(make_trainer(max_epochs=5), Classifier())


@pytest.mark.parametrize(
    ("options", "trainer", "error", "message"),
    [
        ({"ignore": ["nothing*"]}, {"max_epochs": 5}, ValueError, "nothing"),
        ({"pruning_ratio": 0.9, "max_layer_ratio": 0.5}, {"max_epochs": 5}, ValueError, "at most"),
        ({"start": 9, "end": 9}, {"max_epochs": 5}, ValueError, "one of the 5 epochs"),
        ({"interval": "step"}, {"max_epochs": 5}, MisconfigurationException, "max_steps"),
    ],
)
def test_it_raises_what_training_would(options, trainer, error, message):
    module = WithExample()
    before = widths(module)

    with pytest.raises(error, match=message):
        CoresetPruningCallback(**options).dry_run(make_trainer(**trainer), module)

    assert widths(module) == before


@pytest.mark.slow
def test_steps():
    callback = CoresetPruningCallback(0.5, interval="step", schedule="linear", start=2, end=10, every=4, verbose=False)
    trainer, module = make_trainer(callback, max_steps=12), WithExample()

    dry = callback.dry_run(trainer, module)

    assert list(dry.plans) == [2, 6, 10]
    assert [line.split()[0] for line in str(dry).splitlines()[:3]] == ["step", "-" * len(str(dry).splitlines()[1]), "2"]
    trainer.fit(module, make_loader(8))
    assert list(callback._run.progress.done) == [2, 6, 10]


def test_a_module_that_knows_its_trainer_keeps_it():
    module, other = WithExample(), pl.LightningModule()
    module.trainer = trainer = make_trainer(max_epochs=2)

    CoresetPruningCallback(0.5).dry_run(make_trainer(max_epochs=5), module)

    assert module.trainer is trainer
    assert other._trainer is None
