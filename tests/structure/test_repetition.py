"""In the second run only what differs from the first is followed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_coreset.structure import analyse
from lightning_coreset.structure.labels import ChannelLabels, TensorInfo
from lightning_coreset.structure.op_call import OpCall
from lightning_coreset.structure.propagation import Propagation
from lightning_coreset.structure.repetition import Repetition


@pytest.fixture
def followed(monkeypatch) -> list[str]:
    """The operations whose rules are applied in the second run."""
    names: list[str] = []
    apply = Propagation._apply

    def noted(self: Propagation, op: OpCall) -> None:
        if not self.recording:
            names.append(op.name)
        apply(self, op)

    monkeypatch.setattr(Propagation, "_apply", noted)
    return names


class Net(nn.Module):
    """Heads, a residual, an auxiliary output in training, dropout as a function."""

    def __init__(self, dropout: float = 0.0, auxiliary: bool = False) -> None:
        super().__init__()
        self.dropout = dropout
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)
        self.auxiliary = nn.Linear(16, 3) if auxiliary else None

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (one(x).view(2, 5, 2, 4).transpose(1, 2) for one in (self.q, self.k, self.v))
        weights = F.dropout((q @ k.transpose(2, 3)).softmax(-1), self.dropout, self.training)
        x = x + self.o((weights @ v).transpose(1, 2).reshape(2, 5, 8))
        hidden = self.up(x).relu()
        out = self.head(x + self.down(hidden))
        return out + self.auxiliary(hidden) if self.training and self.auxiliary is not None else out


def sizes(net: nn.Module) -> dict[str, int]:
    return {group.name: group.size for group in analyse(net, torch.randn(2, 5, 8)).groups}


def test_nothing_is_followed_twice(followed):
    assert sizes(Net()) == {"q": 2, "up": 16}
    assert followed == []


def test_dropout_alone_is_followed(followed):
    assert sizes(Net(dropout=0.1)) == {"q": 2, "up": 16}
    assert set(followed) <= {"native_dropout", "empty_like", "bernoulli", "div", "mul"}
    assert followed


def test_what_training_adds_is_followed(followed):
    net = Net(auxiliary=True)
    (group,) = (group for group in analyse(net, torch.randn(2, 5, 8)).groups if group.name == "up")
    assert "auxiliary.weight" in {member.name for member in group.members}
    assert "addmm" in followed
    assert len(followed) < 8


# ---- what counts as the same


def operation(function: Any, *args: Any) -> OpCall:
    tensors = [one for arg in args for one in (arg if isinstance(arg, list) else [arg]) if isinstance(one, Tensor)]
    return OpCall.read(function, args, {}, tensors, function(*args))


def keys(known: dict[int, TensorInfo], *ops: OpCall) -> list[Any]:
    repetition = Repetition()
    return [repetition.key(op, lambda tensor: known.get(id(tensor))) for op in ops]


aten = torch.ops.aten


def test_forms_and_numbers_count():
    x, turned, wide = torch.randn(4, 4), torch.randn(4, 4).t(), torch.randn(4, 8)
    same, again, other_strides, other_shape = keys(
        {}, *(operation(aten.relu.default, one) for one in (x, torch.randn(4, 4), turned, wide))
    )
    assert same == again
    assert len({same, other_strides, other_shape}) == 3
    one, two = keys({}, operation(aten.transpose.int, x, 0, 1), operation(aten.transpose.int, x, 1, 1))
    assert one != two


def test_what_is_known_counts():
    x, y = torch.randn(4, 4), torch.randn(4, 4)
    axes = (ChannelLabels(torch.arange(1, 5).view(4, 1)),)
    first, alike, other, without = (
        keys({id(x): carried} if carried else {}, operation(aten.relu.default, x))[0]
        for carried in (TensorInfo(axes), TensorInfo(axes), TensorInfo((ChannelLabels(axes[0].labels),)), None)
    )
    assert first == alike
    assert len({first, other, without}) == 3
    assert keys({id(y): TensorInfo(axes)}, operation(aten.relu.default, y)) == [first]
    turned = torch.randn(4, 4).t()
    assert keys({id(turned): TensorInfo(axes)}, operation(aten.relu.default, turned)) != [first]


def test_positions_are_never_taken_for_the_same():
    x, positions = torch.randn(4, 4), torch.tensor([0, 1, 2, 3])
    taken, looked_up = keys(
        {}, operation(aten.index.Tensor, x, [None, positions]), operation(aten.embedding.default, x, positions)
    )
    assert taken is None
    assert looked_up is not None


def test_several_of_the_same_come_back_in_their_order():
    repetition, op = Repetition(), SimpleNamespace(args=(), kwargs={}, name="relu", function="f")
    key = repetition.key(op, lambda tensor: None)  # type: ignore[arg-type]
    one, two = TensorInfo(constant=True), TensorInfo()
    repetition.note(key, [], [one])
    repetition.note(key, [], [two])
    assert [repetition.became(key) for _ in range(3)] == [(one,), (two,), None]
