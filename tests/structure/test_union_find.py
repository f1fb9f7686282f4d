"""Unions of whole dimensions, written down late, come to the same as unions of single atoms."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from lightning_coreset.structure.union_find import ChannelUnionFind

LENGTHS = (4, 4, 4, 6, 6, 2, 4, 6)


class Naive:
    """Sets of atoms, united one pair after the other; what meets atom 0 is blocked."""

    def __init__(self, count: int) -> None:
        self.sets = [{atom} for atom in range(count)]
        self.blocked: set[int] = set()

    def unite(self, first: Tensor, second: Tensor) -> None:
        for one, other in zip(first.flatten().tolist(), second.flatten().tolist(), strict=True):
            if 0 in (one, other):
                self.blocked |= {max(one, other)} - {0}
                continue
            joined = self.sets[one] | self.sets[other]
            for atom in joined:
                self.sets[atom] = joined


def made() -> tuple[ChannelUnionFind, list[Tensor]]:
    atoms = ChannelUnionFind()
    atoms.reserve(sum(LENGTHS))
    return atoms, [atoms.allocate(f"t{number}", 0, length) for number, length in enumerate(LENGTHS)]


def some_union(dims: list[Tensor], choose: random.Random, whole: float) -> tuple[Tensor, Tensor]:
    """Two label tensors of one shape: two dimensions as they are, or parts, turned, repeated, fixed."""
    first, second = choose.sample(dims, 2)
    if choose.random() < whole:
        second = choose.choice([dim for dim in dims if len(dim) == len(first)])
        return first, second
    size = min(len(first), len(second))
    kind = choose.choice(["part", "flip", "one", "fixed", "grid"])
    first, second = first[:size], second[-size:]
    if kind == "flip":
        second = second.flip(0)
    elif kind == "one":
        first = first[:1].expand(size)
    elif kind == "fixed":
        first = torch.where(torch.arange(size) % 2 == 0, 0, first)
    elif kind == "grid":
        first, second = first.reshape(-1, 1).expand(size, 2), torch.stack([second, second.flip(0)], 1)
    return first, second


@pytest.mark.parametrize("whole", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("seed", range(20))
def test_classes_are_those_of_single_atoms(seed, whole):
    choose = random.Random(seed)
    atoms, dims = made()
    naive = Naive(1 + sum(LENGTHS))
    for _ in range(choose.randint(1, 8)):
        first, second = some_union(dims, choose, whole)
        atoms.unite(first, second, "meets a fixed element")
        naive.unite(first, second)
        if choose.random() < 0.3:  # a look in between changes nothing
            dim = choose.choice(dims)
            assert atoms.roots(dim).tolist() == [min(naive.sets[atom]) for atom in dim.tolist()]
        for dim in dims:
            apart = len({frozenset(naive.sets[atom]) for atom in dim.tolist()}) == len(dim)
            assert apart or not atoms.distinct(dim)
            first, *_, last = dim.tolist()
            assert atoms.apart(first, last) == (last not in naive.sets[first])
    assert atoms.all_roots().tolist() == [min(own) for own in naive.sets]
    blocked = atoms.blocked().tolist()
    assert {root for root, gone in enumerate(blocked) if gone} == {0} | {min(naive.sets[one]) for one in naive.blocked}


def test_dimensions_of_one_length_are_plainly_distinct():
    atoms, dims = made()
    atoms.unite(dims[0], dims[1], "")
    assert all(map(atoms.distinct, dims))
    assert atoms.distinct(dims[0].view(1, 4, 1, 1))
    assert not atoms.distinct(dims[0][:2])
    assert not atoms.distinct(dims[0].flip(0))
    atoms.unite(dims[2][:2], dims[2][2:], "")
    assert not atoms.distinct(dims[0])


def test_the_version_tells_of_every_union():
    atoms, dims = made()
    seen = [atoms.version]

    def goes_up(first: Tensor, second: Tensor) -> bool:
        atoms.unite(first, second, "")
        seen.append(atoms.version)
        return seen[-1] > seen[-2]

    assert goes_up(dims[0], dims[1])
    assert not goes_up(dims[1], dims[0])
    assert goes_up(dims[0][:2], dims[5])
    assert not goes_up(dims[1][:2], dims[5])
    assert not goes_up(dims[2], torch.zeros(4, dtype=torch.int64))


# ---- condensed to two atoms for each dimension


def test_whole_dimensions_are_condensed():
    atoms, dims = made()
    atoms.unite(dims[0], dims[1], "")
    atoms.unite(dims[1], dims[2], "")
    atoms.unite(dims[3], dims[4], "")
    atoms.block(dims[5], "never")
    atoms.block(dims[4], "reaches the output")
    atoms.block(dims[4], "too late")
    few = atoms.condensed()
    assert list(few.ranges) == list(atoms.ranges)
    assert all(len(own) == 2 for own in few.ranges.values())
    for where, own in few.ranges.items():
        whole = atoms.ranges[where]
        for roots, ranges, one in ((few.all_roots(), few.ranges, own), (atoms.all_roots(), atoms.ranges, whole)):
            lead = {"t1": "t0", "t2": "t0", "t4": "t3"}.get(where[0], where[0])
            first = ranges[lead, 0].start
            assert roots[one.start : one.start + 2].tolist() == [first, first + 1]
        told = [each.reasons()[each.all_roots()[one.start]] for each, one in ((few, own), (atoms, whole))]
        assert told[0] == told[1]
        assert (int(told[0]) >= 0) == (where[0] in ("t3", "t4", "t5"))


@pytest.mark.parametrize(
    "change",
    [
        lambda atoms, dims: atoms.unite(dims[0], dims[1].flip(0), ""),
        lambda atoms, dims: atoms.unite(dims[0][:2], dims[5], ""),
        lambda atoms, dims: atoms.block(dims[0][1:], "in part"),
        lambda atoms, dims: (atoms.block(dims[0][1:], "one reason"), atoms.block(dims[0][:1], "another")),
        lambda atoms, dims: atoms.unite(dims[0], torch.tensor([0, 1, 0, 2]), "meets a fixed element"),
    ],
    ids=["turned", "in part", "blocked in part", "blocked for two reasons", "fixed in part"],
)
def test_anything_else_is_not_condensed(change):
    atoms, dims = made()
    atoms.unite(dims[0], dims[1], "")
    change(atoms, dims)
    assert atoms.condensed() is atoms
