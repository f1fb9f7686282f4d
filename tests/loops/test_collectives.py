"""Steps that talk to other ranks prune as the same steps without, and no rank waits for another one meanwhile."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
import torch.distributed.nn.functional as differentiable
from fitting import assert_same
from loops.collectives_script import KINDS
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.testing._internal.distributed.fake_pg import FakeStore
from training.launching import HERE, TORCHRUN, finish, seen_by_ranks, start

from lightning_coreset.structure import Example, analyse, local_collectives
from lightning_coreset.verification import failing_groups, tried_groups

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning")


@pytest.fixture
def second_of_two_ranks() -> Iterator[None]:
    """There is no other rank: whoever waited for one would wait for ever, or raise."""
    dist.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


def made_by(collective: Callable[..., Any], out: Tensor, *args: Any, **options: Any) -> Tensor:
    collective(out, *args, **options)
    return out


def in_place(collective: Callable[..., Any], x: Tensor, *args: Any, **options: Any) -> Tensor:
    return made_by(collective, x.clone(), *args, **options)


def into_lists(collective: Callable[..., Any], x: Tensor) -> Tensor:
    parts = [torch.zeros_like(x) for _ in range(2)]
    collective(parts, x)
    return torch.cat(parts)


def of_lists(collective: Callable[..., Any], x: Tensor) -> Tensor:
    out = torch.zeros_like(x[:2])
    collective(out, list(x.clone().split(2)))
    return out


def exchanged(x: Tensor) -> Tensor:
    parts = [torch.zeros_like(part) for part in x.split(2)]
    dist.all_to_all(parts, list(x.clone().split(2)))
    return torch.cat(parts)


def asynchronous(x: Tensor) -> Tensor:
    x = x.clone()
    work: Any = dist.all_reduce(x, async_op=True)
    assert work.wait()
    assert work.is_completed()
    return x


def summed() -> int:
    """By how much a sum grows; torch 2.6 does not tell one from other reductions."""
    return 1 if torch.__version__.startswith("2.6") else 2


WORLD: Any = lambda: dist.group.WORLD  # noqa: E731
ANSWERS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "all_reduce": (lambda x: in_place(dist.all_reduce, x), lambda x: summed() * x),
    "all_reduce, mean": (lambda x: in_place(dist.all_reduce, x, op=dist.ReduceOp.AVG), lambda x: x),
    "all_reduce, async": (asynchronous, lambda x: summed() * x),
    "all_reduce in a group": (lambda x: in_place(dist.all_reduce, x, group=dist.new_group([1])), lambda x: x),
    "reduce": (lambda x: in_place(dist.reduce, x, 0), lambda x: summed() * x),
    "broadcast": (lambda x: in_place(dist.broadcast, x, 0), lambda x: x),
    "all_gather": (lambda x: into_lists(dist.all_gather, x), lambda x: torch.cat([x, x])),
    "gather": (lambda x: into_lists(lambda parts, x: dist.gather(x, parts, 1), x), lambda x: torch.cat([x, x])),
    "all_gather_into_tensor": (
        lambda x: made_by(dist.all_gather_into_tensor, x.new_zeros(8, 3), x),
        lambda x: torch.cat([x, x]),
    ),
    "all_gather_into_tensor, stacked": (
        lambda x: made_by(dist.all_gather_into_tensor, x.new_zeros(2, 4, 3), x),
        lambda x: torch.stack([x, x]),
    ),
    "scatter": (lambda x: of_lists(lambda out, parts: dist.scatter(out, parts, 1), x), lambda x: x[:2]),
    "reduce_scatter": (lambda x: of_lists(dist.reduce_scatter, x), lambda x: summed() * x[:2]),
    "reduce_scatter_tensor": (
        lambda x: made_by(dist.reduce_scatter_tensor, x.new_zeros(2, 3), x),
        lambda x: summed() * x[:2],
    ),
    "all_to_all": (exchanged, lambda x: x),
    "all_to_all_single": (lambda x: made_by(dist.all_to_all_single, torch.zeros_like(x), x), lambda x: x),
    "functional all_reduce": (lambda x: functional.all_reduce(x, "sum", WORLD()) + 0, lambda x: 2 * x),
    "functional all_gather": (
        lambda x: functional.all_gather_tensor(x, 0, WORLD()) + 0,
        lambda x: torch.cat([x, x]),
    ),
    "functional reduce_scatter": (
        lambda x: functional.reduce_scatter_tensor(x, "avg", 0, WORLD()) + 0,
        lambda x: x[:2],
    ),
    "functional broadcast": (lambda x: functional.broadcast(x, 0, WORLD()) + 0, lambda x: x),
    "functional all_to_all": (lambda x: functional.all_to_all_single(x, None, None, WORLD()) + 0, lambda x: x),
    "differentiable all_gather": (
        lambda x: torch.cat(differentiable.all_gather(x)),
        lambda x: torch.cat([x, x]),
    ),
    "differentiable all_reduce": (differentiable.all_reduce, lambda x: summed() * x),
}


@pytest.mark.usefixtures("second_of_two_ranks")
@pytest.mark.parametrize("name", ANSWERS)
def test_answers(name):
    """What comes back if all ranks have the same."""
    run, expected = ANSWERS[name]
    x = torch.arange(12.0).reshape(4, 3)
    with local_collectives():
        found = run(x)
    assert type(found) is Tensor
    assert torch.equal(found, expected(x))


@pytest.mark.usefixtures("second_of_two_ranks")
def test_objects():
    with local_collectives():
        gathered: list[Any] = [None, None]
        dist.all_gather_object(gathered, {"n": 3})
        kept = ["mine"]
        dist.broadcast_object_list(kept, 0)
        dist.barrier()
    assert gathered == [{"n": 3}, {"n": 3}]
    assert kept == ["mine"]


@pytest.mark.usefixtures("second_of_two_ranks")
def test_torch_is_left_as_it_was():
    def failing() -> None:
        assert dist.broadcast_object_list is not before
        raise RuntimeError("broken")

    before = dist.broadcast_object_list
    with pytest.raises(RuntimeError, match="broken"), local_collectives():
        failing()
    assert dist.broadcast_object_list is before


# ---- steps


def plain(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return cross_entropy(net(x), y)


def contrast(net: nn.Module, x: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
    codes = normalize(net(x), dim=1)
    return cross_entropy(codes @ gather(codes).T / 0.1, torch.arange(len(codes)) + len(codes))


def gathered_with_gradients(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return contrast(net, x, lambda codes: torch.cat(differentiable.all_gather(codes)))


def gathered_in_lists(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    def gather(codes: Tensor) -> Tensor:
        parts = [torch.zeros_like(codes) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, codes.detach())
        parts[dist.get_rank()] = codes
        return torch.cat(parts)

    return contrast(net, x, gather)


def gathered_whole(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return contrast(net, x, lambda codes: made_by(dist.all_gather_into_tensor, codes.new_empty(12, 3), codes))


def functional_gather(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return contrast(net, x, lambda codes: functional.all_gather_tensor(codes, 0, WORLD()))


def centred(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Hidden channels, less their mean over all ranks."""
    hidden = net.get_submodule("1")(net.get_submodule("0")(x))
    mean = hidden.detach().mean(0)
    dist.all_reduce(mean)
    hidden = hidden - mean / dist.get_world_size()
    for name in ("2", "3", "4"):
        hidden = net.get_submodule(name)(hidden)
    return cross_entropy(hidden, y)


def hidden_gathered(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Hidden channels of all ranks, side by side along the batch."""
    hidden = net.get_submodule("1")(net.get_submodule("0")(x))
    hidden = torch.cat(differentiable.all_gather(hidden))
    for name in ("2", "3", "4"):
        hidden = net.get_submodule(name)(hidden)
    return cross_entropy(hidden, torch.cat([y, y]))


STEPS = (
    *(gathered_with_gradients, gathered_in_lists, gathered_whole, functional_gather),
    *(centred, hidden_gathered),
)


class Net(nn.Sequential):
    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))


def example_of(step: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Example:
    inputs = (torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3)
    return Example(inputs, lambda net, batch: step(net, *batch), 6)


@pytest.mark.usefixtures("second_of_two_ranks")
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_prunes_as_without(step):
    net = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        found = analyse(net, example_of(step))
        expected = analyse(net, example_of(plain))
        assert [(group.name, group.members) for group in found.groups] == [
            (group.name, group.members) for group in expected.groups
        ]
        assert tried_groups(net, found.groups, example_of(step)) == (found.groups, {})


@pytest.mark.usefixtures("second_of_two_ranks")
@pytest.mark.parametrize("step", [gathered_in_lists, hidden_gathered], ids=lambda step: step.__name__)
def test_a_wrong_cut_is_found(step):
    net = Net()
    group = analyse(net, example_of(step)).groups[0]
    last = group.members[-1]
    wrong = replace(group, members=(*group.members[:-1], replace(last, index=(*last.index[1:], last.index[0]))))
    assert failing_groups(net, [wrong], example_of(step)).keys() == {"0"}


# ---- training of two processes

SCRIPT = HERE.parent / "loops" / "collectives_script.py"
FAST = ("gathered", "object")


def check(directory: Path, *kinds: str) -> None:
    """Both ranks end with the same weights, as narrow as without any collective."""
    finish(start(directory, *TORCHRUN, SCRIPT, directory, "none", *kinds))
    first, second = seen_by_ranks(directory)
    for kind in kinds:
        assert first[kind]["widths"] == first["none"]["widths"]
        assert_same(first[kind]["weights"], second[kind]["weights"])
    assert first["none"]["widths"]["net.0"][1] < 16


@pytest.mark.slow
def test_two_processes(tmp_path):
    check(tmp_path, *FAST)


@pytest.mark.slow
def test_two_processes_with_all_kinds(tmp_path):
    check(tmp_path, *(kind for kind in KINDS if kind not in FAST))
