"""Numbers that modules remember and that may be widths of a group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from lightning_coreset.module_specs import (
    configs_of,
    new_sizes,
    other_sizes,
    parts_of,
    remembered_integers,
    sizing_tensor,
)
from lightning_coreset.qualified_names import common_module, lies_in
from lightning_coreset.structure import ChannelGroup, Count
from lightning_coreset.verification.reads import Reads, record_reads

Key: TypeAlias = tuple[object, ...]


@dataclass(frozen=True)
class Candidate:
    """A number that may have to change with a group.

    Attributes:
        counts: Where it stands: in one module, or in a config object that several modules hold.
        key: What it has in common with the same number of another group: where its module is, seen from the group, the
            module's type, the number's path there and its relation to the width.
        rank: The lower, the more likely.
    """

    counts: tuple[Count, ...]
    key: Key
    rank: tuple[int, ...]

    @property
    def places(self) -> frozenset[tuple[str, str]]:
        """Modules and paths."""
        return frozenset((count.module, count.name) for count in self.counts)

    @property
    def title(self) -> str:
        """Its name for messages."""
        first = self.counts[0]
        return f"{first.module}.{first.name}" if first.module else first.name


@dataclass(frozen=True)
class _Number:
    """A number that the network reads; it is the same number in all of its places."""

    places: tuple[tuple[str, str], ...]
    value: int
    of_one_reader: bool  # of a config object that others hold, too


class RememberedNumbers:
    """The numbers of a network that it reads when it runs.

    Args:
        model: The network.
        run: Runs it.
    """

    def __init__(self, model: nn.Module, run: Callable[[], object]) -> None:
        self._modules = dict(model.named_modules())
        configs = [config for module in self._modules.values() for _, config in configs_of(module)]
        parts = [part for config in configs for _, part in parts_of(config)]
        owners = [module for path, module in self._modules.items() if self._own(path)]
        self._numbers = list(self._read(record_reads([*owners, *parts], run)))

    def candidates(self, group: ChannelGroup) -> list[Candidate]:
        """Those that may change with a group, the likeliest first.

        They belong to modules that own its members, to modules that contain these, and to modules between.
        """
        way = _Way(group)
        counted = {(count.module, count.name) for count in group.counts}
        found = []
        for number in self._numbers:
            if counted.intersection(number.places) or not any(way.passes(path) for path, _ in number.places):
                continue
            nearest, name = min(number.places, key=lambda place: (not way.passes(place[0]), way.distance(place[0])))
            for per_class, unlikely in _multiples(group, number.value):
                counts = tuple(Count(path, own, per_class) for path, own in number.places)
                relation = (unlikely, per_class if unlikely else None, len(counts) > 1)
                key = (way.relation(nearest), type(self._modules[nearest]), name, *relation)
                rank = (way.is_between(nearest), unlikely, number.of_one_reader, way.distance(nearest))
                found.append(Candidate(counts, key, tuple(map(int, rank))))
        return sorted(found, key=lambda candidate: candidate.rank)

    def situation(self, group: ChannelGroup) -> Key:
        """What groups have in common whose layers lie alike in modules of the same type."""
        way = _Way(group)
        return type(self._modules.get(way.root)), *sorted(owner[len(way.root) :] for owner in way.owners)

    def _own(self, path: str) -> dict[str, int]:
        """The numbers of a module that do not follow from the shape of its tensor."""
        module = self._modules[path]
        found = sizing_tensor(module)
        try:
            follow = {} if found is None else new_sizes(path, module, tuple(found[1].shape))
        except ValueError:
            follow = {}
        known = {*follow, *(attribute for attribute, *_ in other_sizes(module))}
        return {name: value for name, value in remembered_integers(module).items() if _first(name) not in known}

    def _read(self, reads: Reads) -> Iterator[_Number]:
        holders: dict[int, list[tuple[str, str, Any]]] = {}  # of config objects, by id
        for path, module in self._modules.items():
            for name, config in configs_of(module):
                for steps, part in parts_of(config):
                    holders.setdefault(id(part), []).append((path, ".".join((name, *steps)), part))
            for name, value in self._own(path).items():
                if "." not in name and value > 0 and (module, _first(name)) in reads:
                    yield _Number(((path, name),), value, False)
        for held in holders.values():
            yield from self._read_fields(held, reads)

    def _read_fields(self, held: list[tuple[str, str, Any]], reads: Reads) -> Iterator[_Number]:
        """The numbers of one config object: for all modules that hold it, and for every one that reads it."""
        (path, own, part), *others = held
        readers = [each for each in held if (self._modules[each[0]], _first(each[1])) in reads]
        for name, value in remembered_integers(self._modules[path]).items():
            field = name.removeprefix(f"{own}.")
            if field == name or "." in field or value <= 0 or (part, _first(field)) not in reads or not readers:
                continue
            yield _Number(tuple((place, f"{prefix}.{field}") for place, prefix, _ in held), value, False)
            if others:
                for place, prefix, _ in readers:
                    yield _Number(((place, f"{prefix}.{field}"),), value, True)


class _Way:
    """Where a group lies in the tree of modules."""

    def __init__(self, group: ChannelGroup) -> None:
        self.owners = {member.name.rpartition(".")[0] for member in group.members}
        self.root = common_module(self.owners)  # the smallest module that contains the group

    def passes(self, path: str) -> bool:
        """Whether a module contains members of the group, or lies in the smallest that contains all of them."""
        return lies_in(path, self.root) or lies_in(self.root, path)

    def is_between(self, path: str) -> bool:
        """Whether a module lies there without containing members."""
        return not any(lies_in(owner, path) for owner in self.owners)

    def distance(self, path: str) -> int:
        """How many levels a module is away from the smallest one that contains the group."""
        return abs(_depth(path) - _depth(self.root))

    def relation(self, path: str) -> str | int:
        """Where a module is, seen from there: a path below it, or levels above it."""
        return path[len(self.root) :].lstrip(".") if lies_in(path, self.root) else self.distance(path)


def _multiples(group: ChannelGroup, value: int) -> list[tuple[int, bool]]:
    """How much one class may contribute to a number, the likeliest first, and whether that is unlikely."""
    widths = {member.length: int(member.widths[0]) for member in group.members if len(member.widths.unique()) == 1}
    multiples = dict.fromkeys((widths[value],) if value in widths else (), False)
    if value % group.size == 0:
        multiple = value // group.size
        multiples.setdefault(multiple, multiple not in (1, *widths.values()))
    return sorted(multiples.items(), key=lambda each: each[1])


def _depth(path: str) -> int:
    return path.count(".") + 1 if path else 0


def _first(path: str) -> str:
    """The attribute at the beginning of a path."""
    return path.partition(".")[0].partition("[")[0]
