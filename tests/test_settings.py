"""The arguments of the callback are attributes that can be read."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassF1Score

from lightning_coreset import CoresetPruningCallback
from lightning_coreset._calls import OLD_ARGUMENTS
from lightning_coreset._settings import given_arguments, readable_settings, short_call

ARGUMENTS = {
    name: parameter.default
    for name, parameter in inspect.signature(CoresetPruningCallback).parameters.items()
    if name not in OLD_ARGUMENTS
}


def test_every_argument_is_an_attribute_of_its_name():
    callback = CoresetPruningCallback()

    assert {name: getattr(callback, name) for name in ARGUMENTS} == ARGUMENTS


def test_arguments_are_what_was_given():
    metric, x = MulticlassF1Score(3), torch.randn(2, 8)
    callback = CoresetPruningCallback(0.7, unit="macs", metric=metric, example_inputs=x, ignore=["stem"])

    assert (callback.pruning_ratio, callback.unit, callback.ignore) == (0.7, "macs", ["stem"])
    assert callback.metric is metric
    assert callback.example_inputs is x
    assert callback.request.pruning_ratio == 0.7


def test_an_argument_cannot_be_changed_afterwards():
    callback = CoresetPruningCallback(0.5)

    with pytest.raises(AttributeError, match=r"unit of a CoresetPruningCallback cannot be changed: make a new one"):
        callback.unit = "macs"
    assert callback.unit == "params"


@pytest.mark.parametrize("again", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
def test_copies_have_them(again):
    assert again(CoresetPruningCallback(0.3)).pruning_ratio == 0.3


def test_subclasses_have_them_and_may_use_their_names():
    class Mine(CoresetPruningCallback):
        metric = "own"

        def __init__(self, ratio: float) -> None:
            super().__init__(ratio, unit="macs")
            self.ratio = ratio

    mine = Mine(0.25)

    assert (mine.pruning_ratio, mine.unit, mine.metric, mine.ratio) == (0.25, "macs", "own", 0.25)
    assert repr(mine) == "Mine(0.25, unit='macs')"


def test_a_callback_of_an_old_pickle_says_that_it_does_not_know():
    callback = CoresetPruningCallback(0.5)
    del vars(callback)["_given"]

    assert not hasattr(callback, "unit")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "CoresetPruningCallback()"),
        ({"pruning_ratio": 0.5}, "CoresetPruningCallback(0.5)"),
        ({"unit": "macs", "seed": 3}, "CoresetPruningCallback(unit='macs', seed=3)"),
        ({"example_inputs": torch.ones(2, 8)}, "CoresetPruningCallback(example_inputs=<Tensor (2, 8)>)"),
        ({"pruning_ratio": np.float32(0.1), "seed": np.int64(3)}, "CoresetPruningCallback(0.1, seed=3)"),
        ({"pruning_ratio": {nn.Linear: 0.5}}, "CoresetPruningCallback({Linear: 0.5})"),
        ({"schedule": {1: 0.2, 5: 0.4}}, "CoresetPruningCallback(schedule={1: 0.2, 5: 0.4})"),
    ],
)
def test_repr_is_the_call_that_makes_the_same(options, text):
    assert repr(CoresetPruningCallback(**options)) == text


def test_any_signature_will_do():
    @readable_settings
    class Thing:
        kept = "kept"

        def __init__(self, first, /, second=2, *rest, kept=0, third=3, **others):
            self._given = given_arguments(Thing.__init__, locals())

    thing = Thing(1, 5, 6, third=[1] * 99, fourth=4)

    assert (thing.first, thing.second, thing.third[0], thing.kept) == (1, 5, 1, "kept")
    assert not hasattr(thing, "fourth")
    assert short_call("Thing", Thing.__init__, thing._given) == "Thing(1, second=5, third=[1, 1, 1, 1, ...])"
