"""Tensors in nested containers."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import torch
from torch import nn

from lightning_coreset.nested import map_tensors, tensors_by_path, tensors_in

Pair = namedtuple("Pair", ["a", "b"])


@dataclasses.dataclass(frozen=True)
class Frozen:
    logits: torch.Tensor
    name: str = "x"


class Output(OrderedDict):
    """Like the outputs of Hugging Face: keys are attributes too."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        object.__setattr__(self, key, value)


def test_containers_keep_their_types():
    tensor = torch.zeros(1)
    other = SimpleNamespace(logits=tensor)
    output = Output()
    output["logits"] = tensor
    tree = [Pair(tensor, 1), (tensor, None), {"a": [tensor]}, Frozen(tensor), output, other, "text"]

    pair, plain, mapping, frozen, out, same, text = map_tensors(lambda t: t + 1, tree)

    assert pair == Pair(torch.ones(1), 1)
    assert plain == (torch.ones(1), None)
    assert mapping == {"a": [torch.ones(1)]}
    assert frozen == Frozen(torch.ones(1))
    assert type(out) is Output
    assert out["logits"] == out.logits == 1
    assert same is other
    assert text == "text"
    assert tensor == 0
    assert tree[3].logits is output.logits is tensor


def test_tensors_are_named_by_what_leads_to_them():
    a, b, c, d = torch.zeros(4).unbind()
    output = Output()
    output["logits"] = d
    tree = {"pair": Pair(a, "text"), "list": [None, Frozen(b)], "output": output, 3: (c,), "type": Frozen}

    expected = {("pair", 0): a, ("list", 1, "logits"): b, ("output", "logits"): d, (3, 0): c}
    assert {path: id(tensor) for path, tensor in tensors_by_path(tree).items()} == {
        path: id(tensor) for path, tensor in expected.items()
    }


@dataclasses.dataclass(slots=True)
class SlottedRecord:
    tensor: torch.Tensor


def test_tensors_of_objects_and_sets_are_found_but_not_those_of_modules():
    a, b, c, d, e = torch.zeros(5).unbind()
    tree = [SimpleNamespace(one=a, two=[b]), {c}, Frozen(d), SlottedRecord(e), nn.Linear(2, 2), Frozen, "text", 1, None]

    assert [id(tensor) for tensor in tensors_in(tree)] == [id(tensor) for tensor in (a, b, c, d, e)]


def test_objects_that_refer_to_each_other_are_entered_a_limited_number_of_times():
    circle = SimpleNamespace(tensor=torch.zeros(1))
    circle.again = circle

    assert len(list(tensors_in(circle, depth=3))) == 3


def test_a_tensor_that_is_not_nested_is_found():
    tensor = torch.zeros(1)

    assert list(tensors_in(tensor, depth=0)) == [tensor]
    assert tensors_by_path(tensor) == {(): tensor}
    assert map_tensors(lambda t: t + 1, tensor) == 1
