"""Arithmetic that is put off: the engine sees what it sees otherwise, and whoever reads values gets the right ones."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from breadth import thinned
from torch import Tensor, nn
from zoo import FAST, THIRD_PARTY, ZOO

from lightning_coreset.state import ModuleState
from lightning_coreset.structure import Example, analyse, lazy_execution, output_meta
from lightning_coreset.structure.trace import trace

trace_module = sys.modules[trace.__module__]

ENTRIES = [
    *thinned({name: entry for name, entry in ZOO.items() if name in FAST}, 3),
    *(pytest.param(entry, id=name, marks=pytest.mark.slow) for name, entry in ZOO.items() if name not in FAST),
]


@pytest.fixture(autouse=True)
def from_the_first_product_on(monkeypatch):
    monkeypatch.setattr(output_meta, "WORTHWHILE", 0)


@pytest.fixture(autouse=True)
def nothing_is_put_back(monkeypatch):
    """What a run leaves behind is looked at here; otherwise nobody sees it."""
    monkeypatch.setattr(trace_module, "restored", lambda model, watch: nullcontext(ModuleState(model)))


# ---- what the engine sees


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.filterwarnings(*THIRD_PARTY)
def test_a_network_has_the_structure_that_it_has_with_arithmetic(entry, monkeypatch):
    if entry.name.startswith("hf/"):
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    model, inputs = entry.build(), entry.inputs(torch.Generator().manual_seed(0))
    monkeypatch.setattr(lazy_execution, "empty_result", form_that_is_checked)
    found = analyse(model, inputs)
    monkeypatch.setattr(output_meta, "WORTHWHILE", 1 << 62)
    assert analyse(model, inputs) == found


def form_that_is_checked(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``empty_result``, if it is that of the real result."""
    told = output_meta.empty_result(function, args, kwargs)
    if not function._schema.is_mutable:
        real = function(*args, **kwargs)
        assert list(map(form, flat(told))) == list(map(form, flat(real))), function
    return told


def flat(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (list, tuple)) else [result]


def form(one: Any) -> Any:
    """Shape, type, and the strides that say anything."""
    if not isinstance(one, Tensor):
        return one
    strides = [stride for size, stride in zip(one.shape, one.stride(), strict=True) if size > 1]
    return one.shape, one.dtype, strides if one.numel() else None


def test_nothing_is_done_where_nothing_asks():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    engine = trace(model, Example.of(torch.randn(2, 3, 8, 8)))
    assert engine.executor.materialized == 0
    assert set(engine.records.layers) == {"0.weight", "4.weight"}


def test_small_products_are_done_at_once(monkeypatch):
    monkeypatch.setattr(output_meta, "WORTHWHILE", 2 * 4 * 3 + 1)
    seen = []
    monkeypatch.setattr(
        lazy_execution, "empty_result", lambda *call: seen.append(call) or output_meta.empty_result(*call)
    )
    analyse(nn.Linear(4, 3), torch.randn(2, 4))
    assert not seen
    monkeypatch.setattr(output_meta, "WORTHWHILE", 2 * 4 * 3)
    analyse(nn.Linear(4, 3), torch.randn(2, 4))
    assert seen


# ---- whoever asks for values gets the right ones

READS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x[0, 0]),
    "bool": lambda x: bool((x > 0).any()),
    "numpy": lambda x: x.numpy().copy(),
    "numpy array": lambda x: np.asarray(x).copy(),
    "tolist": lambda x: x.tolist(),
    "deepcopy": copy.deepcopy,
    "pointer": lambda x: np.ctypeslib.as_array((np.ctypeslib.ctypes.c_float * 6).from_address(x.data_ptr())).copy(),
    "equal": lambda x: torch.equal(x, x.clone()),
    "mask": lambda x: x[x > 0].shape,
    "nonzero": lambda x: (x > 0).nonzero(),
    "largest": lambda x: x.argmax(1).tolist(),
    "sorted": lambda x: x.sort(dim=1).values.tolist(),
    "view": lambda x: x.view(-1)[2:].numpy().copy(),
    "in place": lambda x: x.clone().add_(1).mul_(2).tolist(),
    "linear algebra": lambda x: torch.linalg.svdvals(x).tolist(),
    "repr": repr,
    "format": lambda x: f"{x}",
    "data": lambda x: float(x.data.abs().max()),
    "parameter": lambda x: float(nn.Parameter(x)[0].sum()),
}


class Reading(nn.Module):
    """Notes what reading an activation gave."""

    def __init__(self, read: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.read, self.notes = nn.Linear(4, 6), nn.Linear(6, 3), read, []

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu() - 0.1
        self.notes.append(self.read(hidden))
        return self.second(hidden)


@pytest.mark.parametrize("name", READS)
def test_reads_give_the_values_that_are_there_without_the_engine(name):
    model, x = Reading(READS[name]).eval(), torch.randn(1, 4)
    with torch.no_grad():
        model(x)
    analyse(model, x)
    expected, *found = model.notes
    assert found
    for one in found:
        assert type(one) is type(expected)
        assert one == expected if isinstance(one, str) else np.allclose(one, expected, atol=1e-6)


class Keeping(nn.Module):
    """Keeps what it computed, as a cache does."""

    def __init__(self, keep: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.keep = nn.Linear(4, 6), nn.Linear(6, 3), keep
        self.kept: Any = None
        self.log = [torch.zeros(6)]

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        self.kept = self.keep(self, hidden)
        return self.second(hidden)


def _append(model: Keeping, hidden: Tensor) -> None:
    model.log.append(hidden)


def _write(model: Keeping, hidden: Tensor) -> None:
    model.log[0].copy_(hidden[0])


KEEPS: dict[str, Callable[[Any, Tensor], Any]] = {
    "the tensor": lambda _, hidden: hidden,
    "a view": lambda _, hidden: hidden[:, 2:],
    "a view of a view": lambda _, hidden: hidden.t()[1:].unsqueeze(0),
    "a list": lambda _, hidden: [hidden.exp(), hidden * 2],
    "its data": lambda _, hidden: hidden.data,
    "a parameter": lambda _, hidden: nn.Parameter(hidden, requires_grad=False),
    "a result": lambda _, hidden: hidden.sum(1),
    "in a closure": lambda _, hidden: [lambda: hidden],
    "appended": _append,
    "written into another tensor": _write,
}


@pytest.mark.parametrize("name", KEEPS)
def test_what_a_network_keeps_has_its_values(name):
    model, x = Keeping(KEEPS[name]).eval(), torch.randn(1, 4)
    with torch.no_grad():
        for _ in range(4):  # the engine runs what keeps something twice in each of two modes
            model(x)
    expected = values(model)
    model.log, model.kept = [torch.zeros(6)], None
    analyse(model, x)
    found = values(model)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def values(model: Keeping) -> list[Tensor]:
    kept = [one() if callable(one) else one for one in flat(model.kept)]
    return [one.clone() for one in (*model.log, *kept) if one is not None]


def test_what_a_hook_outside_of_the_network_keeps_has_its_values():
    model, x, seen = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(1, 4), []
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    analyse(model, x)
    with torch.no_grad():
        torch.testing.assert_close(seen[0], model[0](x).relu())


def test_what_is_kept_when_the_run_fails_has_its_values():
    class Failing(Keeping):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise ArithmeticError("by the network")

    model, x = Failing(KEEPS["the tensor"]), torch.randn(1, 4)
    with pytest.raises(ArithmeticError, match="by the network"):
        analyse(model, x)
    with torch.no_grad():
        torch.testing.assert_close(model.kept, model.first(x).relu())


def test_the_networks_own_error_is_its_own():
    """A product that does not fit raises where it stands, with torch's words."""
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(5, 3))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        analyse(model, torch.randn(1, 4))


def test_a_write_into_what_an_earlier_operation_reads_comes_after_it():
    class Order(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.notes = nn.Linear(4, 6), []

        def forward(self, x: Tensor) -> Tensor:
            added = torch.zeros(6)
            hidden = self.linear(x) + added
            added.fill_(100.0)  # after the sum
            self.notes.append(hidden.abs().max().item())
            return hidden

    model = Order()
    analyse(model, torch.randn(1, 4))
    assert max(model.notes) < 50
