"""What checkpoints say about pruning, wrong in every place: it loads as it should, or a ValueError changes nothing."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from fitting import Classifier, assert_same, assert_same_data, make_loader, make_trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn

from lightning_coreset import CoresetPruningCallback, make_resizable, prune
from lightning_coreset.checkpoint import KEY
from lightning_coreset.surgery import ModelShapes


class Masked(nn.Module):
    """Has a constant that is in no state dict, a BatchNorm, and heads, whose number no shape tells."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(8, 12), nn.BatchNorm1d(12)
        self.register_buffer("mask", torch.ones(12), persistent=False)
        self.attention = nn.MultiheadAttention(8, 4)
        self.second, self.last = nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.norm(self.first(x))) * self.mask)
        return self.last(x + self.attention(x, x, x, need_weights=False)[0])


def pruned() -> nn.Module:
    model = make_resizable(Masked())
    prune(model, torch.randn(4, 8), 0.4, method="random")
    return model


def everything(model: nn.Module) -> dict[str, Any]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "tensors": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "objects": {name: id(tensor) for name, tensor in tensors.items()},
        "sizes": dict(ModelShapes.of(model).sizes),
        "metadata": {name: list(shape) for name, shape in ModelShapes.of(model).shapes.items()},
        "text": str(model),
    }


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    after = everything(model)
    for key in ("objects", "sizes", "metadata", "text"):
        assert after[key] == before[key], key
    assert_same(before["tensors"], after["tensors"])


# ---- mutations

WRONG = (None, "12", -1, 2**70, math.nan, True, [-3], {}, 0, "", 2**40, 1.5, math.inf, [], [7, 7, 7, 7], b"x", (1, 2))


def places(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths to all values of a nest of dicts and lists."""
    if isinstance(tree, (dict, list)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield (*path, key)
            yield from places(value, (*path, key))


def parent_of(tree: Any, path: tuple) -> Any:
    for key in path[:-1]:
        tree = tree[key]
    return tree


def wrong_values(value: Any, of_any_type: Sequence[Any]) -> Iterator[Any]:
    yield from of_any_type
    if isinstance(value, Tensor):
        yield from (value.reshape(-1)[:-1], value[None], value.bool(), value.new_full(value.shape, math.nan).float())
        yield from (value.to("meta"), value.to(torch.complex64), value.tolist())
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value - 1, -value, float(value), str(value), value << 20, value ^ 1)
    elif isinstance(value, list):
        yield from (value[:-1], [*value, 1], value[::-1], [*value, None], dict(enumerate(value)))
    elif isinstance(value, dict):
        yield from ({**value, "another.weight": [3, 4]}, list(value))
    elif isinstance(value, str):
        yield from (value[:-1], value + "A", value.swapcase(), value[1:])


def mutations(tree: Any, of_any_type: Sequence[Any] = WRONG) -> Iterator[tuple[str, Any]]:
    """Copies of a nest in which one value is another, one is missing, or one has another name."""
    for path in list(places(tree)):
        where = ".".join(map(str, path))
        for number, wrong in enumerate(wrong_values(parent_of(tree, path)[path[-1]], of_any_type)):
            changed = copy.deepcopy(tree)
            parent_of(changed, path)[path[-1]] = wrong
            yield f"{where} #{number}", changed
        missing = copy.deepcopy(tree)
        del parent_of(missing, path)[path[-1]]
        yield f"{where} missing", missing
        if isinstance(parent_of(tree, path), dict):
            renamed = copy.deepcopy(tree)
            parent = parent_of(renamed, path)
            parent["foreign.weight"] = parent.pop(path[-1])
            yield f"{where} renamed", renamed


# ---- the record in a state dict

HEADS = "attention.num_heads"
"""No shape tells it, so that another possible number cannot be told from the right one."""


@pytest.mark.slow
def test_a_record_that_is_wrong_anywhere_is_an_error_or_does_not_matter():
    source = pruned()
    state, right = source.state_dict(), everything(source)
    record = state._metadata[""][KEY]
    assert set(record["pruned"]["constants"]) == {"mask"}
    assert {"attention.num_heads", "first.out_features"} <= set(record["pruned"]["sizes"])
    model = make_resizable(Masked())
    untouched, failed, messages = everything(model), 0, set()

    for where, wrong in mutations(record):
        state._metadata[""][KEY] = wrong
        try:
            model.load_state_dict(state)
        except ValueError as error:
            failed += 1
            messages.add(str(error))
            assert_unchanged(model, untouched)
        else:
            loaded = everything(model)
            heads = loaded["sizes"].pop(HEADS)
            assert heads == right["sizes"][HEADS] or ("num_heads" in where and 0 < heads < 4), where
            assert loaded["sizes"].items() <= right["sizes"].items(), where
            assert_same(loaded["tensors"], right["tensors"])
            model = make_resizable(Masked())
            untouched = everything(model)

    assert failed > 1000
    assert all(map(is_readable, messages))


def is_readable(message: str) -> bool:
    """Whether an error says what was expected, and a way out."""
    return message.startswith("Expected") and ("load another" in message.lower() or "Build it with" in message)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("pruned", "shapes", "mask"), [2**40], "'mask' is recorded with shape .* no part of the original"),
        (("pruned", "shapes", "mask"), [14], "'mask' is recorded with shape .* no part of the original"),
        (("pruned", "sizes", "attention.num_heads"), 8, "'attention.num_heads' is recorded as 8, which is no part of"),
        (("pruned", "sizes", "attention.num_heads"), -2, "'attention.num_heads' is recorded as -2"),
        (("pruned", "constants"), {}, "'mask' is in no state dict, and the record has no content of it"),
        (("pruned", "constants", "mask"), torch.ones(3), r"'mask' has content of shape \(3,\) where"),
        (("original", "shapes", "foreign"), [3], "'foreign' is recorded, but the model has no such tensor"),
        (("original", "constants", "first.bias"), torch.ones(3), "recorded as a constant, which the model has not"),
        (("pruned", "shapes"), None, "Expected shapes to be of type .* but got None"),
        (
            ("pruned", "sizes", "first.out_features"),
            "7",
            r"Expected sizes\['first\.out_features'\] to be .* but got '7'",
        ),
    ],
)
def test_the_error_says_what_is_wrong(path, value, message):
    state, model = pruned().state_dict(), make_resizable(Masked())
    before = everything(model)
    parent_of(state._metadata[""][KEY], path)[path[-1]] = value

    with pytest.raises(ValueError, match=message):
        model.load_state_dict(state)

    assert_unchanged(model, before)


def test_content_that_is_not_a_number():
    state, model = pruned().state_dict(), make_resizable(Masked())
    state._metadata[""][KEY]["pruned"]["constants"]["mask"].fill_(math.nan)

    with pytest.raises(ValueError, match="'mask' has content that the model's own cannot have"):
        model.load_state_dict(state)


# ---- the state of the callback


@pytest.fixture(scope="module")
def saved():
    """The state of a callback in the window of its second event, with an EarlyStopping; as a file has it."""

    class Scored(Classifier):
        def validation_step(self, batch, batch_idx):
            pass

        def on_validation_epoch_end(self):
            self.log("score", 0.9 if self.current_epoch < 2 else 0.1)

    callback = CoresetPruningCallback(
        schedule={1: 0.2, 2: 0.4}, max_drop=0.1, monitor="score", recover_epochs=9, verbose=False, eval_batches=0
    )
    stopping, states = EarlyStopping("score", mode="max", patience=50), []

    class Saves(EarlyStopping):
        def on_train_end(self, trainer, pl_module):
            states.append(callback.state_dict())

    trainer = make_trainer(Saves("loss"), callback, stopping, max_epochs=3, limit_train_batches=1)
    with pytest.warns(UserWarning, match="is taken back"):
        trainer.fit(Scored(), make_loader(8), make_loader(8, samples=16))
    file = io.BytesIO()
    torch.save(states[0], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.filterwarnings("ignore:The guard of the checkpoint had not accepted")  # which watched another number
@pytest.mark.slow
def test_a_state_that_is_wrong_anywhere_is_an_error_or_a_possible_one(saved):
    """What it cannot tell from a right one, such as another ratio, is taken as it is."""
    assert saved["guard"]["window"] is not None
    assert len(saved["plans"]) == 2
    failed, messages = 0, set()

    for where, wrong in mutations(saved, WRONG[:8]):
        callback = CoresetPruningCallback(schedule={1: 0.2, 2: 0.4}, max_drop=0.1, monitor="score", verbose=False)
        before = callback.state_dict()
        try:
            callback.load_state_dict(wrong)
        except ValueError as error:
            failed += 1
            messages.add(str(error)[:46])
            assert callback.state_dict() == before, where
        else:
            str(callback.history)
            [str(plan) for plan in callback.plans]
            callback.load_state_dict(callback.state_dict())

    assert failed > 500
    assert messages == {"Expected the state of a CoresetPruningCallback"}


def test_a_state_that_is_right_is_read(saved):
    callback = CoresetPruningCallback(schedule={1: 0.2, 2: 0.4}, max_drop=0.1, monitor="score", verbose=False)

    callback.load_state_dict(copy.deepcopy(saved))

    again = callback.state_dict()
    assert {key: again[key] for key in again if key != "guard"} == {key: saved[key] for key in saved if key != "guard"}
    assert_same_data(again["guard"], saved["guard"])


@pytest.mark.slow
def test_a_savepoint_that_is_wrong_anywhere_is_an_error(saved):
    """Also in what an optimizer keeps, of which nobody else knows what it should be."""
    savepoint = saved["guard"]["window"]["savepoint"]
    assert any(state for [state] in savepoint["optimizers"])
    refused, messages = 0, set()

    for where, wrong in mutations(savepoint, WRONG[:8]):
        if where.startswith(("digest missing", "digest renamed")):
            continue  # as before there were any
        changed = {**saved, "guard": {**saved["guard"], "window": {**saved["guard"]["window"], "savepoint": wrong}}}
        callback = CoresetPruningCallback(schedule={1: 0.2, 2: 0.4}, max_drop=0.1, monitor="score", verbose=False)
        try:
            callback.load_state_dict(changed)
        except ValueError as error:
            refused += 1
            messages.add(str(error)[:46])
        else:
            assert only_elements_differ(savepoint, wrong), where

    assert refused > 400
    assert messages == {"Expected the state of a CoresetPruningCallback"}


def only_elements_differ(first: Any, second: Any) -> bool:
    """Whether two nests hold the same, but for elements of tensors: what is not checked."""
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and first.shape == second.shape and first.device == second.device
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(only_elements_differ(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(only_elements_differ, first, second))
    return first == second
