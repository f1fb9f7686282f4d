"""Arguments in objects and flat are the same; both at once are refused; old names are taken with a warning."""

import copy
import inspect
import pickle
import warnings
from dataclasses import FrozenInstanceError, fields, replace
from functools import partial

import pytest
import torch
import torchmetrics
from fitting import Validated, make_loader, make_trainer, mlp

import lightning_coreset
from lightning_coreset import (
    AccuracyGuard,
    AccuracyMonitor,
    CoresetPruningCallback,
    PruningSchedule,
    plan_pruning,
    prune,
    sensitivity_scan,
)
from lightning_coreset.planning import Request
from lightning_coreset.schedule import pruning_events
from lightning_coreset.training import Options

METRIC = torchmetrics.classification.MulticlassF1Score(3)
# For every object the argument that it is given as, and other values than the defaults.
OBJECTS = {
    "schedule": (
        PruningSchedule,
        {"start": 1, "end": 4, "every": 2, "interval": "step", "order": "bottom_up"},
    ),
    "guard": (AccuracyGuard, {"max_drop": 0.1, "recover_epochs": 1, "on_failure": "halve"}),
    "accuracy": (AccuracyMonitor, {"monitor": "val_acc", "monitor_mode": "max", "eval_batches": 2}),
}
DEFAULTS = {name: one.default for name, one in inspect.signature(CoresetPruningCallback).parameters.items()}


def settled(**options):
    """What a callback was asked for, flat."""
    return dict(CoresetPruningCallback(**options)._options.arguments)


@pytest.mark.parametrize("argument", OBJECTS)
def test_an_object_is_what_the_flat_arguments_say(argument):
    kind, values = OBJECTS[argument]
    assert settled(**{argument: kind(**values)}) == settled(**values) == settled() | values


def test_the_schedule_of_an_object_is_its_curve():
    assert settled(schedule=PruningSchedule("linear")) == settled(schedule="linear")
    assert settled(schedule=PruningSchedule({1: 0.3})) == settled(schedule={1: 0.3})
    assert settled(schedule={1: 0.3})["pruning_ratio"] == 0.3


def test_a_metric_of_an_object_is_measured():
    assert settled(accuracy=AccuracyMonitor(metric=METRIC))["metric"] is METRIC


def test_objects_have_the_defaults_of_the_flat_arguments():
    events = inspect.signature(pruning_events).parameters
    for kind, values in OBJECTS.values():
        for field in fields(kind):
            if field.name in values and field.name != "max_drop":
                assert field.default == DEFAULTS[field.name], field.name
                assert field.name not in events or field.default == events[field.name].default
    assert PruningSchedule().curve == DEFAULTS["schedule"]


@pytest.mark.parametrize(
    ("argument", "name"), [(argument, name) for argument, (_, values) in OBJECTS.items() for name in values]
)
def test_an_object_and_a_flat_argument(argument, name):
    kind, values = OBJECTS[argument]
    others = {one: value for one, value in values.items() if one != name or kind is AccuracyGuard}
    match = (
        rf"Expected either {argument}={kind.__name__}\(\.\.\.\) or {name} but got both, with {name}={values[name]!r}"
    )
    with pytest.raises(ValueError, match=match):
        CoresetPruningCallback(**{argument: kind(**others), name: values[name]})
    CoresetPruningCallback(**{argument: kind(**others), name: DEFAULTS[name]})  # as configurations have it


@pytest.mark.parametrize("argument", ["guard", "accuracy"])
@pytest.mark.parametrize("value", [{"max_drop": 0.1}, True, 0.1, "val_acc", METRIC, AccuracyGuard, PruningSchedule()])
def test_other_objects(argument, value):
    with pytest.raises(ValueError, match=f"Expected {argument} to be an Accuracy"):
        CoresetPruningCallback(**{argument: value})


def test_objects_are_neither_changed_nor_followed():
    curve = {1: 0.2, 2: 0.4}
    schedule, guard = PruningSchedule(curve), AccuracyGuard(0.9, recover_epochs=1)
    accuracy = AccuracyMonitor(metric=METRIC, eval_batches=1)
    before = [dict(vars(one)) for one in (schedule, guard, accuracy)]
    state = copy.deepcopy(METRIC.state_dict())
    curve[2] = 0.9

    for _ in range(2):
        callback = CoresetPruningCallback(schedule=schedule, guard=guard, accuracy=accuracy, verbose=False)
        make_trainer(callback, max_epochs=3).fit(Validated(), make_loader(8), make_loader(8))
        assert [round(plan.requested, 2) for plan in callback.plans] == [0.2, 0.4]

    assert [dict(vars(one)) for one in (schedule, guard, accuracy)] == before
    assert METRIC.update_count == 0
    assert METRIC.state_dict().keys() == state.keys()
    with pytest.raises(FrozenInstanceError):
        guard.max_drop = 0.5


def test_objects_can_be_changed_copied_and_pickled():
    for argument, (kind, values) in OBJECTS.items():
        one = kind(**values)
        for again in (replace(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
            assert settled(**{argument: again}) == settled(**{argument: one})
            assert repr(again) == repr(one)
    assert replace(PruningSchedule(), every=3).every == 3
    with pytest.raises(ValueError, match="`every` to be a positive integer"):
        replace(PruningSchedule(), every=0)


def test_a_warning_about_times_is_given_for_an_object_as_well():
    with pytest.warns(UserWarning, match="^start=3 has no effect: the schedule maps epochs") as warned:
        CoresetPruningCallback(schedule=PruningSchedule({1: 0.5}, start=3))
    assert [one.filename for one in warned] == [__file__]
    with pytest.warns(UserWarning, match="`end=1` is an int") as warned:
        CoresetPruningCallback(schedule="linear", end=1)
    assert [one.filename for one in warned] == [__file__]


# ---- names


X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))


def net():
    torch.manual_seed(0)
    return mlp(8, 16, 3)


class Hands(CoresetPruningCallback):
    def __init__(self, **options):
        super().__init__(**options)


CALLS = {
    "prune": lambda **options: prune(net(), X, **options),
    "plan_pruning": lambda **options: plan_pruning(net(), X, **options),
    "the callback": CoresetPruningCallback,
    "a subclass": Hands,
    "partial": lambda **options: partial(CoresetPruningCallback, **options)(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("old", "new", "value"), [("max_ratio", "max_layer_ratio", 0.5), ("check", "self_check", False)]
)
def test_an_old_name_is_taken_where_it_is_written(call, old, new, value):
    with pytest.warns(DeprecationWarning, match=f"^The argument {old} was renamed: use {new}={value}.$") as warned:
        by_old = call(**{old: value})
    assert [one.filename for one in warned] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_new = call(**{new: value, old: None})
    if isinstance(by_new, CoresetPruningCallback):
        assert by_old._options.arguments[new] == by_new._options.arguments[new] == value
        assert by_old.state_key.partition("{")[2] == by_new.state_key.partition("{")[2]
    else:
        assert str(by_old) == str(by_new) != ""


def test_old_names_have_an_effect():
    with pytest.warns(DeprecationWarning, match="was renamed"):
        assert plan_pruning(net(), X, {"0": 0.5}, max_ratio=0.5).groups[0].channels_after == 8
    with pytest.raises(ValueError, match="max_layer_ratio"), pytest.warns(DeprecationWarning, match="was renamed"):
        prune(net(), X, {"0": 0.7}, max_ratio=0.5)
    with (
        pytest.raises(ValueError, match="Expected max_layer_ratio to be"),
        pytest.warns(DeprecationWarning, match="was renamed"),
    ):
        prune(net(), X, max_ratio=2)
    with (
        pytest.raises(ValueError, match="Expected self_check=True with heads"),
        pytest.warns(DeprecationWarning, match="was renamed"),
    ):
        sensitivity_scan(net(), X, lambda network: 0.0, check=False, heads="within")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_an_old_name_beside_the_new_one(call):
    with pytest.raises(
        ValueError, match=r"max_layer_ratio or its old name max_ratio but got both: .*=0\.5 and .*=0\.7"
    ):
        call(max_layer_ratio=0.5, max_ratio=0.7)
    with pytest.warns(DeprecationWarning, match="was renamed"):
        call(max_layer_ratio=0.5, max_ratio=0.5)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("ingore", "Did you mean 'ignore'"),
        ("round", "Did you mean 'round_to'"),
        ("chek", "Did you mean 'self_check'"),
        ("zzz", "Its arguments are .*ignore"),
    ],
)
def test_names_that_are_none(call, wrong, hint):
    with pytest.raises(TypeError, match=rf"\(\) got an unexpected keyword argument '{wrong}'\. {hint}") as told:
        call(**{wrong: 1})
    assert "self," not in str(told.value)


def test_prune_shows_the_arguments_of_plan_pruning():
    assert inspect.signature(prune) == inspect.signature(plan_pruning)
    parameters = inspect.signature(prune).parameters
    assert parameters["unit"].default == "params"
    assert all(f"        {name}: " in prune.__doc__ for name in parameters)
    assert "pruning_ratio: 'PruningRatio | None' = None" in str(inspect.signature(prune))
    assert not any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    with pytest.raises(TypeError, match=r"^prune\(\) got other arguments than it takes: .*'example_inputs'\.$"):
        prune(net())
    with pytest.raises(TypeError, match=r"^prune\(\) got other arguments than it takes: too many positional"):
        prune(net(), X, 0.5, "params")
    given = {"pruning_ratio": 0.5, "example_inputs": X}
    assert prune(**given, model=net()).reached == prune(net(), X, 0.5).reached


@pytest.mark.parametrize("name", ["prune", "plan_pruning"])
def test_warnings_of_functions_point_at_the_call(name):
    with pytest.warns(UserWarning, match="No channel is removed") as warned:
        getattr(lightning_coreset, name)(net(), X, 0.001)
    assert {one.filename for one in warned} == {__file__}


def test_every_option_of_a_plan_is_one_of_the_callback():
    """In the same order, with the same default: what is added to one is added to the other."""
    own = ("model", "example_inputs", "data")  # a Trainer has data
    of_plans = [name for name in inspect.signature(plan_pruning).parameters if name not in own]
    assert [name for name in DEFAULTS if name in of_plans] == of_plans
    assert all(inspect.signature(plan_pruning).parameters[name].default == DEFAULTS[name] for name in of_plans)
    assert set(of_plans) >= {field.name for field in fields(Request)} - {"by_default", "network_latency"}


def test_requests_of_version_0_1_load():
    request = Request(0.5, max_layer_ratio=0.7)
    old = {("max_ratio" if name == "max_layer_ratio" else name): value for name, value in vars(request).items()}
    again = Request.__new__(Request)
    again.__setstate__(old)
    assert again == request
    assert "max_ratio" not in vars(again)
    assert pickle.loads(pickle.dumps(request)) == request


def test_every_argument_is_in_what_is_settled():
    assert settled().keys() == DEFAULTS.keys() - {"guard", "accuracy", "max_ratio", "check"}
    assert isinstance(CoresetPruningCallback()._options, Options)
