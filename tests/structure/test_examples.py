"""A network that is run in several ways: what is found has to hold in all of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lightning_coreset.structure import Example, analyse
from lightning_coreset.verification import failing_groups, verified


class Heads(nn.Module):
    """A trunk with two heads, of which a run takes one; the trunk itself is an output for those who ask."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 3), nn.Linear(16, 5)

    def forward(self, x: Tensor, head: str | None = None) -> Tensor:
        features = self.trunk(x).relu()
        return features if head is None else self.get_submodule(head)(features)


def example(*inputs: object) -> Example:
    return Example.of((torch.randn(3, 4), *inputs))


def test_a_group_has_the_layers_of_all_runs():
    structure = analyse(Heads(), [example("a"), example("b")])
    (group,) = structure.groups
    assert [member.name for member in group.by_role("consumer")] == ["a.weight", "b.weight"]
    assert [path.consumer.weight for path in group.paths] == ["a.weight", "b.weight"]
    # Of one sample, and of each layer once, however many samples the first example has that runs it.
    assert dict(structure.macs) == {"trunk.weight": 64, "a.weight": 48, "b.weight": 80}
    others = [example("a"), Example.of((torch.randn(7, 4), "b"))]
    assert dict(analyse(Heads(), others).macs) == dict(structure.macs)
    assert failing_groups(Heads(), structure.groups, [example("a"), example("b")]) == {}


def test_outputs_of_all_runs_keep_their_width():
    structure = analyse(Heads(), [example("a"), example()])
    assert structure.groups == ()
    assert structure.refused["trunk"] == "makes outputs of the network"


def test_a_group_has_to_pass_the_self_check_in_all_runs():
    (group,) = analyse(Heads(), example("a")).groups
    assert failing_groups(Heads(), [group], example("a")) == {}
    failures = failing_groups(Heads(), [group], [example("a"), example("b")])
    assert list(failures) == ["trunk"]
    structure = analyse(Heads(), example("a"))
    with pytest.warns(UserWarning, match="trial on a copy failed"):
        assert verified(Heads(), structure, [example("a"), example("b")]).groups == ()


class OnlyIn(nn.Module):
    """Runs in one mode only."""

    def __init__(self, training: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
        self.runs_in = training

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.net(x)
        if self.training is not self.runs_in:
            raise RuntimeError("of another kind")
        return outputs


@pytest.mark.parametrize("training", [False, True])
def test_a_run_that_fails_in_one_mode_is_read_in_the_other(training):
    model, x = OnlyIn(training), torch.randn(3, 4)
    failed = "evaluation" if training else "training"
    with pytest.warns(UserWarning, match=f"could not be run in {failed} mode.*of another kind"):
        structure = analyse(model, x)
    assert [group.name for group in structure.groups] == ["net.0"]
    assert dict(structure.macs) == {"net.0.weight": 64, "net.2.weight": 48}  # counted once
    assert failing_groups(model, structure.groups, Example.of(x)) == {}
    (group,) = structure.groups
    broken = replace(group, members=tuple(member for member in group.members if member.role != "consumer"))
    assert list(failing_groups(model, [broken], Example.of(x))) == ["net.0"]


def test_a_run_that_fails_in_all_its_modes_raises_what_the_network_did():
    with pytest.raises(RuntimeError, match="of another kind"):
        analyse(OnlyIn(True), replace(Example.of(torch.randn(3, 4)), modes=("evaluation",)))


def test_who_asks_is_told_of_runs_that_fail():
    told = []
    first, second = example("a"), example("c")
    structure = analyse(Heads(), [first, second], on_failure=lambda *failure: told.append(failure))
    ((failed, errors),) = told
    assert failed is second
    assert {mode: type(error) for mode, error in errors.items()} == {
        "evaluation": AttributeError,
        "training": AttributeError,
    }
    assert [group.name for group in structure.groups] == ["trunk"]


def test_what_a_run_uses():
    class Penalised(Heads):
        def forward(self, x: Tensor, head: str | None = None) -> Tensor:
            penalty = sum(parameter.square().sum() for parameter in self.parameters())
            return super().forward(x, head).sum() + penalty

    trunk, head = {"trunk.weight", "trunk.bias"}, {"a.weight", "a.bias"}
    assert analyse(Penalised(), example("a")).used == trunk | head


def test_a_run_that_would_show_nothing_new_is_left_out():
    def needs(name: str, head: str) -> Example:
        return replace(example(head), needed=lambda used: name not in used)

    structure = analyse(Heads(), [example("a"), needs("a.weight", "a"), needs("b.weight", "b")])
    assert structure.followed == (("evaluation", "training"), (), ("evaluation", "training"))
    assert "b.weight" in structure.used
