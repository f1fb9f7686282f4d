"""Whether all that a module holds is as it was when its state was noted."""

from __future__ import annotations

import random
from collections import deque
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_coreset.state import ModuleState


class Slotted:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = object()


class Holder(nn.Module):
    """Holds one thing of each kind."""

    shared: ClassVar[dict[str, Any]] = {}
    of_class: ClassVar[Any] = object()

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)
        self.numbers, self.names, self.queue = [1, 2], {"a"}, deque([1.0])
        self.table: dict[str, Any] = {"x": [1], "y": None}
        self.kept, self.array = torch.zeros(2), np.zeros(2)
        self.slotted, self.plain = Slotted(), type("Plain", (), {})()
        cell = [0]
        self.enclosing = lambda: cell

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))


def set_class_data() -> None:
    Holder.of_class = object()


def run_backward(model: Holder) -> None:
    model(torch.randn(4, 3)).sum().backward()


CHANGES = {
    "attribute": lambda m: setattr(m, "new", 1),
    "removed attribute": lambda m: delattr(m, "table"),
    "another object": lambda m: setattr(m, "numbers", [1, 2]),
    "item": lambda m: m.numbers.append(3),
    "order": lambda m: m.numbers.reverse(),
    "key": lambda m: m.table.update(z=1),
    "removed key": lambda m: m.table.pop("y"),
    "order of keys": lambda m: m.table.update(x=m.table.pop("x")),
    "value": lambda m: m.table.update(y=0),
    "inner list": lambda m: m.table["x"].append(1),
    "element": lambda m: m.names.add("b"),
    "removed element": lambda m: m.names.discard("a"),
    "queue": lambda m: m.queue.append(2.0),
    "tensor": lambda m: m.kept.add_(1),
    "tensor of another form": lambda m: setattr(m.kept, "data", torch.zeros(3)),
    "not a number": lambda m: m.kept.fill_(torch.nan),
    "array": lambda m: m.array.__setitem__(0, 1.0),
    "slot": lambda m: setattr(m.slotted, "value", object()),
    "attribute of an object": lambda m: setattr(m.plain, "value", 1),
    "statistics": lambda m: m(torch.randn(4, 3)),
    "gradient": run_backward,
    "needs no gradient": lambda m: m.layer.weight.requires_grad_(False),
    "another memory": lambda m: setattr(m.layer.weight, "data", m.layer.weight.detach().clone()),
    "another form": lambda m: setattr(m.layer.weight, "data", m.layer.weight.detach()[:1]),
    "another parameter": lambda m: setattr(m.layer, "weight", nn.Parameter(torch.zeros(2, 3))),
    "mode": lambda m: m.eval(),
    "hook": lambda m: m.layer.register_forward_hook(lambda *_: None),
    "class": lambda m: set_class_data(),
    "what a function encloses": lambda m: m.enclosing().append(1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(change):
    model = Holder()
    state = ModuleState(model)
    assert state.is_as_it_was()
    CHANGES[change](model)
    assert not state.is_as_it_was()
    if change != "not a number":
        state.restore()
        assert state.is_as_it_was()


def test_what_was_written_into_a_parameter_is_seen_while_it_is_watched():
    """Else the copy from before would be written again after every later run."""
    model = Holder()
    state = ModuleState(model)
    with state.watching(), torch.no_grad():
        model.layer.weight.add_(1)
    state.restore()
    assert not state.is_as_it_was()


@pytest.mark.parametrize("held", [lambda: iter([1, 2]), lambda: random.Random(0), torch.Generator])
def test_what_cannot_be_compared_counts_as_changed(held):
    model = Holder()
    model.held = held()
    assert not ModuleState(model).is_as_it_was()


def test_a_dict_whose_keys_are_tensors_is_put_back():
    """Tensors as keys are found by what they are, and cannot be compared."""
    module, key = nn.Identity(), torch.zeros(3)
    module.memo = {key: 1}
    state = ModuleState(module)
    module.memo.clear()
    module.memo[torch.ones(3)] = 1
    assert not state.is_as_it_was()
    state.restore()
    assert list(module.memo) == [key]
    assert state.is_as_it_was()


def of_a_slot() -> tuple[Any, Any]:
    holder = Slotted()
    del holder.value
    return holder, lambda: setattr(holder, "value", 1)


def of_a_function() -> tuple[Any, Any]:
    def function() -> None:
        function.value = 1

    return function, function


def of_a_cell() -> tuple[Any, Any]:
    def function() -> None:
        nonlocal value
        value = 1

    if not function:
        value = 0
    return function, function


@pytest.mark.parametrize("place", [of_a_slot, of_a_function, of_a_cell])
def test_what_comes_where_there_was_nothing_goes_again(place):
    module = nn.Identity()
    module.held, write = place()
    state = ModuleState(module)
    assert state.is_as_it_was()
    write()
    assert not state.is_as_it_was()
    state.restore()
    assert state.is_as_it_was()
    assert ModuleState(module).is_as_it_was()
    assert not hasattr(module.held, "value")
    if place is of_a_cell:
        with pytest.raises(ValueError, match="empty"):
            module.held.__closure__[0].cell_contents  # noqa: B018
