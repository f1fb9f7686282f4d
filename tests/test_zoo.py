"""`analyse` on the networks of the zoo: all groups that must be found are found, and each can be removed."""

from __future__ import annotations

import pytest
import torch
from breadth import thinned
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import FAST, THIRD_PARTY, ZOO
from zoo.inspection import unexplained
from zoo.oracle import build, examine, excused, search
from zoo.running import call, distance, flat

from lightning_coreset.structure import analyse
from lightning_coreset.structure.trace import plain_execution

CLASSICS = [
    pytest.param(entry, id=name, marks=[] if name.startswith("classic/") else pytest.mark.slow)
    for name, entry in ZOO.items()
]
# How many groups are tried one by one, besides all at once. A trap is small, and about each of its groups.
TRIALS = [
    pytest.param(entry, 6 if name.startswith("traps/") else 2, id=name) for name, entry in ZOO.items() if name in FAST
]
ALL_TRIALS = [
    pytest.param(entry, 6, id=f"{name}, more groups", marks=pytest.mark.slow)
    for name, entry in ZOO.items()
    if name not in FAST or not name.startswith("traps/")
]


@pytest.mark.parametrize(("entry", "trials"), thinned(TRIALS, 5) + ALL_TRIALS)
@pytest.mark.filterwarnings(*THIRD_PARTY)
def test_network(entry, trials):
    if entry.name.startswith("hf/"):
        pytest.importorskip("transformers")
    model = build(entry)
    structure = search(entry, model)
    names = [group.name for group in structure.groups]

    if entry.expect == "groups":
        assert names, f"no group was found; refused: {dict(structure.refused)}"
    if entry.expect == "none":
        assert not names, f"nothing can be pruned: {entry.why}"
    missing = set(entry.must) - set(names)
    assert not missing, f"not found: {sorted(missing)}; found: {names}; refused: {dict(structure.refused)}"
    known = {group.name for group in structure.groups if getattr(group, "normalized", False)}
    unknown = set(entry.normalized) - known
    assert not unknown, f"no groups under a norm: {sorted(unknown)}; known: {known}; refused: {dict(structure.refused)}"
    made = {member.name for group in structure.groups for member in group.members if member.role == "producer"}
    assert not made & {f"{name}.weight" for name in entry.never}, f"can be pruned, though {entry.why}"
    assert not unexplained(model, structure), "layers in no group, and no reason is given"

    for verdict in examine(entry, model, structure.groups, limit=trials):
        # Nobody can see from outside that a number in the code is a width: those groups may fail when they are tried.
        allowed = ("right", "exception", "wrong output") if excused(entry, verdict.group) else ("right",)
        assert verdict.kind in allowed, verdict


def test_the_zoo_is_large_and_diverse():
    assert len(ZOO) >= 110
    assert {name.partition("/")[0] for name in ZOO} == {"classic", "hf", "traps"}


def test_inputs_are_fresh_and_reproducible():
    """The oracle compares on two inputs: they must differ, and be the same in every run."""
    for name, entry in ZOO.items():
        first, second = (flat(list(value)) for value in _twice(entry, 0))
        again = flat(list(_twice(entry, 0)[0]))
        assert distance(first, again) == 0, name
        assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True)), name


class _Operations(TorchDispatchMode):
    """Records which aten operations run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.add(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.filterwarnings(*THIRD_PARTY)
def test_the_fast_networks_call_every_operation():
    pytest.importorskip("transformers")
    calls = {}
    for name, entry in ZOO.items():
        model, inputs = build(entry).eval(), entry.inputs(torch.Generator().manual_seed(0))
        with torch.no_grad(), plain_execution(), _Operations() as operations:
            call(model, inputs)
        calls[name] = operations.seen
    assert set().union(*calls.values()) == set().union(*(calls[name] for name in FAST))


def _twice(entry, seed):
    generator = torch.Generator().manual_seed(seed)
    made = [entry.inputs(generator) for _ in range(2)]
    return [list(value.values()) if isinstance(value, dict) else value for value in made]


@pytest.mark.parametrize("entry", thinned(CLASSICS, 3))
@pytest.mark.filterwarnings(*THIRD_PARTY)
def test_one_sample_gives_the_same_groups_as_several(entry):
    """With a batch of one, the batch dimension could be mistaken for another dimension of size one."""
    if entry.name.startswith("hf/"):
        pytest.importorskip("transformers")
    inputs = entry.inputs(torch.Generator().manual_seed(0))
    single = _map(inputs, lambda value: value[:1] if isinstance(value, Tensor) and value.dim() > 0 else value)
    try:
        with torch.no_grad():
            call(build(entry).eval(), single)
    except Exception as error:
        pytest.skip(f"the network does not run on one sample: {error}")
    # A new network for each, since some keep what their first run computed.
    found = [analyse(build(entry), one).groups for one in (single, inputs)]
    few, many = ([group.name for group in groups if not excused(entry, group.name)] for groups in found)
    assert few == many


def _map(inputs, change):
    if isinstance(inputs, dict):
        return {name: change(value) for name, value in inputs.items()}
    return tuple(map(change, inputs))
